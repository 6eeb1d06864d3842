"""Bundles on the Hugging Face Hub, fetched to a folder.

They are the same files as on disk, and read like any bundle: nothing in them is run.
"""

from __future__ import annotations

from pathlib import Path

from mltr.errors import MltrError, UsageError

HUB_PREFIX = "hf-hub:"  #: of the name of a bundle on the Hub


def fetch(name: str, files: list[str]) -> Path:
    """Return a local folder with the named files of ``hf-hub:OWNER/NAME`` or ``...@REVISION``.

    Each is downloaded once; without a network, what was downloaded before is used. Raises
    `MltrError` if it isn't there or can't be reached.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repo_id, _, revision = name.removeprefix(HUB_PREFIX).partition("@")
    try:
        for file in files:
            path = Path(hf_hub_download(repo_id, file, revision=revision or None))
            revision = path.parent.name  # the other files of this very commit, come what may
    except HFValidationError as error:
        raise UsageError(f"{name}: expected {HUB_PREFIX}OWNER/NAME ({error})") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise MltrError(f"{name} can't be fetched: {first_line(error)}") from error
    return path.parent


def first_line(error: Exception) -> str:
    """Return an error's text in one line."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__

"""Uploads runs to the Hugging Face Hub, with their model cards and test figures."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from mltr.data.preprocess import Preprocess
from mltr.errors import MltrError, UsageError
from mltr.evaluation.figures import without_files
from mltr.export.card import write_card
from mltr.files.download import first_line, hub_errors, reason_of
from mltr.files.writing import write_json
from mltr.weights.bundle import Bundle, load_bundle
from mltr.weights.metadata import CONFIG_FILE, METRICS_FILE, WEIGHTS_FILE

CARD_FILE = "README.md"
OWN = "library_name: mltr"  #: a line of its own cards


def prepare(run: str | Path, folder: str | Path, repo_id: str, licence: str | None = None) -> None:
    """Write the files to upload into `folder`: weights, config, card, and test figures.

    Raises `UsageError` for a malformed name, and `MltrError` if `run` has no complete bundle.
    """
    run, folder = Path(run), Path(folder)
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UsageError(f"{repo_id!r} is not OWNER/NAME ({error})") from error
    if "/" not in repo_id:
        raise UsageError(f"{repo_id!r} is not OWNER/NAME: put the owner in front of it")
    written = (WEIGHTS_FILE, CONFIG_FILE, METRICS_FILE, CARD_FILE)
    held = [name for name in written if (folder / name).exists()]
    if held and not _is_from_a_push(folder):
        raise UsageError(
            f"{folder} holds {held[0]}, which isn't from a push: choose another folder"
        )
    if folder.resolve() == run.resolve():
        raise UsageError(f"{folder} is the folder to upload: write its copy into another")
    bundle = load_bundle(run)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(run / WEIGHTS_FILE, folder / WEIGHTS_FILE)
    if (run / METRICS_FILE).is_file():
        figures = json.loads((run / METRICS_FILE).read_text("utf-8"))
        write_json(folder / METRICS_FILE, without_files(figures))
    else:
        (folder / METRICS_FILE).unlink(missing_ok=True)  # of an earlier push
    extra = dict(bundle.config.get("extra") or {})
    if isinstance(extra.get("test"), dict):
        extra["test"] = without_files(extra["test"])
    write_json(folder / CONFIG_FILE, bundle.config | {"extra": extra} | timm_config(bundle))
    (folder / CARD_FILE).write_text(write_card(run, bundle, repo_id, licence), encoding="utf-8")


def _is_from_a_push(folder: Path) -> bool:
    card = folder / CARD_FILE
    return card.is_file() and OWN in card.read_text("utf-8", errors="replace").splitlines()


def timm_config(bundle: Bundle) -> dict[str, Any]:
    """Return the entries of config.json with which timm can load the network from the Hub, too.

    Empty if timm can't build the network, because its head isn't one of timm's.
    """
    import timm

    import mltr.timm_models  # noqa: F401  registers the variants with timm

    model = bundle.config["model"]
    if "head" in model["overrides"]:
        return {}
    names = {"image_size": "img_size", "drop_path": "drop_path_rate"}
    arguments = {names.get(key, key): value for key, value in model["overrides"].items()}
    architecture = model["name"].removeprefix("timm/")
    known = timm.get_pretrained_cfg(architecture)
    if known is None or (not known.fixed_input_size and model["name"].startswith("timm/")):
        arguments.pop("img_size", None)
    preprocess, count = bundle.preprocess, len(bundle.classes)
    side = preprocess.image_size
    own = {
        "input_size": [3, side, side],
        "mean": preprocess.mean,
        "std": preprocess.std,
        "interpolation": preprocess.interpolation,
        "crop_pct": preprocess.crop_pct or 1.0,
        "crop_mode": _crop_mode(preprocess),
        "num_classes": count,
    }
    layers = {} if known is None else known.to_dict()  # type: ignore[no-untyped-call]
    layers = {
        key: layers[key] for key in ("first_conv", "classifier", "pool_size") if key in layers
    }
    return {
        "architecture": architecture,
        "num_classes": count,
        "label_names": list(bundle.classes),
        "model_args": arguments,
        "pretrained_cfg": layers | own,
    }


def _crop_mode(preprocess: Preprocess) -> str:
    if preprocess.padding is not None:
        return "border"
    return "center" if preprocess.crop_pct else "squash"


def push_to_hub(
    run: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    licence: str | None = None,
    message: str = "Upload by mltr",
    token: str | None = None,
) -> str:
    """Upload a run or bundle with its card to ``OWNER/NAME`` on the Hub; return its URL.

    Creates the repository if necessary. `licence` is an identifier such as ``apache-2.0``; without
    it the card says that none was given. Raises `UsageError` for a malformed name, and `MltrError`
    if the run has no complete bundle, or the Hub refuses or can't be reached.
    """
    api = HfApi(token=token, library_name="mltr")
    with tempfile.TemporaryDirectory() as folder:
        prepare(run, folder, repo_id, licence)
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            if private and api.repo_info(repo_id).private is False:  # it was there before
                raise MltrError(
                    f"{repo_id} is public: make it private on the Hub, or leave --private out"
                )
            commit = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message)
        except hub_errors() as error:
            reason = reason_of(error)
            if isinstance(error, HfHubHTTPError):  # the Hub has answered
                reason = f"{first_line(error)}; check the name and the login (hf auth login)"
            raise MltrError(f"{repo_id} can't be uploaded: {reason}") from error
    return str(commit.commit_url).partition("/commit/")[0]

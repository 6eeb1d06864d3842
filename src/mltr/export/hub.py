"""`mltr push`: upload a run to the Hugging Face Hub, with its model card and test figures."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from mltr.data.preprocess import Preprocess
from mltr.errors import MltrError, UsageError
from mltr.export.card import write_card
from mltr.files.download import HUB_PREFIX, first_line
from mltr.files.writing import write_json
from mltr.weights.bundle import Bundle, load_bundle
from mltr.weights.metadata import CONFIG_FILE, WEIGHTS_FILE

CARD_FILE = "README.md"
METRICS_FILE = "metrics.json"


def prepare(run: str | Path, folder: str | Path, repo_id: str, licence: str | None = None) -> None:
    """Write the files to upload into `folder`: weights, config, card, and test figures.

    Raises `MltrError` if `run` has no complete bundle.
    """
    run, folder = Path(run), Path(folder)
    bundle = load_bundle(run)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (WEIGHTS_FILE, CONFIG_FILE, METRICS_FILE):
        if (run / name).is_file():
            shutil.copyfile(run / name, folder / name)
    write_json(folder / CONFIG_FILE, bundle.config | timm_config(bundle))
    (folder / CARD_FILE).write_text(write_card(run, bundle, repo_id, licence), encoding="utf-8")


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
            commit = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message)
        except HFValidationError as error:
            raise UsageError(f"{repo_id!r} is not OWNER/NAME ({error})") from error
        except (HfHubHTTPError, OSError) as error:
            raise MltrError(
                f"{repo_id} can't be uploaded: {first_line(error)}; check the name and the login "
                "(hf auth login)"
            ) from error
    return str(commit.commit_url).partition("/commit/")[0]


# -- the command -------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``mltr push``."""
    parser.add_argument("run", metavar="RUN", help="a training run, or a folder with weights")
    parser.add_argument("repo_id", metavar="OWNER/NAME", help="the repository on the Hub")
    parser.add_argument(
        "--licence", metavar="ID", help="licence of the weights, such as apache-2.0 or cc-by-nc-4.0"
    )
    parser.add_argument("--private", action="store_true", help="create the repository as private")
    parser.add_argument("--message", default="Upload by mltr", help="commit message")
    parser.add_argument(
        "--dry-run",
        metavar="FOLDER",
        help="write to this folder what would be uploaded, and upload nothing",
    )


def run(args: argparse.Namespace) -> int:
    """Upload a run, or with --dry-run only write the files."""
    if args.dry_run:
        prepare(args.run, args.dry_run, args.repo_id, args.licence)
        print(
            f"not uploaded to {args.repo_id}: the files are in {args.dry_run}; check its "
            f"{CARD_FILE}"
        )
        return 0
    address = push_to_hub(
        args.run,
        args.repo_id,
        private=args.private,
        licence=args.licence,
        message=args.message,
    )
    print(f"{address}\nanyone with access can load it with mltr.load('{HUB_PREFIX}{args.repo_id}')")
    return 0

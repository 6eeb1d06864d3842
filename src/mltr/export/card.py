"""The model card: what a network is, how it was trained, how good it is, and how to use it."""

from __future__ import annotations

import re
from dataclasses import fields
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from mltr.config.recipe import load_recipe, to_yaml
from mltr.config.schema import Config
from mltr.evaluation.figures import PROTOCOLS, report
from mltr.evaluation.open_run import scores_of
from mltr.files.download import HUB_PREFIX
from mltr.weights.bundle import Bundle
from mltr.weights.metadata import PREDICTIONS_FILE, RECIPE_FILE

MANY_CLASSES = 200  #: maximum number of classes that the card lists
PAPER = "[MlTr: Multi-label Classification with Transformer](https://arxiv.org/abs/2106.06195)"


def write_card(run: Path, bundle: Bundle, repo_id: str, licence: str | None) -> str:
    """Return the text of README.md for the Hub, from the run's own files.

    It contains no local paths but the names at their ends.
    """
    figures = None
    if (run / PREDICTIONS_FILE).is_file():
        figures = report(scores_of(run), thresholds=bundle.thresholds)
    config = load_recipe(run / RECIPE_FILE) if (run / RECIPE_FILE).is_file() else None
    if config is not None:
        _shorten_paths(config)
    data = "" if config is None else config.data.root or config.data.format
    name, network = repo_id.split("/")[-1], bundle.config["model"]["name"]
    results = _results(figures, data)
    metadata = ModelCardData(
        library_name="mltr",
        pipeline_tag="image-classification",
        license=licence,
        tags=["multi-label", "mltr", network],
        model_name=name if results else None,
        eval_results=results,
    )
    thresholds = bundle.thresholds or (0.5,) * len(bundle.classes)
    card = ModelCard.from_template(
        metadata,
        template_path=str(files("mltr") / "templates" / "card.md.j2"),
        name=name,
        address=f"{HUB_PREFIX}{repo_id}",
        network=network,
        family="a backbone of timm" if network.startswith("timm/") else f"after {PAPER}",
        parameters=sum(p.numel() for p in bundle.model.parameters()) / 1e6,
        image_size=bundle.preprocess.image_size,
        data=data,
        figures=figures,
        protocols=PROTOCOLS,
        classes=list(zip(bundle.classes, thresholds, strict=True)),
        many=MANY_CLASSES,
        has_own=bundle.thresholds is not None,
        origin=bundle.config.get("extra", {}).get("converted_from"),
        recipe="" if config is None else to_yaml(config),
        licence=licence,
        plain=_plain,
    )
    return f"{card}\n"


def _shorten_paths(config: Config) -> None:
    """Leave of each absolute path in a recipe only the name at its end; of a URL no secrets."""
    for section in (getattr(config, part.name) for part in fields(config)):
        for field in fields(section):
            value = getattr(section, field.name)
            if isinstance(value, str) and "://" in value:
                setattr(section, field.name, _without_secrets(value))
            elif isinstance(value, str):
                kind, colon, path = value.rpartition(":")  # as in cat:FILE
                if Path(path).is_absolute():
                    setattr(section, field.name, f"{kind}{colon}{Path(path).name}")


def _without_secrets(url: str) -> str:
    """Return a URL without user, password, query and fragment.

    >>> _without_secrets("https://me:secret@host:80/shards?token=1")
    'https://host:80/shards'
    """
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def _results(figures: dict[str, Any] | None, data: str) -> list[EvalResult] | None:
    if figures is None:
        return None
    return [
        EvalResult(
            task_type="image-classification",
            task_name="Multi-label image classification",
            dataset_type=re.sub(r"\W+", "-", data.lower()),
            dataset_name=data,
            dataset_split="test",
            metric_type=metric,
            metric_name=PROTOCOLS[metric],
            metric_value=round(figures[metric], 4),
        )
        for metric in ("map", "cf1", "of1")
    ]


def _plain(text: str) -> str:
    """Return untrusted text as one line of a card, with markup escaped."""
    return re.sub(r"([\\`*_{}\[\]<>|])", r"\\\1", " ".join(str(text).split()))

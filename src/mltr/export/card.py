"""The card of a model: what it is, what it was made from, how good it is, and how to use it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from mltr.config.recipe import load_recipe, to_yaml
from mltr.evaluation.evaluate import PROTOCOLS, report
from mltr.evaluation.open_run import scores_of
from mltr.files.download import HUB_PREFIX
from mltr.runs.folder import PREDICTIONS_FILE
from mltr.weights.bundle import Bundle

MANY_CLASSES = 200  #: beyond, the card names no single class
PAPER = "[MlTr: Multi-label Classification with Transformer](https://arxiv.org/abs/2106.06195)"


def write_card(run: Path, bundle: Bundle, repo_id: str, licence: str | None) -> str:
    """Return the text of README.md for the Hub, from the run's own files alone.

    Local paths are left out but for the name of the data's folder.
    """
    figures = None
    if (run / PREDICTIONS_FILE).is_file():
        figures = report(scores_of(run), thresholds=bundle.thresholds)
    config = load_recipe(run / "config.yaml") if (run / "config.yaml").is_file() else None
    if config is not None:
        config.data.root = Path(config.data.root).name
    data = "" if config is None else config.data.root or config.data.format
    sections = [
        _introduction(bundle, data),
        _usage(repo_id),
        _figures(figures, data),
        _classes(bundle, figures),
        _training(bundle, "" if config is None else to_yaml(config)),
        _limits(bundle, figures),
        f"## Licence\n\n{licence or 'None was given: ask the owner before you use it.'}",
    ]
    name = repo_id.split("/")[-1]
    metadata = _metadata(name, bundle, figures, data, licence)
    return f"---\n{metadata}\n---\n\n# {name}\n\n" + "\n\n".join(filter(None, sections)) + "\n"


def _metadata(
    name: str, bundle: Bundle, figures: dict[str, Any] | None, data: str, licence: str | None
) -> str:
    results = None
    if figures is not None:
        results = [
            EvalResult(
                task_type="image-classification", task_name="Multi-label image classification",
                dataset_type=re.sub(r"\W+", "-", data.lower()), dataset_name=data,
                dataset_split="test", metric_type=metric, metric_name=PROTOCOLS[metric],
                metric_value=round(figures[metric], 4),
            )
            for metric in ("map", "cf1", "of1")
        ]  # fmt: skip
    return ModelCardData(
        library_name="mltr", pipeline_tag="image-classification", license=licence,
        tags=["multi-label", "mltr", bundle.config["model"]["name"]],
        model_name=name if results else None, eval_results=results,
    ).to_yaml()  # fmt: skip


def _introduction(bundle: Bundle, data: str) -> str:
    name = bundle.config["model"]["name"]
    parameters = sum(p.numel() for p in bundle.model.parameters()) / 1e6
    family = "a backbone of timm" if name.startswith("timm/") else f"after {PAPER}"
    size = f"{parameters:.2f} M parameters, {bundle.preprocess.image_size} px"
    network = f"The network is `{name}`, {family}: {size}."
    source = f" Trained on {data}." if data else ""
    if not bundle.classes:
        return f"Weights to start a training from; they have no labels yet. {network}{source}"
    count = len(bundle.classes)
    return (
        f"Names what is in a picture: {count} labels, each with a probability of its own. "
        f"{network}{source}"
    )


def _usage(repo_id: str) -> str:
    return f"""## How to use it

```python
import mltr

tagger = mltr.load("{HUB_PREFIX}{repo_id}")
print(tagger("photo.jpg").labels)  # [(label, probability), ...], best first
```

```sh
mltr predict {HUB_PREFIX}{repo_id} photos/ --out tags.csv
mltr train photos --data.root my_photos --model.init {HUB_PREFIX}{repo_id}   # start from it
```"""


def _figures(figures: dict[str, Any] | None, data: str) -> str:
    if figures is None:
        return "## Figures\n\nNone: this network was not scored on any test images."
    rows = [
        f"| `{name}` | {100 * figures[name]:.2f} | {words} |"
        for name, words in PROTOCOLS.items()
        if name in figures
    ]
    return "\n".join(
        [
            "## Figures",
            "",
            f"On {figures['images']} test images of {data}, scored once; threshold "
            f"{figures['threshold']:g} where one is needed.",
            "",
            "| metric | % | protocol |",
            "| --- | --- | --- |",
            *rows,
        ]
    )


def _classes(bundle: Bundle, figures: dict[str, Any] | None) -> str:
    if not bundle.classes:
        return ""
    told = "its own, per class" if bundle.thresholds else "0.5 for every class"
    title = f"## Labels\n\nA label is given at or above its threshold ({told})."
    if len(bundle.classes) > MANY_CLASSES:
        return f"{title} The {len(bundle.classes)} names stand in config.json."
    thresholds = bundle.thresholds or (0.5,) * len(bundle.classes)
    lines = [title, "", "| label | threshold | average precision % | test images with it |"]
    lines.append("| --- | --- | --- | --- |")
    for name, threshold in zip(bundle.classes, thresholds, strict=True):
        found = (figures or {}).get("per_class", {}).get(name, {})
        support = found.get("support")
        precision = f"{100 * found['ap']:.1f}" if support else "-"
        shown = "-" if support is None else f"{support:.0f}"
        lines.append(f"| {_plain(name)} | {threshold:.3g} | {precision} | {shown} |")
    return "\n".join(lines)


def _plain(name: str) -> str:
    """A label as a cell of a table: nothing in it is markup."""
    return re.sub(r"([\\`*_{}\[\]<>|])", r"\\\1", " ".join(name.split()))


def _training(bundle: Bundle, recipe: str) -> str:
    extra = bundle.config.get("extra", {})
    origin = extra.get("converted_from")
    if origin:
        return f"## Where it comes from\n\nConverted from {_plain(str(origin))}."
    if not recipe:
        return ""
    return (
        "## Training\n\n<details><summary>The whole recipe</summary>\n\n"
        f"```yaml\n{recipe}```\n\n</details>"
    )


def _limits(bundle: Bundle, figures: dict[str, Any] | None) -> str:
    if not bundle.classes:
        return ""
    lines = [
        "## Limits",
        "",
        "It knows the labels above and no others, and its figures hold for pictures like the test "
        "images. Check it on your own before you rely on it: `mltr evaluate`.",
    ]
    if figures and figures["classes_without_positives"]:
        names = ", ".join(map(_plain, figures["classes_without_positives"]))
        lines += ["", f"No test image had these, so nothing is known of them: {names}."]
    return "\n".join(lines)

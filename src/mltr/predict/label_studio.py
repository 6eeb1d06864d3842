"""Tasks for Label Studio, with what a network says as predictions to correct.

The format is that of its page "Import pre-annotated data into Label Studio".
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from mltr.errors import MltrError

if TYPE_CHECKING:
    from mltr.predict.results import Row

IMAGE, LABELS = "image", "labels"  #: names of the image and of the choices in the setup
ROOT_VARIABLE = "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT"  #: Label Studio's own; / unless set
SETUP_SUFFIX = ".xml"  #: of the setup, behind the name of the tasks


def make_task(image: Path, labels: Sequence[tuple[str, float]], model: str) -> dict[str, Any]:
    """Return the task of an image file: its address, and the labels that `model` predicts.

    Raises `MltrError` for a file that Label Studio may not open.
    """
    task: dict[str, Any] = {"data": {IMAGE: address_of(image)}}
    prediction: dict[str, Any] = {"model_version": model, "result": []}
    if labels:
        prediction["score"] = round(sum(prob for _, prob in labels) / len(labels), 6)
        prediction["result"].append(
            {
                "from_name": LABELS,
                "to_name": IMAGE,
                "type": "choices",
                "value": {"choices": [name for name, _ in labels]},
            }
        )
    return task | {"predictions": [prediction]}


def address_of(image: Path) -> str:
    """Return where Label Studio finds a local file, relative to the folder that it may open."""
    root = Path(os.environ.get(ROOT_VARIABLE) or "/").absolute()
    path = image.absolute()
    if not path.is_relative_to(root):
        raise MltrError(f"{path} isn't in {root}, which {ROOT_VARIABLE} names: set it to a folder "
                        "above your photos, here as for Label Studio")  # fmt: skip
    return f"/data/local-files/?d={quote(path.relative_to(root).as_posix())}"


def labelling_setup(classes: Sequence[str]) -> str:
    """Return the labelling interface, XML, in which each image can have any of the classes."""
    choices = "\n".join(f"    <Choice value={quoteattr(name)}/>" for name in classes)
    return (
        f'<View>\n  <Image name="{IMAGE}" value="${IMAGE}"/>\n'
        f'  <Choices name="{LABELS}" toName="{IMAGE}" choice="multiple">\n{choices}\n'
        "  </Choices>\n</View>\n"
    )


def write_tasks(rows: Iterable[Row], model: str, file: TextIO) -> None:
    """Write a JSON array of tasks, one a line; images that can't be read are left out."""
    separator = "[\n"
    for row in rows:
        if row.probs is not None:
            task = make_task(row.file("Label Studio"), row.labels, model)
            file.write(separator + json.dumps(task, ensure_ascii=False))
            separator = ",\n"
    file.write("\n]\n" if separator.startswith(",") else "[]\n")

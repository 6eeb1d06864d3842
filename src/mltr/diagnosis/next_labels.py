"""`mltr next`: choose the photos whose labels would teach a run most, and add the answers."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mltr.errors import MltrError, UsageError, counted
from mltr.files.text import is_utf8
from mltr.predict.command import add_places, add_running, run_like

if TYPE_CHECKING:
    from mltr.data.records import Record, Splits
    from mltr.predict.features import Scorer
    from mltr.predict.predictor import Floats, Predictor
    from mltr.predict.results import Row

log = logging.getLogger(__name__)

SHEET, TASKS, SETUP = ".html", ".label-studio.json", ".label-studio.xml"  #: beside the table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``mltr next``."""
    add_places(parser, "a training run", nargs="*")
    add = parser.add_argument
    add("--count", type=int, default=200, metavar="N", help="photos to choose (default: 200)")
    add(
        "--out",
        metavar="FILE",
        required=True,
        help="CSV table of the photos with the run's guesses, to correct; a contact sheet and "
        "tasks for Label Studio are written beside it",
    )
    add(
        "--answers",
        metavar="FILE",
        help="instead of choosing, write all labels to --out: the run's own, and those in this "
        "table or Label Studio export",
    )
    add_running(parser, "predict every image again, and replace the table")


def run(args: argparse.Namespace) -> int:
    """Choose photos; 1 if some can't be read, else 0. With --answers, write a table that trains."""
    from mltr.diagnosis.corrections import class_list_of

    out = Path(args.out)
    if out.suffix.lower() != ".csv":
        raise UsageError(f"--out {out}: the name must end in .csv")
    beside = [class_list_of(out)] if args.answers else _beside(out)
    there = [path for path in (out, *beside) if path.exists()]
    if there and not args.overwrite:
        raise UsageError(
            f"{there[0]} exists, and may be what you wrote: choose another --out, or use "
            "--overwrite"
        )
    if args.answers:
        if len(args.paths) > 1:
            raise UsageError("--answers takes one folder of photos at most")
        return _add_answers(args)
    if not args.paths:
        raise UsageError("give the photos to choose from: mltr next RUN PHOTOS --out next.csv")
    if args.count < 1:
        raise UsageError(f"--count {args.count} must be at least 1")
    choice = _Choice(args)
    return run_like(args, choice.load, choice.write)


def _beside(out: Path) -> list[Path]:
    """Return the files that are written beside the table of chosen photos."""
    return [out.with_suffix(suffix) for suffix in (SHEET, TASKS, SETUP)]


class _Choice:
    """The network, loaded when the images have been found, and the files that it leads to."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args

    def load(self, path: str, device: str | None, batch_size: int) -> Predictor:
        from mltr.predict.features import as_scorer, open_bundle

        self.known = _own_images(path)
        self.bundle, chosen = open_bundle(path, device)
        self.scorer: Scorer = as_scorer(self.bundle, chosen, batch_size)
        return self.scorer

    def write(self, rows: Iterable[Row]) -> None:
        """Choose among the photos without labels, and write the table, sheet and tasks."""
        import numpy as np

        from mltr.data.hierarchy import ancestors, implied
        from mltr.diagnosis.choose import choose
        from mltr.predict.predictor import fill_thresholds

        paths, found = [], []
        for row in rows:
            path = row.file("a table of labels").resolve()
            if not is_utf8(path):
                log.warning("%s: a table in UTF-8 can't name it; it is left out", row.name)
            elif row.probs is not None and path not in self.known:
                paths.append(path)
                found.append(row.probs)
        if not paths:
            raise UsageError("none of these photos can be read and has no labels yet: give others")
        vectors = np.stack(found)
        features, probs = vectors[:, : self.scorer.width], vectors[:, self.scorer.width :]
        hierarchy = self.bundle.config.get("hierarchy", {})
        probs = implied(probs, ancestors(self.bundle.classes, hierarchy))
        thresholds = fill_thresholds(self.bundle.thresholds, len(self.bundle.classes))
        count = self.args.count
        spare = count // 4 + 10  # in the place of pictures that are there twice
        chosen = choose(probs, features, count + spare, thresholds)
        once = _first_copies([paths[row] for row in chosen])
        chosen = chosen[once][:count]
        self._write_files([paths[row] for row in chosen], probs[chosen], thresholds)

    def _write_files(self, paths: Sequence[Path], probs: Floats, thresholds: Floats) -> None:
        """Write what shows the photos first, and the table, which says that all is there, last."""
        from mltr.diagnosis.corrections import label_header, write_csv
        from mltr.files.writing import text_writer, write_atomically, write_json
        from mltr.pictures.gallery import write_page
        from mltr.predict.label_studio import labelling_setup, make_task
        from mltr.predict.predictor import Prediction
        from mltr.predict.progress import tell
        from mltr.predict.results import SHEET_LABELS, make_tile

        classes, out = self.bundle.classes, Path(self.args.out)
        hierarchy = self.bundle.config.get("hierarchy", {})
        guesses = [Prediction(row, classes, thresholds, hierarchy).labels for row in probs]
        numbered = list(enumerate(zip(paths, guesses, strict=True), start=1))
        tiles = [
            make_tile(path, labels[:SHEET_LABELS], f"{number}. {path.name}")
            for number, (path, labels) in numbered
        ]
        write_page(
            out.with_suffix(SHEET),
            "What to label next",
            {"photos": str(len(paths)), "labels guessed": str(sum(map(len, guesses)))},
            [tile for tile in tiles if tile is not None],
            intro=f"In the order of {out.name}, which holds these guesses.",
        )
        tasks = [
            make_task(path, labels, Path(self.args.bundle).name) for _, (path, labels) in numbered
        ]
        write_json(out.with_suffix(TASKS), tasks)
        write_atomically(out.with_suffix(SETUP), text_writer(labelling_setup(classes)))
        rows = [
            [path, *(int(name in dict(labels)) for name in classes)]
            for _, (path, labels) in numbered
        ]
        write_csv(out, [label_header(classes), *rows])
        beside = ", ".join(path.name for path in _beside(out))
        tell(f"{counted(len(rows), 'photo')} to label: {out}; beside it {beside}")


def _first_copies(paths: Sequence[Path]) -> list[int]:
    """Return the places of images that show another picture than those before them."""
    import numpy as np

    from mltr.data.duplicates import look_at, similar_groups
    from mltr.data.records import Record, Split, Splits

    none = np.zeros(0, np.int8)
    records = [Record(path, str(place), none) for place, path in enumerate(paths)]
    groups = similar_groups(look_at(Splits(Split((), records), Split((), []), Split((), []))))
    repeated = {int(image.name) for group in groups for image in group[1:]}
    return [place for place in range(len(paths)) if place not in repeated]


def _own_images(run: str) -> set[Path]:
    """Return the photos that a run has labels of; none, with a warning, if they can't be had."""
    from mltr.data.records import original_of

    try:
        splits = _open_own(run)
    except MltrError as error:
        log.warning("no photo is known to have labels already: %s", error)
        return set()
    files = (original_of(record.image) for split in splits for record in split)
    return {image.resolve() for image in files if isinstance(image, Path)}


def _open_own(run: str) -> Splits:
    """Return the run's own photos, as it divides them; missing ones don't matter."""
    from mltr.data.sources import open_splits
    from mltr.diagnosis.audit import recipe_of
    from mltr.evaluation.open_run import as_trained

    splits = open_splits(replace(recipe_of(run).data, max_broken=1.0))
    return as_trained(Path(run), splits, "train")


# -- answers -----------------------------------------------------------------------------------


def _add_answers(args: argparse.Namespace) -> int:
    """Write the labels of the run's photos and of those answered as one table that trains."""
    from mltr.diagnosis.audit import recipe_of, training_command
    from mltr.diagnosis.corrections import write_labels

    splits = _open_own(args.bundle)
    merge_case = recipe_of(args.bundle).data.merge_case is True
    answered = _read_answers(Path(args.answers), args.paths, splits, merge_case)
    train = replace(splits.train, records=[*splits.train, *answered])
    out = write_labels(Path(args.out), replace(splits, train=train))
    if out is None:
        raise MltrError("the images of this run are not files, so no table can name them")
    print(
        f"{counted(len(answered), 'photo')} added to the {len(splits.train):,} for training: {out}"
    )
    print(f"To train on them:\n  {training_command(args.bundle, out)}")
    return 0


def _read_answers(
    path: Path, folders: Sequence[str], splits: Splits, merge_case: bool
) -> list[Record]:
    """Return the photos of a filled table or an export; those without any answer are left out."""
    from mltr.data.detect import detect_format
    from mltr.data.readers.label_studio import read_label_studio
    from mltr.data.readers.table import read_csv
    from mltr.data.records import same_image

    if not path.is_file():
        raise MltrError(f"{path}: no such table or export")
    folder, classes = folders[0] if folders else "", splits.train.classes
    if detect_format(path) == "label_studio":
        found = read_label_studio(path, folder, classes, merge_case=merge_case)
    else:  # the table that was to be filled, where 0 means absent
        found = read_csv(path, folder, classes, absent=0, merge_case=merge_case)
    if missing := found.missing():
        raise MltrError(f"{path}: no such photo: {missing[0].name}")
    known = {same_image(record) for split in splits for record in split}
    for record in found:
        if same_image(record) in known:
            raise MltrError(
                f"{path}: the run has labels of {record.name} already; `mltr audit` corrects those"
            )
    answered = [record for record in found if (record.labels >= 0).any()]
    if not answered:
        raise MltrError(f"{path}: no photo has an answer")
    return answered

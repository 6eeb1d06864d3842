"""Goes through any number of photos with a network, for `mltr predict` and commands like it."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from mltr.errors import BrokenImage, UsageError, counted, did_you_mean
from mltr.files.locks import locked_folder, locked_output
from mltr.files.writing import check_target, make_folder, text_writer, write_atomically
from mltr.predict.engines import Choosing
from mltr.predict.inputs import Inputs, Owners, Survey, exists
from mltr.predict.interruptions import Interruptions
from mltr.predict.journal import SUFFIX, Journal, Stamp
from mltr.predict.label_studio import SETUP_SUFFIX, labelling_setup
from mltr.predict.options import FORMATS, NAMINGS, parse_views
from mltr.predict.predictor import (
    Found,
    Opened,
    Prediction,
    Predictor,
    predict_paths,
)
from mltr.predict.progress import tell, with_progress
from mltr.predict.results import (
    Row,
    Selection,
    Vocabulary,
    errors_path,
    with_errors,
    with_tiles,
    write_rows,
    write_sheet,
)
from mltr.predict.sidecars import (
    Outcome,
    Sidecars,
    TextSidecars,
    XmpSidecars,
    claim,
    with_sidecars,
)
from mltr.predict.thresholds import parse_thresholds, set_thresholds

if TYPE_CHECKING:
    from mltr.data.records import PackedImage
    from mltr.pictures.gallery import Tile
    from mltr.predict.on_ray import Answer, Cluster

Load = Callable[[str, str | None, int], Predictor]  #: a network by path, device and batch size

SHEET_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
PATH_WIDTH = 48  #: longest path that a table aligns
CATEGORY = "category:"  #: before the name of one, where names of classes stand too
TOLD_ERRORS = 20  #: images that can't be read are named up to so many
SURVEY_WAIT_S = 2.0  #: for the number of images, before the first is read


@dataclass
class _Tally:
    """What the summary at the end tells."""

    images: int = 0
    known: int = 0  #: from the journal
    tagged: int = 0  #: whose sidecars were there, and which were therefore not opened
    broken: int = 0
    errors: list[str] = field(default_factory=list)  #: the first few
    sidecars: Outcome = field(default_factory=Outcome)
    tiles: list[Tile] = field(default_factory=list)
    keeps_out: bool = False  #: whether an interrupted run writes nothing
    is_written: bool = False
    interruption: BaseException | None = None


def run_by(
    args: argparse.Namespace,
    load_network: Load,
    write: Callable[[Iterable[Row]], object] | None = None,
) -> int:
    """Predict for the images of `args` with the network that `load_network` returns.

    Returns 1 if some can't be read, or their sidecars written, else 0. `write` gets the rows in
    place of `mltr predict`'s own output.
    """
    _check_arguments(args)
    out, _ = _choose_output(args)
    kinds = _choose_sidecars(args)
    targets = [target for target in (out, args.sheet) if target]
    inputs = Inputs(args.paths, targets, bool(kinds))
    with contextlib.ExitStack() as stack:
        if out is not None:
            make_folder(out.parent)
            stack.enter_context(locked_output(out))
        for folder in _libraries(args.paths) if kinds else []:
            stack.enter_context(locked_folder(folder))
        survey = Survey(inputs)
        survey.check(SURVEY_WAIT_S)
        device = "cpu" if args.engine == "ray" else args.device  # whose replicas have that
        predictor = load_network(args.bundle, device, args.batch_size)
        predictor.views = parse_views(args.views)
        survey.check(0)
        if args.engine != "ray":
            return tag(predictor, inputs, survey, args, write=write)
        from mltr.predict.on_ray import on_cluster

        cluster = stack.enter_context(
            on_cluster(
                args.bundle, predictor, args.device, args.replicas, args.workers, out is not None
            )
        )
        return tag(predictor, inputs, survey, args, cluster)


def _libraries(arguments: Sequence[str]) -> list[Path]:
    """Return the folders in which sidecars can be written, as far as the arguments name them."""
    named = [Path(argument) for argument in arguments if exists(argument)]
    folders = {(path if path.is_dir() else path.parent).resolve() for path in named}
    # Where it can't be made, a lock is not needed either.
    return sorted(folder for folder in folders if os.access(folder, os.W_OK))


def tag(
    predictor: Predictor,
    inputs: Inputs,
    survey: Survey,
    args: argparse.Namespace,
    cluster: Cluster | None = None,
    write: Callable[[Iterable[Row]], object] | None = None,
) -> int:
    """Predict for all inputs with a network that is loaded, here or on a cluster; see `run`."""
    out, form = _choose_output(args)
    chosen = choose_classes(predictor.classes, args.only, args.exclude, predictor.categories)
    kinds = _choose_sidecars(args, predictor.hierarchy, [predictor.classes[k] for k in chosen])
    vocabulary = _vocabulary(predictor, chosen, Path(args.bundle).name)
    if args.threshold is not None:
        set_thresholds(predictor.thresholds, parse_thresholds(args.threshold), predictor.categories)
    selection = Selection(tuple(chosen), args.top, fills_top=args.threshold is None)
    tally = _Tally(keeps_out=out is not None and (out.exists() or write is not None))
    if isinstance(predictor.network, Choosing):
        predictor.network.images_left = lambda: survey.total and survey.total - tally.images
    with contextlib.ExitStack() as stack:
        journal = None
        if out is not None:
            journal = stack.enter_context(_open_journal(out, predictor, survey, args.overwrite))
        interruptions = Interruptions(writes_files=out is not None or bool(kinds))
        stack.enter_context(interruptions.taken())
        source = _Source(
            predictor, selection, journal, kinds, args.workers, tally, cluster, interruptions
        )
        own_rows = stack.enter_context(contextlib.closing(source.rows(inputs)))
        rows = with_sidecars(own_rows, kinds, source.owners, tally.sidecars) if kinds else own_rows
        if out is not None:
            rows = with_errors(rows, errors_path(out))
        if args.sheet:
            rows = with_tiles(rows, tally.tiles)
        if out is not None or form != "table":
            rows = with_progress(rows, lambda: survey.total)
        width = min(PATH_WIDTH, survey.longest_name) if survey.total else PATH_WIDTH
        try:
            if write is None:
                write_rows(rows, vocabulary, out, form, width)
            else:
                write(rows)
            tally.is_written = True
        except (KeyboardInterrupt, SystemExit) as error:
            tally.interruption = error
    if journal is not None and journal.damaged:
        tell(
            f"{journal.path} is damaged: its records of {journal.damaged:,} images were discarded, "
            "and these images predicted again"
        )
    if form == "label-studio" and out is not None and tally.is_written:
        setup = labelling_setup(vocabulary.classes)
        write_atomically(out.with_name(out.name + SETUP_SUFFIX), text_writer(setup))
    if tally.tiles:
        write_sheet(args.sheet, tally.tiles)
    _tell_summary(tally, out)
    if tally.interruption is not None:
        raise tally.interruption
    return 1 if tally.broken or tally.sidecars.failed else 0


def _vocabulary(predictor: Predictor, chosen: Sequence[int], model: str) -> Vocabulary:
    classes = [predictor.classes[index] for index in chosen]
    kinds = predictor.categories
    categories = {predictor.classes[k]: kinds[k] for k in chosen} if kinds else {}
    return Vocabulary(classes, categories, model)


def _check_arguments(args: argparse.Namespace) -> None:
    if args.threshold is not None:
        parse_thresholds(args.threshold)
    parse_views(args.views)
    for name in ("top", "batch_size", "workers", "replicas"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} {value} must be at least 1")
    if args.replicas is not None and args.engine != "ray":
        raise UsageError("--replicas needs --engine ray")
    if args.xmp_naming != NAMINGS[0] and not args.xmp:
        raise UsageError("--xmp-naming needs --xmp")
    if args.sheet:
        args.sheet = check_sheet(args.sheet, args.follow_links)


def check_sheet(path: str, follow_links: bool = False) -> Path:
    """Return where a contact sheet goes; raises `UsageError` for a name that no picture has."""
    if Path(path).suffix.lower() not in SHEET_SUFFIXES:
        raise UsageError(f"--sheet {path}: the name must end in {', '.join(SHEET_SUFFIXES)}")
    return check_target(path, follow_links)


def _choose_output(args: argparse.Namespace) -> tuple[Path | None, str]:
    """Return where the results go (None: stdout) and their format.

    Raises `UsageError` for options that don't fit, `MltrError` if there is no place for a file.
    """
    if args.json and (args.out or args.format):
        raise UsageError("--json FILE means --format jsonl --out FILE: give only one of them")
    target = args.json or args.out
    out = check_target(target, args.follow_links) if target and target != "-" else None
    form = "jsonl" if args.json else args.format
    if form is None and out is not None:
        form = FORMATS.get(out.suffix.lower())
        if form is None:
            raise UsageError(
                f"--out {out}: the name must end in {', '.join(FORMATS)}, unless --format is given"
            )
    if form is None:
        form = "table" if sys.stdout is not None and sys.stdout.isatty() else "jsonl"
    if form == "parquet" and out is None:
        raise UsageError("--format parquet needs --out FILE")
    return out, form


def _choose_sidecars(
    args: argparse.Namespace,
    hierarchy: Mapping[str, str] | None = None,
    judged: Sequence[str] = (),
) -> list[Sidecars]:
    kinds: list[Sidecars] = []
    if args.sidecars:
        kinds.append(TextSidecars(args.overwrite, args.follow_links))
    if args.xmp:
        if importlib.util.find_spec("lxml") is None:
            raise UsageError("--xmp needs `pip install 'mltr[xmp]'`")
        own = (args.xmp_naming, args.overwrite, args.follow_links, hierarchy or {}, judged)
        kinds.append(XmpSidecars(*own))
    return kinds


def choose_classes(
    classes: Sequence[str],
    only: list[str],
    exclude: list[str],
    categories: Sequence[str] | None = None,
) -> list[int]:
    """Return the indices of the classes wanted; an entry is a name, or several with commas.

    ``category:NAME`` stands for all of that category, of `categories` [K]. Raises `UsageError` for
    an unknown name, and if nothing is left.
    """
    known: dict[str, set[str]] = {}
    for name, kind in zip(classes, categories or (), strict=False):
        known.setdefault(f"{CATEGORY}{kind}", set()).add(name)
    known |= {name: {name} for name in classes}
    wanted = _known_names(only, known, len(classes)) or set(classes)
    unwanted = _known_names(exclude, known, len(classes))
    chosen = [k for k, name in enumerate(classes) if name in wanted and name not in unwanted]
    if not chosen:
        raise UsageError("--only and --exclude leave no classes")
    return chosen


def _known_names(entries: list[str], known: Mapping[str, set[str]], count: int) -> set[str]:
    names: set[str] = set()
    for entry in entries:
        # A class may have a comma in its own name, as many of ImageNet's have.
        for name in [entry] if entry in known else map(str.strip, entry.split(",")):
            if name not in known:
                hint = did_you_mean(name, known)
                raise UsageError(f"no class {name!r} among the {count} of this run{hint}")
            names |= known[name]
    return names


def _open_journal(out: Path, predictor: Predictor, survey: Survey, anew: bool) -> Journal:
    """Open the journal beside the output, and say what is done already."""
    journal = Journal(out.with_name(out.name + SUFFIX), predictor.fingerprint, anew)
    count = journal.count()
    if journal.is_of_other_model:
        tell(f"{out} is from another model: starting from the beginning")
    elif count:
        done = (
            f"{count:,}"
            if survey.total is None
            else f"{min(count, survey.total):,} of {survey.total:,}"
        )
        tell(f"continuing: {done} images are done")
    return journal


@dataclass(eq=False)
class _Image:
    source: Path | PackedImage
    stamp: Stamp | None = None  #: for the journal
    is_known: bool = False  #: from it


@dataclass
class _Source:
    """Where rows come from: the journal, or the network."""

    predictor: Predictor
    selection: Selection
    journal: Journal | None
    kinds: Sequence[Sidecars]
    workers: int | None
    tally: _Tally
    cluster: Cluster | None
    interruptions: Interruptions
    owners: Owners = field(default_factory=Owners)  #: of sidecars

    def rows(self, sources: Iterable[Path | PackedImage]) -> Generator[Row]:
        """Yield a row for each image; ends early, with what is done, when interrupted."""
        try:
            with contextlib.closing(self._predict(map(_Image, sources))) as predictions:
                yield from self._rows(predictions)
        except (KeyboardInterrupt, SystemExit) as error:
            self.tally.interruption = error
            if self.tally.keeps_out:
                raise

    def _rows(self, predictions: Iterator[tuple[_Image, Found]]) -> Iterator[Row]:
        tally = self.tally
        while True:
            with self.interruptions.raised():
                pair = next(predictions, None)
            if pair is None:
                return
            image, found = pair
            if found is None:
                self._claim(image.source)
                continue
            if self.journal is not None and image.stamp and isinstance(found, Prediction):
                self.journal.add(image.stamp, found.probs)
            row = self.selection.row(image.source, found)
            tally.images += 1
            tally.known += image.is_known
            if row.error:
                tally.broken += 1
                tally.errors += [row.error] if tally.broken <= TOLD_ERRORS else []
            yield row

    def _claim(self, source: Path | PackedImage) -> None:
        """Count an image that has sidecars already, unless they are those of another."""
        assert isinstance(source, Path)  # `Inputs` lets no others through
        problems = [why for kind in self.kinds if (why := claim(kind, source, self.owners))]
        self.tally.sidecars.fail(problems)
        self.tally.tagged += not problems

    def _predict(self, images: Iterator[_Image]) -> Generator[tuple[_Image, Found]]:
        """Yield what is known or predicted of each image; None if there was nothing to do."""
        if self.cluster is None:
            yield from predict_paths(self.predictor, images, self.workers, read=self._read)
            return
        for part, answers in self.cluster.predict(self._parts(images, self.cluster.part_size)):
            new = iter(answers)
            for image, is_known, found in part:
                if not is_known:
                    found, image.stamp = self._unpack(next(new))
                yield image, found

    def _parts(
        self, images: Iterator[_Image], size: int
    ) -> Iterator[tuple[list[tuple[_Image, bool, Found]], list[Path | PackedImage]]]:
        """Yield some images with what is known of them, and those of which nothing is."""
        while part := [(image, *self._look_up(image)) for image in islice(images, size)]:
            yield part, [image.source for image, is_known, _ in part if not is_known]

    def _unpack(self, answer: Answer) -> tuple[Found, Stamp | None]:
        if answer.probs is None:
            return BrokenImage(answer.error), None
        return self.predictor.to_prediction(answer.probs), answer.stamp

    def _read(self, image: _Image) -> Opened:
        """Open an image, or return what is known of it; None if there is nothing to do."""
        is_known, found = self._look_up(image)
        return found if is_known else self.predictor.look(image.source)

    def _look_up(self, image: _Image) -> tuple[bool, Found]:
        """Tell whether an image needs no network, and what is known of it, if anything."""
        source = image.source
        if self.journal is None:
            beside = [isinstance(source, Path) and kind.is_done(source) for kind in self.kinds]
            return bool(beside) and all(beside), None
        if self.cluster is None:
            image.stamp, probs = self.journal.find(source)
        else:  # whoever opens the file looks at its content
            probs = self.journal.find_unchanged(source)
        if probs is None:
            return False, None
        image.is_known = True
        return True, self.predictor.to_prediction(probs)


def _tell_summary(tally: _Tally, out: Path | None) -> None:
    """Say on stderr what was done where, and name the images that can't be read."""
    lines = []
    images = counted(tally.images, "image")
    if tally.known:
        images += f" ({tally.known:,} of them done before)"
    if tally.interruption is not None:
        kept = "the results so far are written"
        if out is not None and not tally.is_written:
            kept = f"{out} is unchanged" if out.exists() else f"{out} is not written"
        again = "; repeat the command to continue" if out else ""
        lines.append(f"interrupted after {images}; {kept}{again}")
    elif out is not None:
        lines.append(f"{images} -> {out}")
    if tally.tagged:
        lines.append(
            f"skipped, as they have sidecars already: {counted(tally.tagged, 'image')}; "
            "--overwrite writes them again"
        )
    sidecars = tally.sidecars
    if sidecars.kept:
        lines.append(
            f"kept as they were: {counted(sidecars.kept, 'sidecar')} ({sidecars.first_kept})"
        )
    if tally.broken:
        of = counted(tally.images, "image")
        lines.append(f"{tally.broken:,} of {of} can't be read:")
        lines += _first(tally.errors, tally.broken, out)
    if sidecars.failed:
        lines.append(f"not written: {counted(sidecars.failed, 'sidecar')}:")
        lines += _first(sidecars.failures, sidecars.failed, out)
    for line in lines:
        tell(line)


def _first(reasons: Sequence[str], count: int, out: Path | None) -> list[str]:
    """Return lines with the first of so many reasons, and where the others are."""
    lines = [f"  {reason}" for reason in reasons]
    if count > len(reasons):
        where = f": see {errors_path(out)}" if out else ""
        lines.append(f"  and {count - len(reasons):,} more{where}")
    return lines

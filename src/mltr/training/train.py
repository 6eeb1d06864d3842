"""`mltr train`: train a network from a recipe; the run folder holds a bundle and test figures."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from mltr.config.schema import Config
from mltr.errors import UsageError
from mltr.machine.launch import launched_processes, launched_rank

if TYPE_CHECKING:
    from mltr.data.records import Splits
    from mltr.runs.folder import RunFolder
    from mltr.training.objective import Objective
    from mltr.training.run import Run

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments; any field of a recipe is one more."""
    parser.add_argument(
        "recipe", metavar="RECIPE", help="a name such as scenes_nano, or a YAML file"
    )
    parser.add_argument(
        "photos", metavar="PHOTOS", nargs="?", help="the photos: short for --data.root PHOTOS"
    )
    parser.add_argument("--out", metavar="RUN", help="the run folder (default: runs/NAME-TIME)")
    parser.add_argument("--resume", action="store_true", help="resume an interrupted run")
    parser.add_argument(
        "--auto-resume",
        action="store_true",
        help="resume if there is a checkpoint, else start; for jobs that are restarted",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing run")
    parser.add_argument(
        "--json", metavar="FILE", help="write the test figures as JSON (- for stdout)"
    )
    parser.epilog = (
        "Any field of the recipe can be changed: --data.root DIR --model.name timm/resnet18 "
        "--train.epochs 10 --train.seed 1 ..."
    )


def run(args: argparse.Namespace, overrides: Sequence[str] = ()) -> int:
    """Train by a recipe, in the folder that the arguments name."""
    from mltr.config.recipe import find_recipe, load_recipe, with_photos
    from mltr.files.locks import locked_out
    from mltr.files.writing import write_figures
    from mltr.runs.folder import RunFolder, check_recipe, default_folder, open_run

    config = load_recipe(find_recipe(args.recipe), with_photos(args.photos, overrides))
    if args.auto_resume and (args.resume or args.overwrite):
        raise UsageError("--auto-resume can't be combined with --resume or --overwrite")
    if not args.out and (args.auto_resume or launched_processes() > 1):
        raise UsageError(
            "give the run folder with --out: all processes and restarts need the same one"
        )
    out = Path(args.out) if args.out else default_folder(args.recipe)
    folder = RunFolder(out)
    if args.auto_resume and folder.metrics.is_file():
        check_recipe(folder, config)
        log.info("%s is already finished", out)
        figures = json.loads(folder.metrics.read_text())
    else:
        # One lock for all processes of a training.
        with locked_out(out) if launched_rank() == 0 else nullcontext():
            resume, overwrite = args.resume, args.overwrite
            if args.auto_resume:
                resume, overwrite = folder.holds_a_state(), folder.has_only_begun()
            folder = open_run(out, config, resume=resume, overwrite=overwrite)
            figures = train(config, folder, resume=resume, quiet=args.json == "-")
    if args.json and launched_rank() == 0:
        write_figures(args.json, figures)
    return 0


def train(
    config: Config, folder: RunFolder, *, resume: bool = False, quiet: bool = False
) -> dict[str, Any]:
    """Train, choose the best epoch on the validation images, score the test images once.

    Returns the test figures, which are also in the folder's metrics.json. Raises `MltrError` for
    unusable data, classes that all training images have or none, a loss that stays bad, or too
    many broken images; after saving, where Ctrl-C was pressed, `KeyboardInterrupt`, and on SIGTERM
    `SystemExit` with code 75.
    """
    from mltr.data.sources import check_classes, open_splits, open_unlabelled

    began = perf_counter()
    splits = open_splits(config.data)
    check_classes(config.data, splits.train)
    if config.data.unlabelled_root:
        splits.unlabelled = open_unlabelled(config.data, splits)
    return train_on(config, splits, folder, resume=resume, quiet=quiet, began=began)


def train_on(
    config: Config,
    splits: Splits,
    folder: RunFolder,
    *,
    resume: bool = False,
    quiet: bool = False,
    began: float | None = None,
) -> dict[str, Any]:
    """Do what `train` does, on splits that are open already.

    `began` is when that was begun, by `perf_counter`; `train.minutes` counts from then on.
    """
    from mltr.training.distil import Distilled
    from mltr.training.labels import Labels
    from mltr.training.probe import FrozenLabels

    objective: type[Labels] = Distilled if config.train.teacher else Labels
    if config.train.freeze == "backbone":
        objective = FrozenLabels
    return train_for(objective, config, splits, folder, resume=resume, quiet=quiet, began=began)


def train_for(
    objective: Callable[[Run], Objective], config: Config, splits: Splits, folder: RunFolder, *,
    resume: bool = False, quiet: bool = False, began: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Begin or resume a run for an objective, and bring it to its end; return its figures."""
    from mltr.evaluation.open_run import as_trained, warn_of_known
    from mltr.runs.folder import sources_of
    from mltr.training.progress import tell_images
    from mltr.training.run import prepare_run
    from mltr.training.trainer import Trainer

    if resume:
        splits = as_trained(folder.path, splits)
        folder.check_images(splits)
    if not (resume or quiet):
        for option, source in sources_of(config).items():
            warn_of_known(option, source, config, splits)
    tell_images(splits)  # before features are computed or images shrunk, which may take long
    run = prepare_run(config, splits, folder, resume=resume)
    run.clock = run.clock if began is None else began
    trainer = Trainer(run, objective(run))
    with trainer.guarded():
        if resume:
            trainer.saver.restore()
            if launched_rank() == 0:  # the images may have moved
                folder.write_recipe(config)
        elif launched_rank() == 0:  # data and network are sound: a previous run may go
            folder.begin(config, splits, run.precision)
        trainer.fit()
        figures = trainer.finish(quiet)
    run.processes.part()
    return figures

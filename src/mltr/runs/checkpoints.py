"""Checkpoints of a run: written atomically, verified by checksums, the latest few kept.

A checkpoint (state) is a folder with one file per process, `part-RANK.pt`, and `sums.json`, which
is written last. The folder gets its final name once all files are on disk.
"""

from __future__ import annotations

import json
import logging
import pickle
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mltr.errors import MltrError
from mltr.files.writing import sha256_of, write_atomically, write_json
from mltr.machine.processes import Processes
from mltr.machine.sharding import put_together, to_pieces
from mltr.runs.folder import BEST, STATES, UNFINISHED
from mltr.weights.bundle import checkpoint_writer

log = logging.getLogger(__name__)

SUMS = "sums.json"


@dataclass(frozen=True)
class States:
    """The states of a run, as one of its processes reads and writes them."""

    folder: Path
    processes: Processes

    def write(
        self,
        name: str,
        shared: Mapping[str, Any],
        own: Mapping[str, Any] | None = None,
        needs: str = "",
    ) -> None:
        """Write a state called `name`, replacing an earlier one. All processes call this together.

        `shared` is replicated or sharded over the processes; `own` belongs to this process alone;
        `needs` names another state that this one depends on. If any process can't write, raises
        `MltrError` in all of them and leaves other states untouched.
        """
        is_main, staged = self.processes.is_main, self.folder / f"{UNFINISHED}{name}"
        if is_main:
            shutil.rmtree(staged, ignore_errors=True)
        self.processes.wait()
        part = {"shared": to_pieces(shared, keep_rest=is_main), "own": dict(own or {})}
        path = staged / _part(self.processes.rank)
        reports = self.processes.gather_lists([_write_part(path, part)])
        failure = next((text for text, _ in reports if text), "")
        if is_main and not failure:
            sums = {_part(rank): checksum for rank, (_, checksum) in enumerate(reports)}
            try:
                write_json(staged / SUMS, {"needs": needs, "sha256": sums})
                shutil.rmtree(self.folder / name, ignore_errors=True)
                staged.replace(self.folder / name)
            except (MltrError, OSError) as error:
                failure = str(error)
        failure = self.processes.from_main(failure)
        if failure:
            if is_main:
                shutil.rmtree(staged, ignore_errors=True)
            raise MltrError(failure)

    def read(self, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what `write` got: `shared`, reassembled, and this process's `own`.

        `own` is empty for ranks that didn't exist when the state was written. Raises `MltrError`
        if the state is missing or damaged.
        """
        names = list(_read_sums(self.folder / name)["sha256"])
        parts = [_load(self.folder / name / part) for part in names]
        shared = put_together([part["shared"] for part in parts])
        rank = self.processes.rank
        return shared, parts[rank]["own"] if rank < len(parts) else {}

    def latest(self) -> str:
        """Return the name of the latest valid state. Damaged ones are reported and deleted.

        Raises `MltrError` if none is valid, or one can't be read, which may pass: it is kept.
        """
        found: str = ""
        problem = f"{self.folder} holds no valid checkpoint: start again with --overwrite"
        try:
            found = self._latest_valid() if self.processes.is_main else ""
        except OSError as error:
            problem = f"{error.filename or self.folder}: can't be read ({error.strerror or error})"
        found = self.processes.from_main(found)
        if not found:
            self.processes.fail(problem)
        return found

    def _latest_valid(self) -> str:
        for path in sorted(self.folder.glob(STATES), key=_place, reverse=True):
            damage = self._damage(path)
            if not damage:
                return path.name
            log.warning("%s; deleted it and going back to the one before", damage)
            shutil.rmtree(path, ignore_errors=True)
        return ""

    def _damage(self, path: Path) -> str:
        """Return what is wrong with a state or the one it needs, or "" if both are valid."""
        try:
            sums = _read_sums(path)
            for name, expected in sums["sha256"].items():
                if sha256_of(path / name) != expected:
                    return f"{path / name} is damaged"
        except (FileNotFoundError, MltrError) as error:
            return f"{path} is damaged: {error}"
        return self._damage(self.folder / sums["needs"]) if sums["needs"] else ""

    def prune(self, keep: int) -> None:
        """Delete all but the latest `keep` states and those that they need."""
        kept = sorted(self.folder.glob(STATES), key=_place)[-keep:]
        needed = set()
        for path in kept:
            try:
                needed.add(self.folder / _read_sums(path)["needs"])
            except MltrError:  # damaged
                continue
            except OSError:  # it can't be read now, and what it needs isn't known
                return
        for pattern in (STATES, BEST, f"{UNFINISHED}*"):
            for path in self.folder.glob(pattern):
                if path not in kept and path not in needed:
                    shutil.rmtree(path, ignore_errors=True)


def _place(state: Path) -> list[int]:
    """Return the epoch and batch of a state, by its name."""
    return [int(number) for number in re.findall(r"\d+", state.name)]


def _part(rank: int) -> str:
    return f"part-{rank}.pt"


def _write_part(path: Path, part: Mapping[str, Any]) -> tuple[str, str]:
    """Write a part; return an error message, or "", and its checksum."""
    try:
        write_atomically(path, checkpoint_writer(part))
        return "", sha256_of(path)
    except (MltrError, OSError) as error:
        return str(error), ""


def _read_sums(path: Path) -> dict[str, Any]:
    try:
        sums: dict[str, Any] = json.loads((path / SUMS).read_text())
        return {"needs": sums["needs"], "sha256": dict(sums["sha256"])}
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise MltrError(f"{path / SUMS} can't be read: {error}") from error


def _load(path: Path) -> dict[str, Any]:
    """Load a file of tensors and plain values, without executing any of its content."""
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise MltrError(f"{path} is damaged: {error}") from error
    return content


def random_states() -> dict[str, Any]:
    """Return the state of torch's random number generators in this process."""
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_random_states(states: Mapping[str, Any]) -> None:
    """Restore the random number generators to what `random_states` returned."""
    torch.set_rng_state(states["cpu"])
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])

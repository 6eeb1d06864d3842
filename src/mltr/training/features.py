"""Features of a frozen backbone: computed once for each photo, kept, and learnt from.

A backbone that doesn't learn says the same of a photo in every epoch. So its final map, and the
vector that this is pooled to, are kept in a memory-mapped file beside the squashed photos, for all
heads alike; the file's name tells weights, preprocessing and photos.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mltr.config.schema import AugmentConfig
from mltr.data.loading import (
    Batch,
    EpochBatches,
    ImageDataset,
    SideOf,
    fingerprint,
    full_size,
    is_broken,
)
from mltr.data.mapped import MappedRows
from mltr.data.preprocess import Preprocess
from mltr.data.records import Split
from mltr.errors import UsageError
from mltr.files.cache import Cache
from mltr.files.writing import write_json
from mltr.machine.precision import autocast
from mltr.network.backbones import TimmBackbone, checkpoint_parts
from mltr.network.features import backbone_sum, compute_features, head_of
from mltr.network.heads import AverageHead
from mltr.network.model import MlTr
from mltr.training.bound import BoundModule
from mltr.training.once import look_once

log = logging.getLogger(__name__)

FEATURES = 1  #: to be raised whenever the same weights give other features than before
PLAIN, MIRRORED = 0, 1  #: views; those that follow are crops
VIEWS = "views"  #: a salt of random numbers


class FeatureHead(BoundModule):
    """The head of a network, to learn on features in the place of images.

    It is bound to the weights of the backbone, so that it can't go on with others.
    """

    whose, option = "the frozen backbone's weights", "same model.init"

    def __init__(self, network: nn.Module, name: str) -> None:
        super().__init__()
        own = isinstance(network, MlTr | TimmBackbone)
        self.head: Any
        self.head, *others = head_of(network)
        if others or not (own or isinstance(self.head, nn.Linear)):
            raise UsageError(
                f"{name} doesn't classify by one linear layer, which train.freeze backbone needs: "
                "choose another head, such as --model.head csra"
            )
        self.is_pooled = not own or isinstance(self.head, AverageHead)
        self.bound_to = backbone_sum(network)
        self._spared: set[str] = getattr(network, "no_weight_decay", set)() if own else set()

    def forward(self, features: Tensor) -> Tensor:
        """Return logits [B, K] for what `read_features` gives."""
        if isinstance(self.head, AverageHead):  # pooled already: a map of one pixel
            features = features[:, None, None]
        logits: Tensor = self.head(features)
        return logits

    def no_weight_decay(self) -> set[str]:
        """Names of what the network wants spared."""
        return self._spared

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass, where the head can do so."""
        checkpoint_parts(self.head, enable)


@dataclass(frozen=True)
class Features:
    """The features of a split's photos, one file for each view."""

    views: Sequence[MappedRows]
    is_pooled: bool  #: whether the head takes the vector, else the map

    def read(self, view: int, rows: NDArray[np.int64]) -> Tensor:
        """Return float32 [B, H, W, C] or [B, D]; zeros for broken photos."""
        table = self.views[view].open()
        if self.is_pooled:
            return torch.from_numpy(table["pooled"][rows])
        return torch.from_numpy(table["maps"][rows]).view(torch.bfloat16).float()


@dataclass(frozen=True)
class FeatureStore:
    """Where the features of one backbone are kept, and how they are computed where they lack."""

    network: nn.Module
    name: str  #: of the network, and what it was built by: another may have the same weights
    head: FeatureHead
    preprocess: Preprocess
    min_scale: float  #: least share of a photo's area in a crop
    precision: str
    device: torch.device
    cache: Cache
    photos: Cache | None  #: of squashed images
    workers: int

    def open(self, split: Split, views: int) -> Features:
        """Return the features of a split's photos, computed now unless they are there.

        Of several processes one does so. Raises `MltrError` where they can't be kept.
        """
        layout = self._layout()
        if not self.head.is_pooled and "maps" not in layout:
            raise UsageError(f"{self.name}: its features are no map; use head average")
        dtype = np.dtype(
            [("maps", np.int16, tuple(layout["maps"]))] * ("maps" in layout)
            + [("pooled", np.float32, tuple(layout["pooled"]))]
        )
        found = [self._view(split, view, dtype) for view in range(views)]
        return Features(found, self.head.is_pooled)

    def _view(self, split: Split, view: int, dtype: np.dtype[Any]) -> MappedRows:
        crops = f" {view} {self.min_scale}" if view > MIRRORED else f" {view}"
        name = f"features-{fingerprint(split, self._key() + crops)}.rows"

        def fill(rows: NDArray[Any]) -> dict[int, str]:
            words = ("", " mirrored")[view] if view <= MIRRORED else f" crop {view - MIRRORED} of"
            log.info(
                "computing features of %d%s %s photos once, into %s",
                len(split), words, split.name, self.cache.folder / name,
            )  # fmt: skip
            return self._fill(split, view, rows)

        rows = MappedRows(
            self.cache, name, (len(split),), dtype, fill,
            is_broken=partial(is_broken, split), what="features",
            instead="set train.freeze to none",
        )  # fmt: skip
        rows.open()  # before another file takes its room
        return rows

    def _key(self) -> str:
        weights, preprocess = self.head.bound_to.hex(), json.dumps(self.preprocess.to_dict())
        return f"{FEATURES} {timm.__version__} {self.name} {weights} {preprocess} {self.precision}"

    def _layout(self) -> dict[str, list[int]]:
        """Return the shapes of a photo's features; they are kept too, so that nothing need run."""

        def make(path: Path) -> None:
            side = self.preprocess.image_size
            maps, pooled = self._run(torch.zeros(1, 3, side, side))
            self._check_pooled()
            self.network.to(self.device)  # the head learns there
            shapes = {} if maps is None else {"maps": maps.shape[1:]}
            write_json(path, shapes | {"pooled": pooled.shape[1:]})

        name = f"features-{hashlib.sha256(self._key().encode()).hexdigest()[:16]}.json"
        layout: dict[str, list[int]] = json.loads(self.cache.get(name, 1, make).read_bytes())
        return layout

    @torch.inference_mode()
    def _check_pooled(self) -> None:
        """Raise `UsageError` if the network's own classifier sees another vector.

        So it is where a norm stands between timm's pooling and the linear layer.
        """
        if isinstance(self.network, MlTr | TimmBackbone):
            return
        side = self.preprocess.image_size
        images = torch.linspace(0, 1, 3 * side * side).view(1, 3, side, side)
        network = self.network.cpu().float().eval()
        seen: list[Tensor] = []
        hook = self.head.head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        try:
            network(images)
        finally:
            hook.remove()
        pooled = compute_features(network, images)[1]
        if seen[0].shape != pooled.shape or not torch.allclose(seen[0], pooled, 1e-3, 1e-3):
            raise UsageError(
                f"{self.name} classifies by more than one linear layer, which train.freeze "
                "backbone needs: choose another head, such as --model.head csra"
            )

    @torch.inference_mode()
    def _run(self, images: Tensor) -> tuple[Tensor | None, Tensor]:
        layout: Any = torch.channels_last  # for convolutions; nothing else minds
        network = self.network.to(self.device).to(memory_format=layout).eval()
        images = images.to(self.device).to(memory_format=layout)
        with autocast(self.precision, self.device):
            return compute_features(network, images)

    def _fill(self, split: Split, view: int, rows: NDArray[Any]) -> dict[int, str]:
        plain = replace(AugmentConfig(), randaugment_ops=0, cutout=0.0)
        crops = replace(plain, crop="random", min_scale=self.min_scale)
        augment = crops if view > MIRRORED else None
        dataset = ImageDataset(split, self.preprocess, augment, cache=self.photos)

        def note(images: Tensor, places: NDArray[np.int64]) -> None:
            maps, pooled = self._run(images.flip(3) if view == MIRRORED else images)
            if maps is not None:
                kept = maps.to(torch.bfloat16).cpu().contiguous().view(torch.int16)
                rows["maps"][places] = kept.numpy()
            rows["pooled"][places] = pooled.float().cpu().numpy()

        errors = look_once(dataset, note, self.workers, self.device, epoch=view)
        rows[list(errors)] = np.zeros((), rows.dtype)
        return errors


class FeatureLoader:
    """Batches of features in the place of images, in the order that images would come in.

    Of the views of a photo, one is chosen anew in each epoch, by the seed. `split` is the one of
    the features, or its beginning.
    """

    def __init__(
        self, split: Split, features: Features, batches: EpochBatches, device: torch.device
    ) -> None:
        self.split, self.features, self.batches, self.device = split, features, batches, device
        batches.reads_images = False

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, start_batch: int = 0, side: SideOf = full_size) -> Iterator[Batch]:
        """Iterate over the batches of an epoch, from `start_batch` on; features have no side."""
        self.batches.epoch, self.batches.start_batch = epoch, start_batch
        views = np.zeros(len(self.split), np.int64)
        if len(self.features.views) > 1:
            rng = np.random.default_rng((self.batches.seed, epoch, *VIEWS.encode()))
            views = rng.integers(len(self.features.views), size=len(self.split))
        for keys in self.batches:
            places = np.array([key.place for key in keys], np.int64)
            yield self._batch(places, views[places])

    def close(self) -> None:
        """Do nothing, as nothing else draws the batches."""

    def _batch(self, places: NDArray[np.int64], views: NDArray[np.int64]) -> Batch:
        targets = np.stack([self.split[int(place)].labels for place in places]).astype(np.int8)
        errors = [self.features.views[PLAIN].errors.get(int(place), "") for place in places]
        broken = np.array([bool(error) for error in errors])
        targets[broken] = -1
        parts = {view: self.features.read(view, places[views == view]) for view in set(views)}
        first = next(iter(parts.values()))
        features = first.new_empty((len(places), *first.shape[1:]))
        for view, values in parts.items():
            features[torch.from_numpy(views == view)] = values
        return Batch(
            features.to(self.device), torch.from_numpy(targets), torch.from_numpy(places),
            [error for error in errors if error], torch.from_numpy(broken),
        )  # fmt: skip

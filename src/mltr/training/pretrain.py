"""`mltr pretrain`: learn from photos without labels, by guessing what is hidden of them.

Masked image modelling in the manner of SimMIM (arXiv 2111.09886): random cells of an image are
hidden, the network sees a learned token in their place, and one linear layer guesses their pixels
from the final map; the loss is the absolute error of the hidden pixels. A cell has the side of one
pixel of the final map.
"""

from __future__ import annotations

import argparse
import logging
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from timm.layers import trunc_normal_
from torch import Tensor, nn

from mltr.data.loading import ImageDataset, make_loader, share
from mltr.data.sources import open_images
from mltr.errors import UsageError
from mltr.files.writing import write_json
from mltr.machine.precision import autocast
from mltr.network.model import MlTr
from mltr.training import train
from mltr.training.build import build_model, model_overrides
from mltr.training.progress import training_words
from mltr.training.trainer import PICTURES, Trainer
from mltr.weights.bundle import save_bundle

if TYPE_CHECKING:
    from mltr.config.schema import Config
    from mltr.runs.folder import RunFolder

log = logging.getLogger(__name__)

MASK_RATIO = 0.6  #: share of the cells that is hidden (SimMIM, table 1)
PICTURE_FILE = "reconstruction.png"

add_arguments = train.add_arguments


def run(args: argparse.Namespace, overrides: Sequence[str] = ()) -> int:
    """Pretrain by a recipe."""
    return train.run_recipe(args, overrides, pretrain)


def pretrain(
    config: Config, folder: RunFolder, *, resume: bool = False, quiet: bool = False
) -> dict[str, Any]:
    """Pretrain on the images of a source; their labels, if any, are not looked at.

    The folder becomes a bundle without classes, for `model.init` of a training. Returns what
    metrics.json holds. Raises `MltrError` like `train`, and `UsageError` for a network that is no
    MlTr or an image size that its stages don't divide.
    """
    splits = open_images(config.data)
    return train.run_trainer(Pretrainer, config, splits, folder, resume=resume, quiet=quiet)


class MaskedImageModel(nn.Module):
    """A network that sees part of an image, and a layer that guesses the rest."""

    def __init__(self, network: MlTr) -> None:
        super().__init__()
        self.network = network
        self.stride = 4 * int(2 ** (len(network.stages) - 1))
        self.mask_token = nn.Parameter(torch.zeros(network.variant.embed_dim))
        trunc_normal_(self.mask_token, std=0.02)
        self.decoder = nn.Linear(network.num_features, 3 * self.stride**2)

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        """Guess images [B, 3, H, W] of which `mask` [B, H/stride, W/stride] hides some cells."""
        # Convolutions of a stem look beyond their patch, so what is hidden is wiped out, too.
        visible = images.masked_fill(_enlarge(mask, self.stride)[:, None], 0.0)
        embed = self.network.embed
        patches = embed.embed_patches(visible)
        hidden = _enlarge(mask, self.stride // 4)[..., None]
        patches = torch.where(hidden, self.mask_token.to(patches.dtype), patches)
        final = self.network.run_stages(embed.add_position(patches))["final"]
        guessed: Tensor = self.decoder(final)
        B, H, W, _ = guessed.shape
        cells = guessed.view(B, H, W, 3, self.stride, self.stride).permute(0, 3, 1, 4, 2, 5)
        return cells.reshape(B, 3, H * self.stride, W * self.stride)

    def no_weight_decay(self) -> set[str]:
        """Names of what weight decay should leave alone."""
        return {f"network.{name}" for name in self.network.no_weight_decay()}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the network's blocks in the backward pass."""
        self.network.set_grad_checkpointing(enable)


def _enlarge(mask: Tensor, times: int) -> Tensor:
    return mask.repeat_interleave(times, dim=1).repeat_interleave(times, dim=2)


def random_mask(count: int, side: int, rng: np.random.Generator) -> Tensor:
    """Return which of side x side cells are hidden in each of `count` images: bool [B, S, S]."""
    hidden = max(1, round(MASK_RATIO * side * side))
    order = torch.from_numpy(rng.random((count, side * side))).argsort(dim=1)
    return (order < hidden).view(count, side, side)


class Pretrainer(Trainer):
    """The loop of training, with hidden pixels in the place of labels."""

    command = "pretrain"
    judged_by = "val_loss"
    lower_is_better = True

    def _build_model(self) -> nn.Module:
        if self.config.train.freeze != "none":
            raise UsageError("train.freeze: all of a network is pretrained; leave it at none")
        network = build_model(self.config.model, 0, self.image_size)
        if not isinstance(network, MlTr):
            raise UsageError(f"{self.config.model.name} can't be pretrained: only MlTr's variants")
        model = MaskedImageModel(network)
        if self.image_size % model.stride:
            raise UsageError(
                f"model.image_size {self.image_size} must be a multiple of {model.stride}"
            )
        if self.config.train.min_size:
            raise UsageError("train.min_size: images of a pretraining don't grow; leave it at 0")
        return model

    @property
    def is_mean(self) -> bool:
        """The loss is always a mean, over the images that can be read."""
        return True

    def _compute_loss(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        batch_size = min(self.config.train.batch_size, len(self.splits.train))
        errors = self._errors(self.forward, images, batch_size, self._generator())
        # Of images that can't be read nothing is to be learnt.
        readable = images.flatten(1).any(dim=1).to(errors.device)
        return errors * readable, readable

    def _errors(
        self, forward: Any, images: Tensor, batch_size: int, rng: np.random.Generator
    ) -> Tensor:
        """Return the error of each image, this process's share of a batch of all."""
        model = self._plain_model()
        mask = random_mask(batch_size, images.shape[2] // model.stride, rng)
        mask = share(mask, self.processes.rank, self.processes.count)
        with autocast(self.precision, self.device):
            return masked_error(forward, images.to(self.device), mask.to(self.device), model.stride)

    @torch.inference_mode()
    def _score(self) -> float:
        """Return the error on the validation images, hidden alike every time."""
        model, processes = self._plain_model().eval(), self.processes
        rng = np.random.default_rng(self.config.train.seed)
        dataset = ImageDataset(self.splits.val, self.preprocess, cache=self.cache)
        errors, left = [], len(dataset)
        for batch in make_loader(
            dataset, self.config.train.batch_size, rank=processes.rank, processes=processes.count
        ):
            count = min(self.config.train.batch_size, left)
            own = self._errors(model, batch.images, count, rng)
            errors.append(own[: max(count - processes.rank, 0)].cpu())  # no image counts twice
            left -= count
        total = float(torch.cat(errors).double().sum())
        return float(processes.gather([total]).sum()) / len(dataset)

    def _line(self, row: dict[str, Any], last: int) -> str:
        parts = training_words(row, last)
        if "val_loss" in row:
            parts.append(f"val loss {row['val_loss']:.4f}")
        if "val_loss_ema" in row:
            parts.append(f"averaged {row['val_loss_ema']:.4f}")
        return "  ".join(parts)

    @torch.inference_mode()
    def _draw_pictures(self) -> None:
        """Write a picture of some validation images: hidden, guessed, whole."""
        model = self._plain_model().eval()
        split = self.splits.val.subset(range(min(PICTURES, len(self.splits.val))), "val")
        (batch,) = make_loader(ImageDataset(split, self.preprocess), len(split))
        rng = np.random.default_rng(self.config.train.seed)
        mask = random_mask(len(split), self.image_size // model.stride, rng)
        images, mask = batch.images.to(self.device), mask.to(self.device)
        hidden = _enlarge(mask, model.stride)[:, None]
        shown = [
            images.masked_fill(hidden, 0.5),
            images.where(~hidden, model(images, mask)),
            images,
        ]
        mean, std = (
            torch.tensor(values, device=images.device)[:, None, None]
            for values in (self.preprocess.mean, self.preprocess.std)
        )
        rows = [torch.cat(list(row * std + mean), dim=2) for row in shown]
        if not self.processes.is_main:
            return
        pixels = (torch.cat(rows, dim=1).clamp(0, 1) * 255).byte().permute(1, 2, 0).cpu().numpy()
        Image.fromarray(np.ascontiguousarray(pixels)).save(self.folder.path / PICTURE_FILE)

    def finish(self, quiet: bool = False) -> dict[str, Any]:
        """Write the bundle of the best weights, which has no classes yet."""
        self.is_finishing = True
        model, progress = self.load_best(), self.progress
        figures = {
            "val_loss": -progress.best_map,
            "best_epoch": progress.best_epoch + 1,
            "epochs": progress.epoch,
            "seed": self.config.train.seed,
            "train_seconds": round(progress.seconds, 1),
            "images_in_splits": {split.name: len(split) for split in self.splits},
            "broken_training_images": list(progress.broken.values()),
        }
        if not self.processes.is_main:
            return figures
        self._write_bundle(model, pretraining=figures)
        write_json(self.folder.metrics, figures)
        if not quiet:
            print(f"{self.folder.path}: pretrained, {PICTURE_FILE} shows what it guesses")
        self._tell_the_end()
        return figures

    def _write_bundle(self, model: Any, **about: Any) -> None:
        save_bundle(
            self.folder.path, model=model.network, name=self.config.model.name,
            overrides=model_overrides(self.config.model, self.image_size), classes=(),
            preprocess=self.preprocess, extra=about,
        )  # fmt: skip

    def _tell_what_next(self) -> None:
        path = shlex.quote(str(self.folder.path))
        log.info("next: mltr train photos --data.root LABELLED_PHOTOS --model.init %s", path)


def masked_error(forward: Any, images: Tensor, mask: Tensor, stride: int) -> Tensor:
    """Return the mean absolute error of the hidden pixels of each image: [B]."""
    hidden = _enlarge(mask, stride)[:, None]
    difference = (forward(images, mask).float() - images).abs().mean(dim=1, keepdim=True)
    errors: Tensor = (difference * hidden).sum(dim=(1, 2, 3)) / hidden.sum(dim=(1, 2, 3))
    return errors

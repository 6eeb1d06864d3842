"""The objective of `mltr pretrain`: guess hidden pixels (SimMIM, arXiv 2111.09886)."""

from __future__ import annotations

import shlex
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.layers import trunc_normal_
from torch import Tensor, nn

from mltr.data.loading import ImageDataset, make_loader, share
from mltr.errors import UsageError
from mltr.files.writing import write_json
from mltr.network.model import MlTr
from mltr.training.build import build_model, model_overrides
from mltr.training.learner import Learner
from mltr.training.objective import PICTURES, Objective
from mltr.weights.bundle import save_bundle

MASK_RATIO = 0.6  #: share of the cells that is hidden (SimMIM, table 1)
PICTURE_FILE = "reconstruction.png"


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


class HiddenPixels(Objective):
    """The pixels of hidden cells, judged by the error on the validation images."""

    command = "pretrain"
    judged_by = "val_loss"
    lower_is_better = True
    is_mean = True  #: over the images that can be read

    def build_network(self) -> nn.Module:
        """Return the recipe's network with a layer that guesses pixels."""
        if self.run.config.train.freeze != "none":
            raise UsageError("train.freeze: all of a network is pretrained; leave it at none")
        if self.run.config.train.teacher:
            raise UsageError("train.teacher: mltr pretrain has no use for one; use mltr train")
        model, side = self.run.config.model, self.run.preprocess.image_size
        network = build_model(model, 0, side)
        if not isinstance(network, MlTr):
            raise UsageError(f"{model.name} can't be pretrained: only MlTr's variants can")
        whole = MaskedImageModel(network)
        self.stride = whole.stride
        if side % self.stride:
            raise UsageError(f"model.image_size {side} must be a multiple of {self.stride}")
        if self.run.config.train.min_size:
            raise UsageError("train.min_size: image size is constant in pretraining; leave it at 0")
        return whole

    def losses(
        self, forward: Any, images: Tensor, targets: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return the error of each image; its only cell is the image, if it can be read."""
        batch_size = min(self.run.config.train.batch_size, len(self.run.splits.train))
        errors = self._errors(forward, images, batch_size, rng)
        # Of images that can't be read nothing is to be learnt.
        readable = images.flatten(1).any(dim=1).to(errors.device)
        return errors * readable, readable

    def _errors(
        self, forward: Any, images: Tensor, batch_size: int, rng: np.random.Generator
    ) -> Tensor:
        """Return the error of each image, this process's share of a batch of all."""
        run = self.run
        mask = random_mask(batch_size, images.shape[2] // self.stride, rng)
        mask = share(mask, run.processes.rank, run.processes.count)
        with run.autocast():
            return masked_error(forward, images.to(run.device), mask.to(run.device), self.stride)

    @torch.inference_mode()
    def score(self, model: Any) -> float:
        """Return the mean error, of cells that are hidden alike every time."""
        run, processes, model = self.run, self.run.processes, model.eval()
        settings = run.config.train
        rng = np.random.default_rng(settings.seed)
        dataset = ImageDataset(run.splits.val, run.preprocess, cache=run.cache)
        errors, left = [], len(dataset)
        for batch in make_loader(
            dataset, settings.batch_size, rank=processes.rank, processes=processes.count
        ):
            count = min(settings.batch_size, left)
            own = self._errors(model, batch.images, count, rng)
            errors.append(own[: max(count - processes.rank, 0)].cpu())  # no image counts twice
            left -= count
        total = float(torch.cat(errors).double().sum())
        return float(processes.gather([total]).sum()) / len(dataset)

    def score_words(self, row: dict[str, Any]) -> list[str]:
        """Return the errors."""
        names = {"val_loss": "val loss", "val_loss_ema": "averaged"}
        return [f"{words} {row[name]:.4f}" for name, words in names.items() if name in row]

    @torch.inference_mode()
    def draw(self, model: Any) -> None:
        """Write a picture of the images: hidden, guessed, whole."""
        run, model = self.run, model.eval()
        split = run.splits.val.subset(range(min(PICTURES, len(run.splits.val))), "val")
        (batch,) = make_loader(ImageDataset(split, run.preprocess), len(split))
        rng = np.random.default_rng(run.config.train.seed)
        mask = random_mask(len(split), run.preprocess.image_size // self.stride, rng)
        images, mask = batch.images.to(run.device), mask.to(run.device)
        hidden = _enlarge(mask, self.stride)[:, None]
        shown = [
            images.masked_fill(hidden, 0.5),
            images.where(~hidden, model(images, mask)),
            images,
        ]
        mean, std = (
            torch.tensor(values, device=images.device)[:, None, None]
            for values in (run.preprocess.mean, run.preprocess.std)
        )
        rows = [torch.cat(list(row * std + mean), dim=2) for row in shown]
        if not run.processes.is_main:
            return
        pixels = (torch.cat(rows, dim=1).clamp(0, 1) * 255).byte().permute(1, 2, 0).cpu().numpy()
        Image.fromarray(np.ascontiguousarray(pixels)).save(run.folder.path / PICTURE_FILE)

    def finish(self, learner: Learner, quiet: bool) -> dict[str, Any]:
        """Write a bundle that has no classes yet; the figures are those of the validation."""
        run, progress = self.run, self.run.progress
        figures = {
            "val_loss": -progress.best_map,
            "best_epoch": progress.best_epoch + 1,
            "epochs": progress.epoch,
            "seed": run.config.train.seed,
            "train_seconds": round(progress.seconds, 1),
            "images_in_splits": {split.name: len(split) for split in run.splits},
            "broken_training_images": list(progress.broken.values()),
        }
        if not run.processes.is_main:
            return figures
        self.write_bundle(learner.whole, pretraining=figures)
        write_json(run.folder.metrics, figures)
        if not quiet:
            print(f"{run.folder.path}: pretrained; {PICTURE_FILE} shows reconstructions")
        return figures

    def write_bundle(self, whole: Any, **about: Any) -> None:
        """Write the network without the layer that guesses."""
        run = self.run
        save_bundle(
            run.folder.path,
            model=whole.network,
            name=run.config.model.name,
            overrides=model_overrides(run.config.model, run.preprocess.image_size),
            classes=(),
            preprocess=run.preprocess,
            extra=about,
        )

    def next_command(self) -> str:
        """Return the command that starts a training from these weights."""
        path = shlex.quote(str(self.run.folder.path))
        return f"mltr train scratch LABELLED_PHOTOS --model.init {path}"


def masked_error(forward: Any, images: Tensor, mask: Tensor, stride: int) -> Tensor:
    """Return the mean absolute error of the hidden pixels of each image: [B]."""
    hidden = _enlarge(mask, stride)[:, None]
    difference = (forward(images, mask).float() - images).abs().mean(dim=1, keepdim=True)
    errors: Tensor = (difference * hidden).sum(dim=(1, 2, 3)) / hidden.sum(dim=(1, 2, 3))
    return errors

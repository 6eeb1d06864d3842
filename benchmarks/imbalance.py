"""Effect of class weights, resampling and losses on rare classes, with a frozen network.

    python benchmarks/imbalance.py --data COCO18 --init FILE

None of them is an option of mltr, as none is better than plain binary cross entropy here, neither
over all classes nor over the rarest third. FILE has the weights of EfficientNet-Lite0. Its features
are computed once, and a linear layer is trained on them with the optimiser and schedule of the
recipe `probe`.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from mltr.config.recipe import find_recipe, load_recipe
from mltr.data.sources import open_splits
from mltr.losses import bce_loss
from mltr.runs.folder import RunFolder
from mltr.training.optim import lr_factor
from mltr.training.probe import FrozenLabels
from mltr.training.run import prepare_run

BATCH = 64
LossOf = Callable[[Tensor, Tensor], Tensor]  #: logits and targets [B, K] to losses [B, K]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, metavar="COCO18", help="the photos")
    parser.add_argument("--init", required=True, metavar="FILE", help="weights of the backbone")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args()
    options = [f"--data.root={args.data}", f"--model.init={args.init}", "--model.image_size=128"]
    config = load_recipe(find_recipe("probe"), options)
    with tempfile.TemporaryDirectory() as folder:
        run = prepare_run(config, open_splits(config.data), RunFolder(Path(folder) / "run"))
    objective = FrozenLabels(run)
    objective.build_network()
    objective.load_training()
    train, test = run.splits.train, run.splits.test
    everything = np.arange(len(train))
    views = [objective.features["train"].read(view, everything) for view in (0, 1)]
    test_features = objective.features["test"].read(0, np.arange(len(test)))
    targets = torch.from_numpy(train.targets).float()
    rare = np.argsort(train.targets.sum(axis=0))[: len(train.classes) // 3]
    print(
        f"{date.today()}, {platform.machine()}; rare: {', '.join(train.classes[i] for i in rare)}"
    )
    print(f"{'':<36} map of each seed, mean   |  of rare classes")
    for name, (loss_of, chances) in ways(targets).items():
        scores = []
        for seed in args.seeds:
            head = fit(views, targets, loss_of, chances, seed, args.epochs)
            probs = head(test_features).sigmoid().detach().numpy()
            scores.append(100 * average_precision_score(test.targets, probs, average=None))
        maps, rares = np.mean(scores, axis=1), np.array(scores)[:, rare].mean(axis=1)
        shown = " ".join(f"{value:5.2f}" for value in [*maps, maps.mean()])
        print(
            f"{name:<36} {shown}  |  " + " ".join(f"{v:5.2f}" for v in [*rares, rares.mean()]),
            flush=True,
        )


def ways(targets: Tensor) -> dict[str, tuple[LossOf, Tensor | None]]:
    """Return losses with sampling weights of images [N]; None draws each image once per epoch."""
    images, counts = len(targets), targets.sum(dim=0)
    shares = counts / images
    # Share of the rarest class in each image; images without labels get the median share.
    rarest = torch.where(targets == 1, shares, 2.0).amin(dim=1)
    rarest = torch.where(rarest > 1, shares.median(), rarest)
    factors = (0.1 / rarest).sqrt().clamp(min=1)
    return {
        "plain": (plain, None),
        "class weight N / n": (weighted(1 / shares, 1 / shares), None),
        "weight of positives (N - n) / n": (weighted(1 / shares - 1), None),
        "its square root": (weighted((1 / shares - 1).sqrt()), None),
        "drawn by 1 / rarest": (plain, 1 / rarest),
        "drawn by its square root": (plain, rarest.rsqrt()),
        "repeat factors (arXiv 1908.03195)": (plain, factors),
        "distribution-balanced (2007.09654)": (distribution_balanced(counts, images), None),
        "the same, drawn by 1 / rarest": (distribution_balanced(counts, images), 1 / rarest),
        "its weights alone": (distribution_balanced(counts, images, 1.0, 0.0, 0.0), None),
    }


def plain(logits: Tensor, targets: Tensor) -> Tensor:
    return bce_loss(logits, targets, "none")


def weighted(positive: Tensor, negative: Tensor | None = None) -> LossOf:
    """Return BCE whose positives and negatives have weights [K]."""
    other = torch.ones_like(positive) if negative is None else negative
    return lambda logits, targets: (
        plain(logits, targets) * torch.where(targets == 1, positive, other)
    )


def distribution_balanced(
    counts: Tensor, images: int, scale: float = 2.0, bias: float = 0.05, gamma: float = 2.0
) -> LossOf:
    """Return the loss of arXiv 2007.09654 with its authors' settings for COCO."""
    inverse, shift = 1 / counts, -bias / scale * torch.log(images / counts - 1)

    def losses(logits: Tensor, targets: Tensor) -> Tensor:
        repeats = (targets * inverse).sum(dim=1, keepdim=True).clamp(min=1e-9)
        weights = 0.1 + torch.sigmoid(10 * (inverse / repeats - 0.2))
        shifted = logits + shift
        shifted = torch.where(targets == 1, shifted, shifted * scale)
        cells = plain(shifted, targets)
        cells = (1 - torch.exp(-cells)) ** gamma * cells if gamma else cells
        return cells * torch.where(targets == 1, weights, weights / scale)

    return losses


def fit(
    views: list[Tensor],
    targets: Tensor,
    loss_of: LossOf,
    chances: Tensor | None,
    seed: int,
    epochs: int,
) -> torch.nn.Linear:
    """Return a linear layer trained on features, with a random one of two views per use."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    head = torch.nn.Linear(views[0].shape[1], targets.shape[1])
    groups = [
        {"params": [head.weight], "weight_decay": 0.05},
        {"params": [head.bias], "weight_decay": 0.0},
    ]
    optimizer, images, step = torch.optim.AdamW(groups, 1e-3), len(targets), 0
    batches = images // BATCH
    for _ in range(epochs):
        if chances is None:
            order = torch.randperm(images, generator=generator)
        else:
            order = torch.multinomial(chances, images, replacement=True, generator=generator)
        mirrored = torch.rand(images, generator=generator) < 0.5
        for rows in order[: batches * BATCH].view(batches, BATCH):
            features = torch.where(mirrored[rows][:, None], views[1][rows], views[0][rows])
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * lr_factor(step / (epochs * batches), 0.05, "cosine")
            optimizer.zero_grad()
            loss_of(head(features), targets[rows]).mean().backward()
            optimizer.step()
            step += 1
    return head


if __name__ == "__main__":
    main()

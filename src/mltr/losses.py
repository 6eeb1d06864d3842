"""Losses for multi-label classification, and one for single-label pretraining.

Shapes: logits and targets [B, K]. A target is 1, 0, any value between them (mixed or smoothed
labels), or negative if the label is unknown; unknown labels contribute neither loss nor gradient.
Everything is computed in float32 (float64 for float64 logits) from log-sigmoids, so that no logit,
however large, gives infinity, and what remains of the gradient of a confident wrong prediction is
what the loss says: ASL's `clip`, for one, lets that of negatives vanish.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mltr.config.schema import LossConfig

Reduction = Literal["sum", "mean", "none"]

CORRECTED_FROM = 1  #: epoch, from 0, as of which `splc` trusts the network (its authors' own)


def _prepare(
    logits: Tensor, targets: Tensor, label_smoothing: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits in at least float32, targets in 0..1, and which cells are known."""
    if logits.shape != targets.shape:
        raise ValueError(
            f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)} differ in shape"
        )
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    known = targets >= 0
    targets = targets.to(logits.dtype).clamp(min=0)
    return logits, targets * (1 - label_smoothing) + label_smoothing / 2, known


def _reduce(
    losses: Tensor, known: Tensor, class_weights: Tensor | None, reduction: Reduction
) -> Tensor:
    """Weight the classes, drop unknown labels, and reduce; the mean is over known labels."""
    if class_weights is not None:
        losses = losses * class_weights.to(losses)
    losses = torch.where(known, losses, 0.0)
    if reduction == "none":
        return losses
    total = losses.sum()
    if reduction == "sum":
        return total
    if reduction == "mean":
        return total / known.sum().clamp(min=1)
    raise ValueError(f"reduction={reduction!r}: one of sum, mean, none")


def bce_loss(
    logits: Tensor,
    targets: Tensor,
    reduction: Reduction = "sum",
    *,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Binary cross entropy of each cell.

    >>> bce_loss(torch.zeros(1, 3), torch.tensor([[1.0, 0.0, -1.0]]))  # log 2 for either known cell
    tensor(1.3863)
    """
    logits, targets, known = _prepare(logits, targets, label_smoothing)
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return _reduce(losses, known, class_weights, reduction)


def ce_loss(
    logits: Tensor,
    targets: Tensor,
    reduction: Reduction = "sum",
    *,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Softmax cross entropy of images with one label, or with soft labels that sum to 1.

    As in torch, smoothing gives each class label_smoothing / K. An image with an unknown label has
    no loss. The mean is over images; without reduction, the terms of the classes [B, K] are
    returned.

    >>> ce_loss(torch.zeros(2, 4), torch.eye(4)[:2], "mean")  # log 4
    tensor(1.3863)
    """
    logits, targets, known = _prepare(logits, targets, 0.0)
    K = logits.shape[1]
    shares = targets * (1 - label_smoothing) + label_smoothing / K
    terms = -shares * F.log_softmax(logits, dim=1)
    known = known.all(dim=1, keepdim=True).expand_as(terms)
    return _reduce(terms, known, class_weights, reduction) * (K if reduction == "mean" else 1)


def focal_loss(
    logits: Tensor,
    targets: Tensor,
    gamma: float = 2.0,
    reduction: Reduction = "sum",
    *,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Cross entropy weighted by (1 - p of the right answer)^gamma (arXiv 1708.02002, no alpha).

    >>> focal_loss(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]))  # 2 * (1/2)^2 log 2
    tensor(0.3466)
    """
    return asymmetric_loss(
        logits,
        targets,
        gamma_neg=gamma,
        gamma_pos=gamma,
        clip=0.0,
        reduction=reduction,
        detach_focus=False,
        label_smoothing=label_smoothing,
        class_weights=class_weights,
    )


def asymmetric_loss(
    logits: Tensor,
    targets: Tensor,
    gamma_neg: float = 4,
    gamma_pos: float = 0,
    clip: float = 0.05,
    reduction: Reduction = "sum",
    detach_focus: bool = True,
    *,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Asymmetric loss (ASL, arXiv 2009.14119).

    Positives cost -(1-p)^gamma_pos log(p), negatives -(p_m)^gamma_neg log(1-p_m) with the shifted
    probability p_m = max(p - clip, 0). `detach_focus` keeps the gradient out of the focusing
    weights, as ASL's training script does. The result equals the public code, except where that
    clamps probabilities with an epsilon (logits beyond about 17).

    >>> asymmetric_loss(torch.tensor([[0.0, -9.0]]), torch.tensor([[1.0, 0.0]]))  # -9: below clip
    tensor(0.6931)
    """
    logits, targets, known = _prepare(logits, targets, label_smoothing)
    log_p, log_not_p = F.logsigmoid(logits), F.logsigmoid(-logits)
    if clip > 0:
        # log(min(1 - p + clip, 1)): with a clip the logarithm stays finite by itself.
        log_not_p = torch.log((torch.sigmoid(-logits) + clip).clamp(max=1))
    positive = targets * log_p * _focus(torch.sigmoid(-logits), gamma_pos, detach_focus)
    shifted = (torch.sigmoid(logits) - clip).clamp(min=0)
    negative = (1 - targets) * log_not_p * _focus(shifted, gamma_neg, detach_focus)
    return _reduce(-(positive + negative), known, class_weights, reduction)


def _focus(wrongness: Tensor, gamma: float, detach: bool) -> Tensor | float:
    """Return wrongness^gamma, how much a cell counts."""
    if gamma == 0:
        return 1.0
    # The gradient of 0^gamma is infinite for gamma < 1; the smallest normal float stands in for 0.
    weight = wrongness.clamp(min=torch.finfo(wrongness.dtype).tiny) ** gamma
    return weight.detach() if detach else weight


# -- labels that nobody wrote down -------------------------------------------------------------
# Here a 0 may be a label that is missing. All are linear in the targets.


def wan_loss(
    logits: Tensor,
    targets: Tensor,
    reduction: Reduction = "sum",
    *,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Weak assume-negative (WAN, arXiv 2106.09708): BCE whose negatives count 1 / (K - 1).

    >>> wan_loss(torch.zeros(1, 3), torch.tensor([[1.0, 0.0, 0.0]]))  # log 2, and half of it twice
    tensor(1.3863)
    """
    logits, targets, known = _prepare(logits, targets, label_smoothing)
    positive, negative = -F.logsigmoid(logits), -F.logsigmoid(-logits)
    weight = 1 / max(logits.shape[1] - 1, 1)
    losses = targets * positive + weight * (1 - targets) * negative
    return _reduce(losses, known, class_weights, reduction)


def hill_loss(
    logits: Tensor,
    targets: Tensor,
    margin: float = 1.0,
    gamma: float = 2.0,
    lam: float = 1.5,
    reduction: Reduction = "sum",
    *,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Hill loss (arXiv 2112.07368): a negative of high probability has a small gradient.

    Negatives cost (lam - p) p^2, positives a focal loss of the logit less `margin`.

    >>> hill_loss(torch.zeros(1, 1), torch.zeros(1, 1))  # (1.5 - 0.5) / 4
    tensor(0.2500)
    """
    logits, targets, known = _prepare(logits, targets, label_smoothing)
    p = torch.sigmoid(logits)
    losses = targets * _focal_positive(logits - margin, gamma) + (1 - targets) * (lam - p) * p**2
    return _reduce(losses, known, class_weights, reduction)


def splc_loss(
    logits: Tensor,
    targets: Tensor,
    tau: float = 0.6,
    margin: float = 1.0,
    gamma: float = 2.0,
    corrects: bool = True,
    reduction: Reduction = "sum",
    *,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Self-paced loss correction (SPLC, arXiv 2112.07368) of a focal loss with a margin.

    With `corrects`, a negative whose probability exceeds `tau` is taken for a positive.

    >>> splc_loss(torch.tensor([[0.0, 9.0]]), torch.zeros(1, 2))  # log 2 / 4, and next to nothing
    tensor(0.1733)
    """
    logits, targets, known = _prepare(logits, targets, label_smoothing)
    negative = _focal_positive(-logits, gamma)
    if corrects:
        is_missing = torch.sigmoid(logits) > tau
        negative = torch.where(is_missing, _focal_positive(logits, gamma), negative)
    losses = targets * _focal_positive(logits - margin, gamma) + (1 - targets) * negative
    return _reduce(losses, known, class_weights, reduction)


def _focal_positive(logits: Tensor, gamma: float) -> Tensor:
    """Return the focal loss of cells that are positive."""
    return -F.logsigmoid(logits) * _focus(torch.sigmoid(-logits), gamma, detach=False)


class Loss(nn.Module):
    """A loss with its settings, called with logits and targets.

    >>> Loss(bce_loss, None, reduction="none")(torch.zeros(1, 2), torch.tensor([[1.0, -1.0]]))
    tensor([[0.6931, 0.0000]])
    """

    def __init__(
        self, function: Callable[..., Tensor], class_weights: Tensor | None, **settings: object
    ) -> None:
        super().__init__()
        self.function = function
        self.settings = settings
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.class_weights: Tensor | None

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the reduced loss of logits [B, K] against targets [B, K]."""
        return self.function(logits, targets, class_weights=self.class_weights, **self.settings)

    def per_image(
        self, logits: Tensor, targets: Tensor, epoch: int = CORRECTED_FROM
    ) -> tuple[Tensor, Tensor]:
        """Return the sum of each image's losses [B], and its number of known labels [B].

        `epoch` is the one of training, from 0.
        """
        settings = self.settings | {"reduction": "none"}
        if self.function is splc_loss:
            settings["corrects"] = epoch >= CORRECTED_FROM
        losses = self.function(logits, targets, class_weights=self.class_weights, **settings)
        known = targets >= 0
        if self.function is ce_loss:  # whose mean is over images
            return losses.sum(dim=1), known.all(dim=1).long()
        return losses.sum(dim=1), known.sum(dim=1)

    def extra_repr(self) -> str:
        """Show which loss, with which settings."""
        settings = ", ".join(f"{name}={value}" for name, value in self.settings.items())
        return f"{self.function.__name__}, {settings}"


def build_loss(config: LossConfig, class_weights: Tensor | None = None) -> Loss:
    """Return the loss of a recipe; `class_weights` [K] multiply the terms of each class.

    >>> build_loss(LossConfig("bce", reduction="mean"))(torch.zeros(2, 3), torch.ones(2, 3))
    tensor(0.6931)
    """
    shared = {"reduction": config.reduction, "label_smoothing": config.label_smoothing}
    if config.name == "bce":
        return Loss(bce_loss, class_weights, **shared)
    if config.name == "ce":
        return Loss(ce_loss, class_weights, **shared)
    if config.name == "wan":
        return Loss(wan_loss, class_weights, **shared)
    if config.name == "hill":
        return Loss(hill_loss, class_weights, margin=config.margin, **shared)
    if config.name == "splc":
        return Loss(splc_loss, class_weights, margin=config.margin, tau=config.tau, **shared)
    if config.name == "focal":
        return Loss(focal_loss, class_weights, gamma=config.gamma_neg, **shared)
    own = ("gamma_neg", "gamma_pos", "clip", "detach_focus")
    shared |= {name: getattr(config, name) for name in own}
    return Loss(asymmetric_loss, class_weights, **shared)

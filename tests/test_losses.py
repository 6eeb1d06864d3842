"""Losses against published projects' numbers, library losses and a naive float64 loop."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from mltr.config.schema import LossConfig
from mltr.losses import (
    asymmetric_loss,
    bce_loss,
    build_loss,
    ce_loss,
    focal_loss,
    hill_loss,
    splc_loss,
    wan_loss,
)

SETTINGS = [(4, 0, 0.05), (4, 1, 0.05), (2, 0, 0.0), (0, 0, 0.0), (4, 0, 0.2), (2, 2, 0.0)]


def parity_inputs(scale: float, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    logits = torch.randn(16, 20, generator=torch.Generator().manual_seed(7)) * scale
    targets = (torch.rand(16, 20, generator=torch.Generator().manual_seed(8)) < 0.2).float()
    return logits.to(dtype).requires_grad_(), targets.to(dtype)


@pytest.fixture(scope="module")
def parity(shared: Path) -> dict[str, Any]:
    return json.loads((shared / "parity" / "losses.json").read_text())


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("setting", SETTINGS)
def test_parity_of_the_asymmetric_loss(
    parity: dict[str, Any], setting: tuple[float, float, float], detach: bool
) -> None:
    gamma_neg, gamma_pos, clip = setting
    case = parity[f"case_normal_gneg{gamma_neg}_gpos{gamma_pos}_clip{clip:g}"]
    theirs = case["results"]["asl__detached" if detach else "asl__attached"]
    logits, targets = parity_inputs(3)
    loss = asymmetric_loss(logits, targets, gamma_neg, gamma_pos, clip, detach_focus=detach)
    loss.backward()
    assert loss.item() == pytest.approx(theirs["loss_float64"], rel=1e-6)
    torch.testing.assert_close(logits.grad, torch.tensor(theirs["grad"]), atol=2e-6, rtol=1e-5)


def test_parity_of_bce_and_focal(parity: dict[str, Any]) -> None:
    for name, loss_of in (("bce_normal", bce_loss), ("focal_alpha-1_gamma2_normal", focal_loss)):
        theirs = parity["plain_losses"][name]
        logits, targets = parity_inputs(3)
        loss = loss_of(logits, targets)
        loss.backward()
        assert loss.item() == pytest.approx(theirs["loss_float64"], rel=1e-6)
        torch.testing.assert_close(logits.grad, torch.tensor(theirs["grad"]), atol=2e-6, rtol=1e-5)


def naive_asymmetric(
    logit: float, target: float, gamma_neg: float, gamma_pos: float, clip: float
) -> float:
    """Return the loss of one cell in plain float64 arithmetic, without clamping."""
    p, not_p = 1 / (1 + math.exp(-logit)), 1 / (1 + math.exp(logit))
    positive = math.log(p) * not_p**gamma_pos
    negative = math.log(min(not_p + clip, 1)) * max(p - clip, 0) ** gamma_neg
    return -(target * positive + (1 - target) * negative)


@settings(deadline=None)
@given(
    st.floats(-30, 30), st.floats(0, 1), st.sampled_from([0, 0.5, 1, 2, 4]),
    st.sampled_from([0, 1, 2]), st.sampled_from([0, 0.05, 0.2]),
)  # fmt: skip
def test_equals_a_naive_loop(
    logit: float, target: float, gamma_neg: float, gamma_pos: float, clip: float
) -> None:
    loss = asymmetric_loss(
        torch.tensor([[logit]], dtype=torch.float64), torch.tensor([[target]]),
        gamma_neg, gamma_pos, clip,
    )  # fmt: skip
    expected = naive_asymmetric(logit, torch.tensor(target).item(), gamma_neg, gamma_pos, clip)
    assert loss.item() == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_the_clamp_of_the_public_code_is_not_copied(parity: dict[str, Any]) -> None:
    """Without clip, a confidently wrong negative has a gradient of 1, as with BCE."""
    logits, targets = parity_inputs(12)
    asymmetric_loss(logits, targets, 0, 0, 0.0).backward()
    reference, _ = parity_inputs(12)
    F.binary_cross_entropy_with_logits(reference, targets, reduction="sum").backward()
    torch.testing.assert_close(logits.grad, reference.grad)
    theirs = parity["case_wide_gneg0_gpos0_clip0"]["results"]["asl__detached"]
    assert torch.tensor(theirs["grad"]).sub(logits.grad).abs().max() > 0.9


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6))
def test_special_cases_of_other_libraries(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(5, 3, generator=generator)
    targets = (torch.rand(5, 3, generator=generator) < 0.4).float()
    bce = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
    torch.testing.assert_close(asymmetric_loss(logits, targets, 0, 0, 0), bce)
    torch.testing.assert_close(bce_loss(logits, targets), bce)
    focal = sigmoid_focal_loss(logits, targets, alpha=-1, gamma=2, reduction="mean")
    torch.testing.assert_close(focal_loss(logits, targets, 2, "mean"), focal)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("settings_", SETTINGS)
def test_huge_logits_stay_finite(dtype: torch.dtype, settings_: tuple[float, ...]) -> None:
    values = [-3e4, -100.0, -20.0, 0.0, 20.0, 100.0, 3e4]
    logits = torch.tensor([values, values], dtype=dtype, requires_grad=True)
    targets = torch.tensor([[0.0] * 7, [1.0] * 7])
    for detach in (True, False):
        loss = asymmetric_loss(logits, targets, *settings_, detach_focus=detach)
        (grad,) = torch.autograd.grad(loss, logits)
        assert torch.isfinite(loss)
        assert torch.isfinite(grad).all()
    assert loss.dtype == torch.float32


def test_gradients_by_finite_differences() -> None:
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([[1, 0, -1, 1], [0, 0, 1, -1], [0.3, 0.7, 0, 1]])
    assert torch.autograd.gradcheck(
        lambda z: asymmetric_loss(z, targets, 4, 1, 0.05, detach_focus=False), logits
    )


ALL = [bce_loss, focal_loss, asymmetric_loss, wan_loss, hill_loss, splc_loss]


@pytest.mark.parametrize("loss_of", ALL)
def test_unknown_cells_give_nothing(loss_of: Any) -> None:
    logits = torch.randn(4, 5, requires_grad=True)
    targets = torch.randint(0, 2, (4, 5))
    unknown = torch.rand(4, 5) < 0.4
    unknown[0, 0] = True
    masked = torch.where(unknown, -1, targets)
    loss = loss_of(logits, masked, reduction="mean", label_smoothing=0.1)
    (grad,) = torch.autograd.grad(loss, logits)
    assert grad[unknown].eq(0).all()
    cells = loss_of(logits, targets, reduction="none", label_smoothing=0.1)
    torch.testing.assert_close(loss, cells[~unknown].mean())
    nothing = loss_of(logits, torch.full((4, 5), -1), reduction="mean")
    assert nothing.item() == 0


def test_label_smoothing_and_class_weights() -> None:
    logits, targets = torch.randn(4, 3), torch.randint(0, 2, (4, 3)).float()
    weights = torch.tensor([1.0, 2.0, 0.0])
    smoothed = bce_loss(logits, targets, label_smoothing=0.2, class_weights=weights)
    cells = F.binary_cross_entropy_with_logits(logits, targets * 0.8 + 0.1, reduction="none")
    torch.testing.assert_close(smoothed, (cells * weights).sum())


def test_build_loss_follows_the_recipe() -> None:
    logits, targets = torch.randn(4, 3), torch.randint(-1, 2, (4, 3))
    built = build_loss(LossConfig(name="asl", gamma_neg=2, clip=0.0, reduction="mean"))
    expected = asymmetric_loss(logits, targets, 2, 0, 0.0, "mean")
    torch.testing.assert_close(built(logits, targets), expected)
    assert "gamma_neg=2" in repr(built)
    focal = build_loss(LossConfig(name="focal", gamma_neg=3))
    torch.testing.assert_close(focal(logits, targets), focal_loss(logits, targets, 3))
    weighted = build_loss(LossConfig(name="bce"), torch.tensor([0.0, 0.0, 1.0]))
    torch.testing.assert_close(weighted(logits, targets), bce_loss(logits[:, 2:], targets[:, 2:]))


def test_wrong_shapes_and_words_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        bce_loss(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="one of sum, mean, none"):
        bce_loss(torch.zeros(2, 3), torch.zeros(2, 3), "average")  # type: ignore[arg-type]


# -- labels that nobody wrote down -------------------------------------------------------------

#: Loss, sum of the gradient's absolute values and its first four, of `parity_inputs(3)` in float64:
#: by Hill and SPLC in src/loss_functions/losses.py of github.com/xinyu1205/robust-loss-mlml at
#: e8d4eff (SPLC before and from its change_epoch on), by loss_wan in losses.py of
#: github.com/elijahcole/single-positive-multi-label at 0ea84b0, without its epsilon.
PUBLISHED = {
    "hill": (159.758826554, 57.623543598, [0.0157646, 0.0962794, 0.0105057, 0.00068]),
    "splc before": (347.283260857, 160.747667489, [0.0014219, 0.8487162, 1.1284587, 1.07e-05]),
    "splc": (104.526052357, 55.132201929, [0.0014219, -0.0350942, -0.0007399, 1.07e-05]),
    "wan": (97.704507894, 39.242711582, [0.0041411, 0.0403255, 0.049307, 0.0008047]),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parity_of_losses_for_missing_labels(name: str) -> None:
    loss_of: Any = {
        "hill": hill_loss,
        "splc before": partial(splc_loss, corrects=False),
        "splc": splc_loss,
        "wan": wan_loss,
    }[name]
    logits, targets = parity_inputs(3, torch.float64)
    loss = loss_of(logits, targets)
    loss.backward()
    expected, total, first = PUBLISHED[name]
    assert loss.item() == pytest.approx(expected, rel=1e-7)
    assert logits.grad is not None
    assert logits.grad.abs().sum().item() == pytest.approx(total, rel=1e-7)
    assert logits.grad[0, :4].tolist() == pytest.approx(first, abs=1e-6)


@settings(deadline=None)
@given(st.floats(-60, 60), st.floats(0, 1), st.sampled_from([hill_loss, splc_loss, wan_loss]))
def test_soft_targets_are_a_mean_of_hard_ones(logit: float, target: float, loss_of: Any) -> None:
    """So mixed images and a teacher's probabilities are learnt alike."""
    logits = torch.full((1, 3), logit, dtype=torch.float64, requires_grad=True)
    soft, negative, positive = (
        loss_of(logits, torch.full((1, 3), value, dtype=torch.float64))
        for value in (target, 0.0, 1.0)
    )
    torch.testing.assert_close(soft, target * positive + (1 - target) * negative)
    (grad,) = torch.autograd.grad(soft, logits)
    assert torch.isfinite(grad).all()


def test_splc_corrects_labels_from_the_second_epoch_on() -> None:
    logits, targets = torch.tensor([[2.0, -2.0]]), torch.tensor([[0.0, 0.0]])
    built = build_loss(LossConfig(name="splc", tau=0.7))
    (before, _), (after, cells) = (built.per_image(logits, targets, epoch) for epoch in (0, 1))
    assert before == pytest.approx(splc_loss(logits, targets, corrects=False).item())
    assert after == pytest.approx(splc_loss(logits, targets).item())
    assert after < before
    assert cells.tolist() == [2]
    strict = build_loss(LossConfig(name="splc", tau=0.9))
    assert strict.per_image(logits, targets, 1)[0] == before


# -- one label an image ------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_is_torchs_on_soft_targets(
    smoothing: float, reduction: str, weighted: bool
) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = (5 * torch.randn(6, 9, generator=generator)).requires_grad_()
    targets = torch.rand(6, 9, generator=generator).softmax(1)
    targets[0] = F.one_hot(torch.tensor(4), 9)
    weights = torch.rand(9, generator=generator) if weighted else None
    loss = build_loss(
        LossConfig(name="ce", label_smoothing=smoothing, reduction=reduction), weights
    )(logits, targets)
    (own,) = torch.autograd.grad(loss, logits)
    expected = F.cross_entropy(logits, targets, weights, label_smoothing=smoothing,
                               reduction=reduction)  # fmt: skip
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(own, torch.autograd.grad(expected, logits)[0])
    terms = ce_loss(logits, targets, "none", label_smoothing=smoothing, class_weights=weights)
    torch.testing.assert_close(
        terms.sum(1),
        F.cross_entropy(logits, targets, weights, label_smoothing=smoothing, reduction="none"),
    )


def test_cross_entropy_passes_over_broken_images() -> None:
    logits, targets = torch.randn(4, 3), torch.eye(4, 3)
    targets[3], targets[1, 2] = torch.tensor([0.0, 1.0, 0.0]), -1
    kept = [0, 2, 3]
    expected = F.cross_entropy(logits[kept], targets[kept])
    torch.testing.assert_close(ce_loss(logits, targets, "mean"), expected)
    targets[:] = -1
    assert ce_loss(logits.requires_grad_(), targets, "mean").item() == 0

"""Where in a picture the evidence for a label lies, and whether that is in the label's boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mltr.data.images import Region
from mltr.diagnosis import METHODS
from mltr.errors import BrokenImage, MltrError, UsageError
from mltr.machine.threads import on_one_thread
from mltr.network.backbones import TimmBackbone, to_maps
from mltr.network.model import (
    Block,
    CrossWindowAttention,
    MlTr,
    PatchMerging,
    PixelAttention,
    Stage,
    merge_windows,
    pad_to_multiple,
    partition_windows,
)

if TYPE_CHECKING:
    from mltr.predict.predictor import Prediction, Predictor

EXACT = 1e-3  #: tolerance of the sum of a timm network's terms, relative to the largest logit
GRID = 64  #: side of the grid for maxima and boxes of --pointing, in cells
RESAMPLES = 1000  #: bootstrap resamples of the cases of --pointing


@dataclass(frozen=True)
class Explanation:
    """The evidence for one label, by position."""

    label: str
    prob: float
    logit: float
    heat: NDArray[np.float32]  #: [height, width] of the picture, or smaller in proportion
    cells: NDArray[np.float32]  #: [h, w]: the same on the network's own grid
    is_exact: bool  #: whether the cells sum to the logit minus the bias


# -- evidence ----------------------------------------------------------------------------------


def evidence_maps(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Return logits [B, K], maps [B, K, h, w], and whether the maps sum to the logits.

    Raises `UsageError` for a timm network whose logits aren't a sum over positions.
    """
    if isinstance(model, MlTr | TimmBackbone):
        features = model.forward_features(images)
        head: Any = model.head
        return model.forward_head(features), head.class_maps(features), head.exact_class_maps
    plain: Any = model
    classifier = plain.get_classifier() if hasattr(plain, "get_classifier") else None
    logits: Tensor = plain(images)
    if isinstance(classifier, nn.Linear):
        features = to_maps(plain, plain.forward_features(images))
        if features.shape[3] == classifier.in_features:
            shares = classifier(features) / (features.shape[1] * features.shape[2])
            maps = shares.permute(0, 3, 1, 2)
            error = (maps.sum(dim=(2, 3)) - logits).abs().max()
            if error <= EXACT * logits.abs().max().clamp(min=1):
                return logits, maps, True
    raise UsageError(
        f"the logits of {type(model).__name__} are not a sum over positions (a class token, or "
        "another pooling), so there are no exact maps; train it with --model.head csra or "
        "ml_decoder"
    )


@torch.inference_mode()
def has_maps(predictor: Predictor) -> bool:
    """Whether `explain` has maps for a network; a plain one of timm's is tried on a black image."""
    if not predictor.has_model:
        return False
    if isinstance(predictor.model, MlTr | TimmBackbone):
        return True
    side = predictor.preprocess.image_size
    try:
        with on_one_thread():  # a server runs the network in another thread
            evidence_maps(predictor.model, torch.zeros(1, 3, side, side, device=predictor.device))
    except UsageError:
        return False
    return True


# -- rollout -----------------------------------------------------------------------------------


def pixel_weights(attention: PixelAttention, maps: Tensor, is_pixel: Tensor | None) -> Tensor:
    """Return the attention among the pixels of each window: [B, N, heads, P, P]."""
    B, _, _, C = maps.shape
    w, heads = attention.window_size, attention.num_heads
    windows = partition_windows(maps, w)
    N = windows.shape[1]
    qkv = attention.qkv(windows).view(B, N, w * w, 3, heads, -1)
    query, key, _ = qkv.permute(3, 0, 1, 4, 2, 5)
    scores = query @ key.transpose(-2, -1) * (C // heads) ** -0.5 + attention.position_bias()
    if is_pixel is not None:
        scores = scores.masked_fill(~is_pixel[:, None, None, :], float("-inf"))
    weights: Tensor = scores.softmax(dim=-1)
    return weights


def cross_weights(attention: CrossWindowAttention, maps: Tensor) -> Tensor:
    """Return the attention among windows for each channel: [B, C, N, N]."""
    tokens = partition_windows(maps, attention.window_size).permute(0, 3, 1, 2)
    query, key, _ = attention.qkv(tokens).chunk(3, dim=-1)
    weights: Tensor = (query @ key.transpose(-2, -1) / attention.window_size).softmax(dim=-1)
    return weights


def _pass_back(block: Block, shares: Tensor, maps: Tensor) -> Tensor:
    """Return the shares [H, W] of a block's input from those of its output; `maps` [1, H, W, C].

    Half passes through the residual connection. Heads and channels have equal weight. In
    cross-window attention, the pixels of an attended window get shares in proportion to the
    absolute product of value and projection weights.
    """
    attention, normed = block.attn, block.norm1(maps)
    w, (H, W) = attention.window_size, shares.shape
    padded = pad_to_multiple(normed, w)
    windows = partition_windows(pad_to_multiple(shares[None, :, :, None], w), w)[0, :, :, 0]
    if isinstance(attention, PixelAttention):
        real = partition_windows(pad_to_multiple(torch.ones_like(maps[..., :1]), w), w)[0, :, :, 0]
        weights = pixel_weights(attention, padded, real > 0)[0].mean(dim=1)
        passed = torch.einsum("np,npq->nq", windows, weights)
    else:
        weights = cross_weights(attention, padded)[0].mean(dim=0)
        value = attention.qkv.weight.chunk(3)[2]
        taken = (attention.proj.weight @ value).abs()
        taken = taken / taken.sum(dim=1, keepdim=True).clamp(min=1e-12)
        passed = torch.einsum("np,nm,pq->mq", windows, weights, taken)
    back = merge_windows(passed[None, :, :, None], w, *padded.shape[1:3])[0, :H, :W, 0]
    back = back / back.sum().clamp(min=1e-12) * shares.sum()  # restore what fell on padding
    return (shares + back) / 2


@torch.inference_mode()
def roll_out(model: MlTr, image: Tensor, shares: Tensor) -> Tensor:
    """Return the shares of one image's patches [H/4, W/4] from those of the final map [h, w].

    The sum of the shares is preserved. Convolutions are treated as the identity, since they only
    see their neighbours.
    """
    steps: list[tuple[nn.Module, Tensor]] = []
    maps = model.embed(image[None])
    for stage in model.stages:
        assert isinstance(stage, Stage)
        for step in (stage.merge, *stage.blocks):
            steps.append((step, maps))
            maps = step.on_maps(maps) if isinstance(step, Block) else step(maps)
    for step, before in reversed(steps):
        if isinstance(step, Block):
            shares = _pass_back(step, shares, before)
        elif isinstance(step, PatchMerging):
            H, W = before.shape[1:3]
            quarter = shares.repeat_interleave(2, 0).repeat_interleave(2, 1)[:H, :W]
            shares = quarter / quarter.sum().clamp(min=1e-12) * shares.sum()
    return shares


# -- one picture -------------------------------------------------------------------------------


@torch.inference_mode()
def explain(
    predictor: Predictor,
    image: Any,
    labels: Sequence[str] | None = None,
    method: str = "evidence",
    longest: int | None = None,
    most: int | None = None,
) -> list[Explanation]:
    """Explain the given labels, or all labels at or above their thresholds, `most` of them at most.

    `image` is anything that a `Predictor` accepts. If no label reaches its threshold, the most
    probable one is explained. Maps have the size of the picture, or at most `longest` pixels per
    side. Raises `BrokenImage`, and `UsageError` for an unknown label or a network that the method
    doesn't support.
    """
    from mltr.predict.predictor import to_image
    from mltr.weights.metadata import to_probs

    if method not in METHODS:
        raise UsageError(f"method {method!r} is not one of {', '.join(METHODS)}")
    picture = to_image(image)
    batch = _to_batch(predictor, image)
    logits, maps, is_exact = evidence_maps(predictor.model, batch)
    probs = to_probs(logits.float().cpu().numpy(), predictor.calibration)[0]
    prediction = predictor.to_prediction(probs)
    shrunk = min(1.0, longest / max(picture.size)) if longest else 1.0
    W, H = (max(1, round(side * shrunk)) for side in picture.size)
    left, top, right, bottom = (round(edge) for edge in predictor.preprocess.view((W, H)))
    size = (max(1, bottom - top), max(1, right - left))
    found = []
    for index in _choose(prediction, labels)[:most]:
        cells = maps[0, index].float()
        if method == "rollout":
            cells = _rolled_out(predictor.model, batch[0], cells)
        heat = F.interpolate(cells[None, None], size, mode="bicubic", align_corners=False)[0, 0]
        # The parts of the picture that the network doesn't see have no evidence.
        heat = F.pad(heat, (left, W - left - size[1], top, H - top - size[0]))
        found.append(
            Explanation(
                predictor.classes[index],
                float(prediction.probs[index]),
                float(logits[0, index]),
                heat.cpu().numpy(),
                cells.cpu().numpy(),
                is_exact and method == "evidence",
            )
        )
    return found


def _to_batch(predictor: Predictor, image: Any) -> Tensor:
    """Return the network's input for an image, as in prediction: [1, 3, S, S]."""
    pixels = predictor.preprocess.scale(predictor.read(image))
    return torch.from_numpy(pixels)[None].to(predictor.device)


def _choose(prediction: Prediction, labels: Sequence[str] | None) -> list[int]:
    from mltr.data.records import indices_of

    names = labels or [name for name, _ in prediction.labels or prediction.top(1)]
    return indices_of(names, prediction.classes, "--label")


def _rolled_out(model: nn.Module, image: Tensor, cells: Tensor) -> Tensor:
    if not isinstance(model, MlTr):
        raise UsageError(
            f"--method rollout works only with MlTr networks, not with {type(model).__name__}: use "
            "--method evidence"
        )
    shares = cells.clamp(min=0)
    if not shares.any():  # no positive evidence: trace all positions
        shares = torch.ones_like(cells)
    return roll_out(model, image, shares / shares.sum())


# -- pointing ----------------------------------------------------------------------------------


@torch.inference_mode()
def pointing_game(predictor: Predictor, records: Sequence[Any], classes: Sequence[str]) -> Any:
    """Return how often the maximum of a label's map lies in one of its objects, as plain values.

    A case is an image and a class with boxes (except difficult objects and crowds). Baselines are
    the centre of the picture and a random position. Images that can't be read are listed under
    ``broken``. Raises `MltrError` if there are no boxes.
    """
    from mltr.predict.predictor import to_image

    cases: list[tuple[int, float, float, float]] = []
    broken = []
    for record in records:
        boxes = [box for box in record.boxes or () if not (box.difficult or box.crowd)]
        if not boxes:
            continue
        try:
            picture = to_image(record.image)
            batch = _to_batch(predictor, record.image)
        except BrokenImage as error:
            broken.append(str(error))
            continue
        view = predictor.preprocess.view(picture.size)
        _, maps, _ = evidence_maps(predictor.model, batch)
        for k in sorted({box.class_index for box in boxes}):
            inside = _draw_boxes([b for b in boxes if b.class_index == k], view)
            fine = F.interpolate(maps[:, k : k + 1].float(), (GRID, GRID), mode="bicubic")
            hit = inside.flatten()[int(fine.flatten().argmax())]
            middle = inside[GRID // 2 - 1 : GRID // 2 + 1, GRID // 2 - 1 : GRID // 2 + 1].mean()
            cases.append((k, float(hit), float(middle), float(inside.mean())))
    if not cases:
        raise MltrError("no image that can be read has boxes, which --pointing needs")
    return _summarise(np.array(cases), classes) | {"broken": broken}


def _draw_boxes(boxes: Sequence[Any], view: Region) -> NDArray[np.float64]:
    """Return 1 for the cells of a grid over the network's view of a picture that lie in a box."""
    centres = (np.arange(GRID) + 0.5) / GRID
    inside = np.zeros((GRID, GRID))
    x, y, end_x, end_y = view
    for box in boxes:
        left, top = (box.x - x) / (end_x - x), (box.y - y) / (end_y - y)
        right, bottom = left + box.width / (end_x - x), top + box.height / (end_y - y)
        rows = (centres >= top) & (centres <= bottom)
        columns = (centres >= left) & (centres <= right)
        inside[np.ix_(rows, columns)] = 1
    return inside


def _summarise(cases: NDArray[np.float64], classes: Sequence[str]) -> dict[str, Any]:
    columns = {"hit": 1, "centre": 2, "random": 3}

    def means(rows: NDArray[np.float64]) -> dict[str, float]:
        return {name: float(rows[:, column].mean()) for name, column in columns.items()}

    generator = np.random.default_rng(0)
    drawn = generator.integers(0, len(cases), (RESAMPLES, len(cases)))
    low, high = np.percentile(cases[drawn, 1].mean(axis=1), [2.5, 97.5])
    per_class = {
        name: means(cases[cases[:, 0] == k]) | {"cases": int((cases[:, 0] == k).sum())}
        for k, name in enumerate(classes)
        if (cases[:, 0] == k).any()
    }
    return means(cases) | {
        "low": float(low),
        "high": float(high),
        "cases": len(cases),
        "classes": per_class,
    }

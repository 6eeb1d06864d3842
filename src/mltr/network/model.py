"""The whole network, bottom-up: windows, the two attentions, block, triple, stage, MlTr.

Shapes: B batch, H W height and width of a feature map, C channels, w window size,
N = (H/w)(W/w) windows, P = w*w pixels of a window, K classes. Maps are B H W C.

Sources: MlTr (arXiv 2106.06195) for the modules, CAT (arXiv 2106.05786), by the same authors,
for the details; what is ours says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from itertools import chain, groupby
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.layers import DropPath, trunc_normal_
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from mltr.errors import UsageError
from mltr.machine.precision import slow_cpu_types, type_under_autocast, without_autocast
from mltr.network.backbones import checkpoint_parts, create_timm, timm_image_size
from mltr.network.heads import HEADS, AverageHead, make_head
from mltr.network.variants import VARIANTS, Attention, Variant, get_variant

BlockKind = Literal["pixel", "cross"]

#: Windows up to which the scores between them are kept whole: two products are then faster than
#: fused attention on a CPU, whose heads would be as many as there are channels.
LARGEST_PRODUCT = 256

#: Numbers in the maps that a stage works on at a time. The largest activation, four times as wide,
#: then stays in the cache of a CPU, and in memory that the process has got already.
SLICE = 2 * 56 * 56 * 96

WIDEST_TRIPLE = 384  #: channels that head mltr works on, however many the backbone has

# The triple of CAT, and the two ablations: same number of blocks, one kind of attention.
TRIPLES: dict[Attention, tuple[BlockKind, BlockKind, BlockKind]] = {
    "both": ("pixel", "cross", "pixel"),
    "pixel": ("pixel", "pixel", "pixel"),
    "cross": ("cross", "cross", "cross"),
}


def partition_windows(maps: Tensor, w: int) -> Tensor:
    """Cut maps [B, H, W, C] into windows [B, N, P, C], row by row; w divides H and W."""
    B, H, W, C = maps.shape
    windows = maps.view(B, H // w, w, W // w, w, C).transpose(2, 3)
    return windows.reshape(B, (H // w) * (W // w), w * w, C)


def merge_windows(windows: Tensor, w: int, H: int, W: int) -> Tensor:
    """Put windows [B, N, P, C] together to maps [B, H, W, C]; undoes `partition_windows`."""
    B, _, _, C = windows.shape
    maps = windows.view(B, H // w, W // w, w, w, C).transpose(2, 3)
    return maps.reshape(B, H, W, C)


def pad_to_multiple(maps: Tensor, w: int) -> Tensor:
    """Pad maps [B, H, W, C] with zeros at the bottom and the right until w divides H and W."""
    H, W = maps.shape[1:3]
    bottom, right = -H % w, -W % w
    return F.pad(maps, (0, 0, 0, right, 0, bottom)) if bottom or right else maps


class PixelAttention(nn.Module):
    """Self-attention over the P pixels of each window, with relative position bias."""

    def __init__(self, dim: int, window_size: int, head_dim: int) -> None:
        super().__init__()
        self.window_size = window_size
        self.num_heads = dim // head_dim
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(
            torch.zeros((2 * window_size - 1) ** 2, self.num_heads)
        )
        trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", self._index(), persistent=False)
        self.relative_position_index: Tensor

    def _index(self) -> Tensor:
        """Row of the bias table for each (query, key) pair of pixels: integers [P, P]."""
        w = self.window_size
        pixels = torch.cartesian_prod(torch.arange(w), torch.arange(w)).view(-1, 2)
        offset = pixels[:, None] - pixels[None, :] + (w - 1)
        return offset[..., 0] * (2 * w - 1) + offset[..., 1]

    def position_bias(self) -> Tensor:
        """What is added to the attention scores: [heads, P, P]."""
        bias = self.relative_position_bias_table[self.relative_position_index]
        return bias.permute(2, 0, 1)

    def forward(self, windows: Tensor, is_pixel: Tensor | None = None) -> Tensor:
        """Map windows [B, N, P, C] to the same shape.

        `is_pixel` [N, P] is False where a pixel is padding, which no pixel may attend to.
        """
        B, N, P, C = windows.shape
        heads = self.num_heads
        qkv = self.qkv(windows).view(-1, P, 3, heads, C // heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # BN heads P C/heads
        bias = self.position_bias().to(query.dtype).unsqueeze(0)
        if is_pixel is not None:
            bias = bias.masked_fill(~is_pixel[:, None, None, :], float("-inf"))
            bias = bias.repeat(B, 1, 1, 1)
        if bias.requires_grad and bias.device.type != "cuda":
            # No fused kernel gives the bias its gradient there; torch's fallback does more work.
            scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1) + bias
            mixed = scores.softmax(dim=-1) @ value
        else:
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        projected: Tensor = self.proj(mixed.transpose(1, 2).reshape(B, N, P, C))
        return projected


class CrossWindowAttention(nn.Module):
    """Self-attention between windows, separately in each channel.

    The tokens are the N windows, the features of a token x the P pixel values of that channel. All
    channels and windows share the weights, so their number does not grow with C, and each pixel
    sees the whole image. One head of size P, no position bias.

    Computed with two products of size P x P in place of four. In a row of scores, what depends on
    the query alone cancels in the softmax, so q.k becomes (A x + u).x' with A = Wk^T Wq and
    u = Wk^T bq; and as its weights add up to 1, projection and values become one product,
    M = Wp Wv. Forward and backward are those of the plain form, which the tests compare with.
    """

    def __init__(self, window_size: int) -> None:
        super().__init__()
        P = window_size**2
        self.window_size = window_size
        self.qkv = nn.Linear(P, 3 * P)
        self.proj = nn.Linear(P, P)

    def _products(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return A [P, P] and u [P], times the scale P^-0.5; M [P, P] and its bias [P].

        In float32 at least: a product of products would round twice.
        """
        wide = torch.promote_types(self.qkv.weight.dtype, torch.float32)
        query, key, value = self.qkv.weight.to(wide).chunk(3)
        query_bias, _, value_bias = self.qkv.bias.to(wide).chunk(3)
        projection, bias = self.proj.weight.to(wide), self.proj.bias.to(wide)
        scale = 1 / self.window_size
        score = (scale * key.T @ query, scale * query_bias @ key)
        return *score, projection @ value, projection @ value_bias + bias

    def forward(self, windows: Tensor, is_pixel: Tensor | None = None) -> Tensor:
        """Map windows [B, N, P, C] to the same shape; padded pixels hold zeros."""
        B, N, P, C = windows.shape
        windows = windows.to(type_under_autocast(windows))
        with without_autocast(windows.device.type):
            A, u, M, bias = (weight.to(windows.dtype) for weight in self._products())
            tokens = windows.permute(0, 3, 1, 2).reshape(B * C, N, P)
            mixed = F.linear(self._mix(tokens, A, u), M, bias)
        return mixed.view(B, C, N, P).permute(0, 2, 3, 1)

    @staticmethod
    def _mix(tokens: Tensor, A: Tensor, u: Tensor) -> Tensor:
        """Return the tokens [BC, N, P], each a weighted mean of all N."""
        N = tokens.shape[1]
        if N == 1:  # attends to itself alone
            return tokens
        queries = F.linear(tokens, A, u)
        if N > LARGEST_PRODUCT:
            return F.scaled_dot_product_attention(queries, tokens, tokens, scale=1.0)
        scores = torch.bmm(queries, tokens.transpose(1, 2))
        return torch.bmm(scores.softmax(dim=-1), tokens)


def _may_slice(maps: Tensor) -> bool:
    """Tell whether a stage may take its batch in slices: in inference on a CPU, uncompiled."""
    if torch.is_grad_enabled() or maps.device.type != "cpu":
        return False
    is_tracing = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return not is_tracing and not torch.compiler.is_compiling()


class Mlp(nn.Module):
    """Two linear layers with GELU between them, in place if no gradient needs its input."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, features: Tensor) -> Tensor:
        """Map features [..., C] to the same shape."""
        hidden = self.fc1(features)
        hidden = F.gelu(hidden) if torch.is_grad_enabled() else torch.ops.aten.gelu_(hidden)
        mapped: Tensor = self.fc2(hidden)
        return mapped


class Block(nn.Module):
    """Pre-norm residual block: attention in or between windows, then an MLP."""

    def __init__(
        self, kind: BlockKind, dim: int, window_size: int, variant: Variant, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn: PixelAttention | CrossWindowAttention
        if kind == "pixel":
            self.attn = PixelAttention(dim, window_size, variant.head_dim)
        else:
            self.attn = CrossWindowAttention(window_size)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * variant.mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def attend(self, windows: Tensor, is_pixel: Tensor | None = None) -> Tensor:
        """Attend in or between the normalised windows [B, N, P, C].

        Where `is_pixel` [N, P] is False there is padding: it is set to zero on every call anew,
        so no real pixel's output depends on it.
        """
        if is_pixel is not None:
            windows = windows * is_pixel[:, :, None].to(windows.dtype)
        attended: Tensor = self.attn(windows, is_pixel)
        return attended

    def forward(self, windows: Tensor, is_pixel: Tensor | None = None) -> Tensor:
        """Map windows [B, N, P, C] to the same shape."""
        windows = windows + self.drop_path(self.attend(self.norm1(windows), is_pixel))
        residual: Tensor = self.drop_path(self.mlp(self.norm2(windows)))
        return windows + residual

    def on_maps(self, maps: Tensor) -> Tensor:
        """Do the same to maps [B, H, W, C]."""
        return in_windows(self.attn.window_size, maps, self)


def in_windows(w: int, maps: Tensor, transform: Callable[..., Tensor]) -> Tensor:
    """Let `transform(windows, is_pixel)` change maps [B, H, W, C], cut into windows of side w.

    Maps are padded for that, and cropped afterwards; `is_pixel` [N, P] is None without padding.
    """
    H, W = maps.shape[1:3]
    padded = pad_to_multiple(maps, w)
    is_pixel = None
    if padded.shape != maps.shape:
        real = pad_to_multiple(maps.new_ones((1, H, W, 1)), w)
        is_pixel = partition_windows(real, w)[0, :, :, 0] > 0
    windows = transform(partition_windows(padded, w), is_pixel)
    return merge_windows(windows, w, padded.shape[1], padded.shape[2])[:, :H, :W]


class PatchMerging(nn.Module):
    """Halve the map: concatenate 2x2 neighbours, normalise, and project from 4C to 2C channels.

    The neighbours stand in the order (even row, even column), (odd, even), (even, odd),
    (odd, odd), as in CAT and Swin. An odd side is padded with zeros.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Map [B, H, W, C] to [B, H/2, W/2, 2C]."""
        maps = pad_to_multiple(maps, 2)
        B, H, W, C = maps.shape
        cells = maps.view(B, H // 2, 2, W // 2, 2, C).permute(0, 1, 3, 4, 2, 5)
        reduced: Tensor = self.reduction(self.norm(cells.reshape(B, H // 2, W // 2, 4 * C)))
        return reduced


class Residual3x3(nn.Module):
    """Residual block of two 3x3 convolutions on maps [B, H, W, C]. Ours, for `mltr_nano`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(dim, dim, 3, padding=1, bias=False),
            nn.BatchNorm2d(dim),
            nn.ReLU(inplace=True),
            nn.Conv2d(dim, dim, 3, padding=1, bias=False),
            nn.BatchNorm2d(dim),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Map [B, H, W, C] to the same shape."""
        residual = self.convs(maps.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return F.relu(maps + residual)


class ConvPosition(nn.Module):
    """Position from the neighbours of a pixel: a residual depthwise 3x3 convolution.

    Conditional position encoding (arXiv 2102.10882); only used in `mltr_nano`.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, maps: Tensor) -> Tensor:
        """Map [B, H, W, C] to the same shape."""
        shift: Tensor = self.conv(maps.permute(0, 3, 1, 2))
        return maps + shift.permute(0, 2, 3, 1)


class Stage(nn.Module):
    """Patch merging (but for the first stage), then `depth` triples of blocks at one stride."""

    def __init__(self, index: int, variant: Variant, drop_paths: list[float]) -> None:
        super().__init__()
        dim = variant.embed_dim * 2**index
        window_size = variant.stage_window(index)
        self.merge = PatchMerging(dim // 2) if index > 0 else nn.Identity()
        blocks: list[nn.Module] = []
        blocks += [Residual3x3(dim) for _ in range(sum(variant.conv_depths[index : index + 1]))]
        rates = iter(drop_paths)
        for _ in range(variant.depths[index]):
            if variant.conv_position:
                blocks.append(ConvPosition(dim))
            for kind in TRIPLES[variant.attention]:
                blocks.append(Block(kind, dim, window_size, variant, next(rates)))
        self.blocks = nn.ModuleList(blocks)
        self.grad_checkpointing = False

    def forward(self, maps: Tensor) -> Tensor:
        """Map [B, H, W, C/2] to [B, H/2, W/2, C] (the first stage keeps its shape).

        A few images at a time where that is faster and no gradients tie them together.
        """
        if not _may_slice(maps):  # asked first: an exported graph has no one batch size
            return self._forward(maps)
        count = max(1, SLICE // math.prod(maps.shape[1:]))
        if count >= len(maps):
            return self._forward(maps)
        return torch.cat([self._forward(part) for part in torch.split(maps, count)])

    def _forward(self, maps: Tensor) -> Tensor:
        maps = self.merge(maps)
        for _, members in groupby(self.blocks, key=lambda part: isinstance(part, Block)):
            parts = list(members)
            first = parts[0]
            if isinstance(first, Block):  # all of them stay in windows
                maps = in_windows(first.attn.window_size, maps, partial(self._run, parts))
            else:
                maps = self._run(parts, maps)
        return maps

    def _run(self, parts: list[nn.Module], values: Tensor, *rest: Tensor | None) -> Tensor:
        for part in parts:
            # Batch norms of other parts would count the batch twice.
            if self.grad_checkpointing and self.training and isinstance(part, Block):
                values = checkpoint(part, values, *rest, use_reentrant=False)
            else:
                values = part(values, *rest)
        return values


class PatchEmbedding(nn.Module):
    """Images [B, 3, H, W] to maps [B, H/4, W/4, C]: 4x4 patches, or a convolutional stem."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        dim = variant.embed_dim
        if variant.conv_stem:
            self.proj: nn.Module = nn.Sequential(
                nn.Conv2d(variant.in_chans, dim, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(dim),
                nn.ReLU(inplace=True),
                nn.Conv2d(dim, dim, 3, stride=2, padding=1),
            )
        else:
            self.proj = nn.Conv2d(variant.in_chans, dim, 4, stride=4)
        self.norm = nn.LayerNorm(dim)
        self.position: nn.Parameter | None = None
        if variant.absolute_position:
            H, W = (-(-side // 4) for side in variant.image_hw)
            self.position = nn.Parameter(torch.zeros(1, H, W, dim))
            trunc_normal_(self.position, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """Embed images, padded with zeros to a multiple of 4, and add where each patch is."""
        H, W = images.shape[2:]
        if H % 4 or W % 4:
            images = F.pad(images, (0, -W % 4, 0, -H % 4))
        maps: Tensor = self.norm(self.proj(images).permute(0, 2, 3, 1))
        if self.position is not None:
            maps = maps + resize_position(self.position, (maps.shape[1], maps.shape[2]))
        return maps


def resize_position(position: Tensor, size: tuple[int, int]) -> Tensor:
    """Resample a position embedding [1, H, W, C] bicubically to another height and width."""
    if tuple(position.shape[1:3]) == size:
        return position
    resized = F.interpolate(
        position.permute(0, 3, 1, 2).float(), size, mode="bicubic", align_corners=False
    )
    return resized.permute(0, 2, 3, 1).to(position.dtype)


class MlTr(nn.Module):
    """The network: embedding, stages, norm, and a head that gives one logit per class."""

    def __init__(
        self,
        variant: Variant,
        num_classes: int,
        head: str = "average",
        head_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        #: on a CPU, computed in float32 instead; asked here, where nothing traces it
        self.slow_types = slow_cpu_types()
        self.variant = variant
        self.num_classes = num_classes
        self.embed = PatchEmbedding(variant)
        blocks_per_stage = [3 * depth for depth in variant.depths]
        last = max(1, sum(blocks_per_stage) - 1)
        rates = [variant.drop_path * number / last for number in range(sum(blocks_per_stage))]
        self.stages = nn.ModuleList()
        for index, count in enumerate(blocks_per_stage):
            start = sum(blocks_per_stage[:index])
            self.stages.append(Stage(index, variant, rates[start : start + count]))
        self.num_features = variant.embed_dim * 2 ** (len(variant.depths) - 1)
        self.norm = nn.LayerNorm(self.num_features)
        map_side = -(-max(variant.image_hw) // (4 * 2 ** (len(variant.depths) - 1)))
        self.head = make_head(
            head, self.num_features, num_classes, map_side, **(head_options or {})
        )
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, K] for images [B, 3, H, W] of any size.

        Where they would be in a type that this processor is slower in, often many times,
        everything is computed in float32, which is no less exact.
        """
        weight = next(self.parameters())
        wanted = type_under_autocast(weight)
        if weight.device.type != "cpu" or wanted not in self.slow_types:
            return self.forward_head(self.forward_features(images))
        with without_autocast("cpu"):
            logits: Tensor = functional_call(self, self._to_float(), images.float())
        return logits.to(wanted)

    def _to_float(self) -> dict[str, Tensor]:
        tensors = chain(self.named_parameters(), self.named_buffers())
        return {name: tensor.float() for name, tensor in tensors if tensor.dtype in self.slow_types}

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the final normalised map [B, H, W, C]."""
        return self.forward_maps(images)["final"]

    def forward_head(self, maps: Tensor) -> Tensor:
        """Return logits [B, K] for the final normalised map [B, H, W, C]."""
        logits: Tensor = self.head(maps)
        return logits

    def forward_maps(self, images: Tensor) -> dict[str, Tensor]:
        """Return the named maps [B, H, W, C]: `embed`, `stage1`, ..., and `final`, normalised."""
        latest = self.embed(images)
        maps = {"embed": latest}
        for number, stage in enumerate(self.stages, start=1):
            latest = maps[f"stage{number}"] = stage(latest)
        maps["final"] = self.norm(latest)
        return maps

    def no_weight_decay(self) -> set[str]:
        """Names of position tables and queries, which weight decay should leave alone."""
        endings = ("embed.position", "relative_position_bias_table", "head.queries")
        return {name for name, _ in self.named_parameters() if name.endswith(endings)}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass: less memory for more time."""
        checkpoint_parts(self, enable)


def _initialise(module: nn.Module) -> None:
    """Truncated normal of 0.02 for linear weights (CAT), He initialisation for convolutions."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) and module.groups == 1:
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class TripleHead(nn.Module):
    """Triples of MlTr's blocks on the final map of any backbone, then average and linear layer.

    `depth` triples work on `dim` channels (by default the map's, at most 384, else projected), in
    windows of side `window_size`: by default four windows cover the map, so that the attention
    between windows has something to compare. Maps of any size are padded and cropped.
    """

    exact_class_maps = True

    def __init__(
        self, num_features: int, num_classes: int, depth: int = 1, window_size: int = 0,
        dim: int = 0, drop_path: float = 0.0, map_side: int = 7,
    ) -> None:  # fmt: skip
        super().__init__()
        if depth < 1:
            raise UsageError(f"head mltr: depth={depth} must be at least 1")
        if dim % 32:
            raise UsageError(f"head mltr: dim={dim} must be a multiple of 32")
        variant = Variant(
            dim or max(32, min(num_features, WIDEST_TRIPLE) // 32 * 32), (depth,),
            window_size or max(2, -(-map_side // 2)), 4 * map_side, drop_path=drop_path,
        )  # fmt: skip
        dim, last = variant.embed_dim, 3 * depth - 1
        self.proj = nn.Linear(num_features, dim) if dim != num_features else nn.Identity()
        self.stage = Stage(0, variant, [drop_path * number / last for number in range(last + 1)])
        self.norm = nn.LayerNorm(dim)
        self.classifier = AverageHead(dim, num_classes)
        self.apply(_initialise)

    def class_axes(self) -> dict[str, int | None]:
        """Return the axis of the classes in each entry that has one."""
        return {"classifier.weight": 0, "classifier.bias": 0}

    def _attend(self, maps: Tensor) -> Tensor:
        features: Tensor = self.norm(self.stage(self.proj(maps)))
        return features

    def forward(self, maps: Tensor) -> Tensor:
        """Return logits [B, K] for maps [B, H, W, C]."""
        logits: Tensor = self.classifier(self._attend(maps))
        return logits

    def class_maps(self, maps: Tensor) -> Tensor:
        """Return the share of each logit that each place has after the triples: [B, K, H, W]."""
        return self.classifier.class_maps(self._attend(maps))


HEADS["mltr"] = (TripleHead, {})


def create_model(
    name: str,
    num_classes: int = 80,
    head: str = "average",
    head_options: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> nn.Module:
    """Return a randomly initialised network that maps images [B, 3, H, W] to logits [B, K].

    `name` is a variant (`list_models()`) or ``timm/NAME`` for any timm backbone. `overrides`
    replace fields of the variant, or are arguments of the backbone. `head` is average, csra,
    query2label, ml_decoder (see `heads.py`, also for `head_options`) or mltr (see `TripleHead`);
    with average, a timm backbone keeps its own head. Without classes, the network returns its
    pooled features. Raises `UsageError` for an unknown name or option.
    """
    if num_classes < 0:
        raise UsageError(f"num_classes={num_classes} must not be negative")
    if name.startswith("timm/"):
        plain = name.removeprefix("timm/")
        return create_timm(plain, num_classes, head, head_options or {}, **overrides)
    return MlTr(get_variant(name, **overrides), num_classes, head, head_options)


def default_image_size(name: str) -> int:
    """Return the default image side of a model, in pixels."""
    if name.startswith("timm/"):
        return timm_image_size(name.removeprefix("timm/"))
    return max(get_variant(name).image_hw)


def list_models() -> list[str]:
    """Return the names of the variants."""
    return list(VARIANTS)

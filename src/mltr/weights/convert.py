"""Load weights of other projects, with a report of what came from where.

Two public families fit MlTr's blocks: CAT (arXiv 2106.05786), its sibling, whose blocks are the
same; and Swin (arXiv 2103.14030), whose blocks without their shift are pixel blocks. If the network
has more blocks than the file, the file's blocks are spread evenly, from first to last, and the
blocks between them start as identity (their output projections are zero). If it has fewer, that
many of the file's blocks are selected, evenly spaced.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import timm
import torch
from torch import Tensor, nn

from mltr.errors import MltrError, UsageError, did_you_mean
from mltr.files.download import reason_of
from mltr.network.features import class_axes, classifier_of
from mltr.network.model import (
    Block,
    ConvPosition,
    CrossWindowAttention,
    MlTr,
    PixelAttention,
    create_model,
)
from mltr.network.resampling import adapt
from mltr.network.variants import VARIANTS, get_variant
from mltr.weights.bundle import load_bundle
from mltr.weights.foreign import (
    CAT_BLOCKS,
    Layout,
    Tensors,
    first_few,
    read_checkpoint,
    read_layout,
    tidy,
)
from mltr.weights.pretrained import (
    TIMM,
    TimmWeights,
    blaming,
    find_weights,
    read_fitting,
)
from mltr.weights.resize import resize_bundle

Place = TypeVar("Place")
BACKBONE = "backbone."  #: starts the names of a timm network under a head that isn't its own
CLASSIFIER_STD = 0.01  #: of the weights of a new classifier on a pretrained network


@dataclass
class Report:
    """What each part of a network was filled with."""

    source: str  #: what the file holds, in words
    parts: dict[str, str] = field(default_factory=dict)  #: own part to the file's part, or why not
    taken: dict[str, str] = field(default_factory=dict)  #: own entry to the file's entry
    resampled: list[str] = field(default_factory=list)  #: own entries taken at another size
    fresh: list[str] = field(default_factory=list)  #: own entries initialised anew
    identity: list[str] = field(default_factory=list)  #: own blocks that change nothing at first
    unused: list[str] = field(default_factory=list)  #: the file's entries that found no place

    def __str__(self) -> str:
        width = max(map(len, self.parts), default=0)
        total = len(self.taken) + len(self.fresh)
        lines = [self.source, *(f"  {part:<{width}}  {what}" for part, what in self.parts.items())]
        lines.append(f"{len(self.taken)} of {total} tensors taken, {len(self.resampled)} resampled")
        if self.unused:
            parts = list(dict.fromkeys(map(_part_of, self.unused)))
            lines.append(f"not used of the file: {first_few(parts)}")
        return "\n".join(lines)


def _part_of(entry: str) -> str:
    """Return the block, or the layer, that an entry of a checkpoint belongs to."""
    block = re.match(r"layers\.\d+\.\w+\.\d+", entry)
    return block[0] if block else entry.rpartition(".")[0] or entry


# -- filling a network -------------------------------------------------------------------------


def load_cat(model: nn.Module, state_dict: Tensors) -> Report:
    """Fill a network with a CAT checkpoint, stage by stage where the widths match.

    Raises `MltrError` if the entries are not those of a CAT network, naming them, or if no stage
    fits, naming the variants that would.
    """
    tensors = tidy(state_dict)
    layout = read_layout(tensors, "CAT")
    own = _require_mltr(model)
    filler = _Filler(own, tensors, layout)
    filler.fill_ends()
    for index, stage in enumerate(own.stages):
        filler.fill_merge(index)
        depth = layout.depths[index] if index < len(layout.depths) else 0
        triples = _in_threes(_blocks_of(stage, f"stages.{index}"))
        for triple, source in _spread(triples, depth):
            for block, kind in zip(triple, CAT_BLOCKS, strict=True):
                name = None if source is None else f"layers.{index}.{kind}.{source}"
                filler.fill_block(block, name)
    return filler.finish()


def load_swin(model: nn.Module, state_dict: Tensors) -> Report:
    """Fill the pixel blocks of a network with a Swin checkpoint, timm's or the original.

    Cross-window blocks start as identity and absolute positions as zero, so that the network
    begins as Swin without its shifts. Raises `MltrError` as `load_cat` does.
    """
    tensors = tidy(state_dict)
    layout = read_layout(tensors, "Swin")
    own = _require_mltr(model)
    filler = _Filler(own, tensors, layout)
    filler.fill_ends()
    if own.embed.position is not None and "patch_embed.proj" in filler.report.parts.values():
        own.embed.position.data.zero_()
    for index, stage in enumerate(own.stages):
        filler.fill_merge(index)
        blocks = _blocks_of(stage, f"stages.{index}")
        depth = layout.depths[index] if index < len(layout.depths) else 0
        pixel = [name for name in blocks if isinstance(_attention(own, name), PixelAttention)]
        chosen = dict(_spread(pixel, depth))
        for block in blocks:
            source = chosen.get(block)
            filler.fill_block(block, None if source is None else f"layers.{index}.blocks.{source}")
    return filler.finish()


def load_mltr(
    model: nn.Module,
    state_dict: Tensors,
    source: str = "bundle",
    labels: tuple[Sequence[str], Sequence[str]] = ((), ()),
) -> Report:
    """Fill a network with the weights of another one of the same names, resampled if need be.

    Both may be a timm network, each under any head. Entries of other widths, and the head for
    another number of classes, stay as they are. `labels` are theirs and the network's own: a head
    for as many takes the rows of those that both have. Raises `MltrError` if nothing fits.
    """
    report = Report(source)
    if all(labels) and labels[0] != labels[1]:
        state_dict = _relabelled(model, state_dict, *labels)
    their_name = _naming(model.state_dict(), state_dict)
    filled = {}
    for name in model.state_dict():
        their = their_name(name)
        found = adapt(model, name, state_dict[their]) if their in state_dict else None
        if found is None:
            report.fresh.append(name)
            continue
        filled[name] = found
        report.taken[name] = their
        if found.shape != state_dict[their].shape:
            report.resampled.append(name)
    if not filled:
        raise MltrError(f"{source}: none of its weights fit this network")
    model.load_state_dict(filled, strict=False)
    if not hasattr(model, "backbone"):  # whose classifier is another head's
        _calm_classifier(model, report.fresh)
    report.unused = [name for name in state_dict if name not in report.taken.values()]
    report.parts = {"new": first_few(report.fresh)} if report.fresh else {}
    return report


def _naming(own: Mapping[str, Any], theirs: Mapping[str, Any]) -> Callable[[str], str]:
    """Return what an entry of a network is called in weights: a timm network may be a backbone."""
    is_inside, are_inside = (any(n.startswith(BACKBONE) for n in names) for names in (own, theirs))
    if is_inside == are_inside:
        return lambda name: name
    if are_inside:
        return lambda name: BACKBONE + name
    return lambda name: name.removeprefix(BACKBONE) if name.startswith(BACKBONE) else ""


def _relabelled(
    model: nn.Module, state_dict: Tensors, theirs: Sequence[str], own: Sequence[str]
) -> dict[str, Tensor]:
    """Return weights whose entries for each label stand in the order of the network's own.

    Labels that only the network has get its own entries, and so do all of them where entries belong
    to groups of labels.
    """
    found, state = dict(state_dict), model.state_dict()
    places = {name: place for place, name in enumerate(theirs)}
    to = torch.tensor([i for i, name in enumerate(own) if name in places], dtype=torch.long)
    from_ = torch.tensor([places[name] for name in own if name in places], dtype=torch.long)
    for name, axis in class_axes(model).items():
        if name not in state_dict or state[name].shape != state_dict[name].shape:
            continue
        if axis is None or not len(to):
            del found[name]
            continue
        rows = state_dict[name].to(state[name]).index_select(axis, from_)
        found[name] = state[name].index_copy(axis, to, rows)
    return found


def load_timm(model: nn.Module, weights: TimmWeights, classes: Sequence[str] = ()) -> Report:
    """Fill a timm network, under whichever head, with weights of its architecture.

    A classifier for another number of classes starts anew, near zero, and so does one that isn't
    told to be for those `classes`, if they are given. Raises `MltrError` if the weights can't be
    had, or belong to another network.
    """
    backbone: nn.Module = getattr(model, "backbone", model)
    tensors, by_order = read_fitting(backbone, weights)
    report = Report(f"{weights.source}, {weights.architecture}")
    if by_order:
        report.source += ", entries matched by their order and shapes, as no name is timm's"
    own = backbone.state_dict()
    fitting = {n: t for n, t in tensors.items() if n in own and t.shape == own[n].shape}
    if classes and model is backbone:  # under another head, its own classifier is left out
        told = weights.labels if set(weights.labels) == set(classes) else ()
        fitting = _relabelled(model, fitting, told, classes)
    backbone.load_state_dict(fitting, strict=False)
    report.taken = {name: name for name in fitting}
    report.fresh = [name for name in own if name not in fitting]
    _calm_classifier(backbone, report.fresh)
    report.unused = [name for name in tensors if name not in fitting]
    for name in reversed(report.fresh):  # so that a part is told of by its first entry
        shapes = [list(t[name].shape) for t in (tensors, own) if name in t]
        why = f": {name} is {shapes[0]} where {shapes[1]} belongs" if len(shapes) > 1 else ""
        if len(shapes) > 1 and shapes[0] == shapes[1]:
            why = ": its classes aren't told to be those of the data"
        report.parts[_part_of(name)] = f"new{why}"
    return report


def _calm_classifier(backbone: nn.Module, fresh: list[str]) -> None:
    """Let a new classifier of a timm network start near zero.

    Some of timm's start it so large that a short training never gets over it.
    """
    own = backbone.state_dict()
    for name in fresh:
        if name.rpartition(".")[0] in classifier_of(backbone) and own[name].ndim > 1:
            nn.init.normal_(own[name], std=CLASSIFIER_STD)


def _require_mltr(model: nn.Module) -> MlTr:
    if not isinstance(model, MlTr):
        raise UsageError(f"weights of CAT and Swin fit MlTr's variants, not {type(model).__name__}")
    return model


def _blocks_of(stage: nn.Module, name: str) -> list[str]:
    """Return the names of a stage's attention blocks, in order."""
    modules = enumerate(stage.blocks)  # type: ignore[arg-type]
    return [f"{name}.blocks.{number}" for number, block in modules if isinstance(block, Block)]


def _attention(model: nn.Module, block: str) -> nn.Module:
    return model.get_submodule(f"{block}.attn")


def _in_threes(names: list[str]) -> list[tuple[str, ...]]:
    return [tuple(names[start : start + 3]) for start in range(0, len(names), 3)]


def _spread(own: Sequence[Place], count: int) -> Iterator[tuple[Place, int | None]]:
    """Pair each of the own places with one of `count` source blocks, or with none.

    The fewer are spread evenly over the more, from the first to the last.
    """
    more, fewer = max(len(own), count), min(len(own), count)
    steps = max(fewer - 1, 1)
    chosen = [round(number * (more - 1) / steps) for number in range(fewer)]
    if len(own) <= count:
        yield from zip(own, chosen, strict=True)
        return
    sources = {place: number for number, place in enumerate(chosen)}
    for place, name in enumerate(own):
        yield name, sources.get(place)


class _Filler:
    """A network being filled part by part; a part is taken as a whole or not at all."""

    def __init__(self, model: MlTr, tensors: Tensors, layout: Layout) -> None:
        self.model, self.tensors, self.layout = model, tensors, layout
        self.report = Report(str(layout))
        self.used: set[str] = set()
        self.filled_stages: set[str] = set()
        self.waiting: list[str] = []  #: blocks that no block of the file was meant for

    def fill_ends(self) -> None:
        """Fill what comes before and after the stages."""
        for name, source in (
            ("embed.proj", "patch_embed.proj"),
            ("embed.norm", "patch_embed.norm"),
        ):
            self._fill(name, source)
        if self.model.embed.position is not None:
            self._fill_position()
        if len(self.model.stages) == len(self.layout.depths):
            self._fill("norm", "norm")
            self._fill("head", "head")

    def _fill_position(self) -> None:
        ape = self.tensors.get("ape")
        position = self.model.embed.position
        assert position is not None
        side = self.layout.position_side
        if ape is None or ape.shape[2] != position.shape[3]:
            return
        resized = adapt(self.model, "embed.position", ape.view(1, side, side, -1))
        assert resized is not None
        self._put("embed.position", "ape", resized, resized.numel() != ape.numel())
        self.report.parts["embed.position"] = "ape"

    def fill_merge(self, index: int) -> None:
        """Fill the patch merging at the start of a stage."""
        if index > 0:
            self._fill(f"stages.{index}.merge", f"layers.{index - 1}.downsample")

    def fill_block(self, name: str, source: str | None) -> None:
        """Fill a block; without a source it waits to be made an identity."""
        if source is None:
            self.waiting.append(name)
        elif self._fill(name, source):
            self.filled_stages.add(name.partition(".blocks")[0])

    def _fill(self, name: str, source: str) -> bool:
        """Fill all entries of a part, or say why not; return whether it was filled."""
        entries = [key for key in self.model.state_dict() if key.startswith(f"{name}.")]
        found = {}
        for key in entries:
            tensor = self.tensors.get(source + key.removeprefix(name))
            adapted = None if tensor is None else adapt(self.model, key, tensor)
            if adapted is None:
                self.report.parts[name] = self._why_not(key, source + key.removeprefix(name))
                return False
            found[key] = adapted
        for key, tensor in found.items():
            theirs = source + key.removeprefix(name)
            self._put(key, theirs, tensor, tensor.shape != self.tensors[theirs].shape)
        if entries:
            self.report.parts[name] = source
        return bool(entries)

    def _why_not(self, own: str, theirs: str) -> str:
        if theirs not in self.tensors:
            return f"new: the file has no {theirs}"
        shapes = list(self.tensors[theirs].shape), list(self.model.state_dict()[own].shape)
        return f"new: {theirs} is {shapes[0]} where {shapes[1]} belongs"

    def _put(self, name: str, source: str, tensor: Tensor, resampled: bool) -> None:
        self.model.load_state_dict({name: tensor}, strict=False)
        self.report.taken[name] = source
        self.used.add(source)
        if resampled:
            self.report.resampled.append(name)

    def finish(self) -> Report:
        """Make idle blocks identities and complete the report; raises if no stage was filled."""
        if not self.filled_stages:
            raise MltrError(
                f"no stage of this network, with {self.model.variant.embed_dim} channels, fits "
                f"{self.layout}; {self.layout.fitting()}"
            )
        for name in self.waiting:
            if name.partition(".blocks")[0] in self.filled_stages:
                self._make_identity(name)
            else:
                self.report.parts[name] = "new"
        for module in self.model.modules():
            if isinstance(module, ConvPosition):
                _zero(module.conv)
        order = [*self.model.state_dict()]
        self.report.parts = dict(
            sorted(self.report.parts.items(), key=lambda part: _place_of(part[0], order))
        )
        taken = self.report.taken
        self.report.fresh = [name for name in self.model.state_dict() if name not in taken]
        self.report.unused = [name for name in self.tensors if name not in self.used]
        return self.report

    def _make_identity(self, name: str) -> None:
        block = self.model.get_submodule(name)
        assert isinstance(block, Block)
        _zero(block.attn.proj)
        _zero(block.mlp.fc2)
        kind = "cross-window" if isinstance(block.attn, CrossWindowAttention) else "pixel"
        self.report.identity.append(name)
        self.report.parts[name] = f"new: {kind} block, starts as identity"


def _place_of(part: str, entries: Sequence[str]) -> int:
    return next(i for i, name in enumerate(entries) if name == part or name.startswith(f"{part}."))


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


# -- from a recipe or the command line ---------------------------------------------------------

LOADERS = {"cat": load_cat, "swin": load_swin}


def initialise(
    model: nn.Module, init: str, name: str, classes: Sequence[str] = (), image_size: int = 0
) -> Report:
    """Fill a network as `model.init` of a recipe says.

    `name` is the network's, as in `create_model`, `classes` are its labels, and `image_size` is the
    side of its images (0: that of the weights). `init` is `pretrained`, a file or folder of a timm
    network, a bundle's folder, ``hf-hub:OWNER/NAME``, ``cat:FILE``, ``swin:FILE``, or ``swin:NAME``
    of a network whose weights timm downloads. Raises `MltrError` if they can't be had or nothing
    fits.
    """
    family, _, source = init.partition(":")
    with blaming(init):
        if family in LOADERS and source:
            return LOADERS[family](model, read_source(family, source))
        weights = find_weights(name, init)
        if weights is not None:
            return load_timm(model, weights, classes)
        bundle = load_bundle(init)
        theirs, is_timm = bundle.config["model"]["name"], name.startswith(TIMM)
        is_other = theirs.split(".")[0] != name.split(".")[0]
        if is_other and (is_timm or theirs.startswith(TIMM)):
            raise UsageError(
                f"these are weights of {theirs}, not of {name}: use --model.name {theirs}"
            )
        if is_timm and image_size not in (0, bundle.preprocess.image_size):
            bundle = resize_bundle(bundle, image_size)
        labels = (tuple(bundle.classes), tuple(classes))
        return load_mltr(model, bundle.model.state_dict(), init, labels)


def read_source(family: str, source: str) -> Tensors:
    """Return the weights of a file, or those that timm has for a Swin of that name."""
    if Path(source).exists() or family != "swin" or Path(source).suffix in (".pth", ".safetensors"):
        return read_checkpoint(source)
    known = timm.list_models("swin_*", exclude_filters="*_mask*")
    if not timm.is_model(source) or timm.models.split_model_name_tag(source)[0] not in known:
        raise UsageError(
            f"{source!r} is neither a file nor a Swin network of timm{did_you_mean(source, known)}"
        )
    try:
        pretrained: nn.Module = timm.create_model(source, pretrained=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise MltrError(
            f"the weights of {source} can't be downloaded: {reason_of(error)}"
        ) from error
    return pretrained.state_dict()


def convert(
    family: str, tensors: Tensors, variant: str | None = None
) -> tuple[str, dict[str, Any], MlTr, Report]:
    """Return a network filled with a checkpoint, with its classifier if it fits.

    What is returned: the name and the overrides by which `create_model` builds it, the network,
    the report. The variants of CAT must fit exactly; MlTr's are filled where they fit. Raises
    `MltrError`.
    """
    layout = read_layout(tidy(tensors), "CAT" if family == "cat" else "Swin")
    name, overrides = (variant, {}) if variant is not None else _own_network(layout)
    network = get_variant(name, **overrides)
    same = (layout.embed_dim, layout.depths) == (network.embed_dim, network.depths)
    if family == "cat" and name.startswith("cat_") and not same:
        raise MltrError(f"{layout}, which doesn't fit {name}; {layout.fitting()}")
    fits_head = layout.embed_dim == network.embed_dim
    model = create_model(name, layout.num_classes if fits_head else 0, **overrides)
    assert isinstance(model, MlTr)
    return name, overrides, model, LOADERS[family](model, tensors)


def _own_network(layout: Layout) -> tuple[str, dict[str, Any]]:
    """Return name and overrides of the very network that a CAT checkpoint is of."""
    if layout.family != "CAT":
        raise UsageError(f"{layout}: give the network to fill with --variant")
    overrides = {
        "embed_dim": layout.embed_dim,
        "depths": list(layout.depths),
        "window_size": max(layout.windows),
        "image_size": layout.image_size,
        "absolute_position": layout.position_side > 0,
    }
    for name, variant in VARIANTS.items():
        if name.startswith("cat_") and get_variant(name, **overrides) == variant:
            return name, {}
    return "cat_t", overrides


def imagenet_classes(count: int) -> tuple[str, ...]:
    """Return the names of ImageNet's classes where a classifier has as many, else numbers."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": count})
    if subset is None:
        return tuple(f"class {number}" for number in range(count))
    info = ImageNetInfo(subset)
    names = [info.index_to_description(index).split(",")[0] for index in range(count)]
    doubles = {name for name in names if names.count(name) > 1}  # such as two kinds of crane
    return tuple(
        f"{name} ({info.index_to_label_name(index)})" if name in doubles else name
        for index, name in enumerate(names)
    )

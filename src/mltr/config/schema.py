"""What a recipe may say. Each dataclass documents its fields, and bounds them by their types.

Fields are reached by dotted names, in YAML and on the command line alike: ``data.root``,
``model.name``, ``train.epochs``. This module imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple, get_type_hints

from mltr.errors import UsageError


class Bound(NamedTuple):
    """What a number must do, in words and as a check; nan passes none."""

    words: str
    holds: Callable[[float], bool]


def _at_least(least: int) -> Bound:
    return Bound(f"be at least {least}", lambda x: x >= least)


Whole = Annotated[int, _at_least(0)]
Count = Annotated[int, _at_least(1)]
NotNegative = Annotated[float, _at_least(0)]
Positive = Annotated[float, Bound("be positive", lambda x: x > 0)]
Share = Annotated[float, Bound("lie in 0..1", lambda x: 0 <= x <= 1)]
ShareAbove0 = Annotated[float, Bound("lie in (0, 1]", lambda x: 0 < x <= 1)]
ShareBelow1 = Annotated[float, Bound("lie in [0, 1)", lambda x: 0 <= x < 1)]
InnerShare = Annotated[float, Bound("lie between 0 and 1", lambda x: 0 < x < 1)]
ShareOfRun = Annotated[float, Bound("lie in 0..1: a share of the run", lambda x: 0 <= x <= 1)]
Magnitude = Annotated[int, Bound("lie in 0..30", lambda x: 0 <= x <= 30)]


def bounds_of(section: type) -> dict[str, Bound]:
    """Return the bound of each field of a section that has one."""
    kinds = get_type_hints(section, include_extras=True).items()
    return {name: kind.__metadata__[0] for name, kind in kinds if hasattr(kind, "__metadata__")}


def _check_bounds(key: str, section: object) -> None:
    """Raise `UsageError` if a field of the section called `key` lies outside its bound."""
    for name, bound in bounds_of(type(section)).items():
        value = getattr(section, name)
        if not bound.holds(value):
            raise UsageError(f"{key}.{name} must {bound.words}, not {value}")


@dataclass
class ScenesConfig:
    """The embedded demo data: scenes of handwritten digits, composed on the fly."""

    train: Count = 9000  #: number of training scenes
    val: Count = 400  #: number of validation scenes
    test: Count = 1000  #: number of test scenes
    side: Annotated[int, _at_least(32)] = 64  #: height and width of a scene in pixels
    seed: int = 0  #: the same seed gives the same scenes

    def __post_init__(self) -> None:
        _check_bounds("data.scenes", self)


@dataclass
class DataConfig:
    """Where the photos and their labels are, and how the source is to be read."""

    root: str = ""  #: folder, file, hf-datasets:OWNER/NAME, or address of shards
    #: `auto` looks at the files under `root`
    format: Literal[
        "auto",
        "scenes",
        "coco",
        "voc",
        "nuswide",
        "table",
        "sidecars",
        "class_folders",
        "huggingface",
        "shards",
        "images",
    ] = "auto"
    labels: str = ""  #: table: the file, relative to `root`; huggingface: the column of labels
    images: str = ""  #: table: the folder, relative to `root`; huggingface: the column of images
    classes: str = ""  #: table and sidecars: a file that names the classes, relative to `root`
    missing: Literal["unknown", "negative"] = "unknown"  #: what a cell without an answer means
    year: str = ""  #: coco and voc: 2014, 2017, 2007, 2012; empty finds the only one there
    unlabelled: Literal["keep", "drop"] = "keep"  #: coco: images without any annotation
    difficult: Literal["ignore", "negative", "positive"] = "ignore"  #: voc: difficult-only classes
    protocol: Literal["official", "labelled", "ratio_70_30"] = "official"  #: nuswide: which split
    val_fraction: InnerShare = 0.1  #: share of the training part held out to choose the epoch
    test_fraction: InnerShare = 0.2  #: share held out for the test, where there is no test split
    split_seed: int = 0  #: seed of the held-out parts
    max_broken: Share = 0.01  #: share of missing or unreadable images at which a run stops
    #: processes that load images; 0: the main one does; -1: by the cores
    workers: Annotated[int, _at_least(-1)] = -1
    base_size: Whole = 0  #: first squash each image to this side in pixels (0: keep its own size)
    cache: bool = False  #: keep the squashed images of `base_size` in a memory-mapped file
    cache_gb: Positive = 100.0  #: size of all such files together; those longest unused make room
    shard_cache: str = ""  #: folder for shards from elsewhere (default: ~/.cache/mltr/shards)
    shard_cache_gb: Positive = 100.0  #: its size; the shards longest unused make room
    scenes: ScenesConfig = field(default_factory=ScenesConfig)

    def __post_init__(self) -> None:
        _check_bounds("data", self)
        if self.cache and not self.base_size:
            raise UsageError("data.cache needs data.base_size")


@dataclass
class AugmentConfig:
    """How images become the network's input, and how those of training are varied."""

    crop: Literal["squash", "random"] = "squash"  #: squash to the size, or random-resized crop
    min_scale: ShareAbove0 = 0.5  #: random crop: least share of the image's area
    flip: bool = True  #: mirror left and right with probability 0.5
    jitter: ShareBelow1 = 0.0  #: greatest relative change of brightness, contrast and saturation
    randaugment_ops: Whole = 2  #: RandAugment operations an image (0: off)
    randaugment_magnitude: Magnitude = 9  #: RandAugment magnitude
    cutout: ShareBelow1 = 0.5  #: side of the erased square as a share of the image's side (0: off)
    erasing: Share = 0.0  #: probability that noise replaces a rectangle (random erasing)
    repeats: Count = 1  #: times an image comes in a row, varied anew (repeated augmentation)
    mixup: NotNegative = 0.0  #: Beta parameter of mixup (0: off)
    cutmix: NotNegative = 0.0  #: Beta parameter of cutmix (0: off)
    resize: Literal["squash", "crop"] = "squash"  #: whole image to a square, or timm's centre crop
    normalize: Literal["auto", "none", "imagenet", "inception"] = "auto"  #: auto: as the weights

    def __post_init__(self) -> None:
        _check_bounds("augment", self)


@dataclass
class ModelConfig:
    """Which network."""

    name: str = "mltr_nano"  #: a variant (`mltr list`), timm/NAME, or a timm network's hf-hub: name
    image_size: Whole = 0  #: side in pixels that the network sees (0: its weights' or variant's)
    drop_path: float | None = None  #: greatest stochastic-depth rate (null: the variant's own)
    #: from the final map to logits.
    head: Literal["average", "csra", "query2label", "ml_decoder", "mltr"] = "average"
    head_options: dict[str, Any] = field(default_factory=dict)  #: such as num_heads, lam, groups
    overrides: dict[str, Any] = field(default_factory=dict)  #: further arguments of the network
    #: weights to start from: `pretrained` (timm's own), FILE or FOLDER of a timm network, a bundle,
    #: hf-hub:OWNER/NAME of either, cat:FILE or swin:NAME.
    init: str = ""

    def __post_init__(self) -> None:
        _check_bounds("model", self)


@dataclass
class LossConfig:
    """Which loss; the gammas and the clip belong to `asl`, `gamma_neg` alone to `focal`."""

    name: Literal["asl", "bce", "focal", "ce"] = "asl"  #: ce: one label an image, by softmax
    gamma_neg: NotNegative = 4.0  #: asl: focusing of negatives (focal: of all)
    gamma_pos: NotNegative = 0.0  #: asl: focusing of positives
    clip: ShareBelow1 = 0.05  #: asl: probability margin of negatives
    detach_focus: bool = True  #: asl: no gradient through the focusing weight
    label_smoothing: ShareBelow1 = 0.0  #: targets become t(1-s) + s/2 (ce: s/K)
    reduction: Literal["sum", "mean"] = "sum"  #: sum over a batch (the field's recipe) or mean

    def __post_init__(self) -> None:
        _check_bounds("loss", self)


@dataclass
class TrainConfig:
    """The loop: how long, how fast, from which seed."""

    epochs: Count = 40  #: times that all training images are gone through
    stop_epoch: Whole = 0  #: end here, though the schedule is laid out for `epochs` (0: at its end)
    seed: int = 0  #: of the weights, the order of the images and how they are varied
    batch_size: Count = 64  #: images a batch, over all processes together
    accumulation: Count = 1  #: batches an optimiser step
    optimizer: Literal["adamw", "adam"] = "adamw"  #: how gradients become steps
    lr: Positive = 1e-3  #: highest learning rate
    weight_decay: float = 0.05  #: not on biases, 1-D weights and position tables
    layer_decay: ShareAbove0 = 1.0  #: factor on the learning rate a stage further from the head
    schedule: Literal["onecycle", "cosine"] = "cosine"  #: course of the learning rate
    warmup: ShareOfRun = 0.05  #: while the learning rate rises
    clip_grad: NotNegative = 5.0  #: greatest norm of the gradient (0: off)
    ema_decay: ShareBelow1 = 0.0  #: exponential moving average of the weights (0: off)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"  #: auto: bf16 where fast
    grad_checkpointing: bool = False  #: less memory, more time
    patience: Whole = 0  #: stop after this many epochs without a better validation map (0: off)
    eval_every: Count = 1  #: epochs between validations; the last is always validated
    min_size: Whole = 0  #: pixels; image side at the first epoch, growing to the full (0: constant)
    threads: Whole = 0  #: CPU threads of the main process (0: torch's default)
    compile: bool = False  #: torch.compile the network
    sharding: Literal["none", "fsdp"] = "none"  #: several processes: a whole network each, or parts
    save_minutes: NotNegative = 10.0  #: greatest time between checkpoints (0: after every step)
    keep: Count = 2  #: checkpoints kept, the latest ones; the best weights are kept besides
    #: steps in a row left out for a bad loss or gradient before a run stops
    max_bad_steps: Whole = 3
    #: a loss so many times the usual one is bad, like nan (0: it isn't)
    spike_factor: NotNegative = 20.0
    timeout_s: Positive = 1800.0  #: after which a process that doesn't answer is given up

    def __post_init__(self) -> None:
        _check_bounds("train", self)
        if self.sharding == "fsdp" and self.precision == "fp16":
            raise UsageError("train.sharding fsdp needs train.precision fp32 or bf16")


@dataclass
class Config:
    """A whole recipe."""

    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        if self.augment.resize == "crop" and self.data.base_size:
            raise UsageError(
                "augment.resize crop needs whole images: set data.base_size 0 and data.cache false"
            )

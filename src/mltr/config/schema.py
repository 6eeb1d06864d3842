"""What a recipe may say. Each dataclass documents its fields and checks its own values.

Fields are reached by dotted names, in YAML and on the command line alike: ``data.root``,
``model.name``, ``train.epochs``. This module imports nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from mltr.errors import UsageError


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UsageError(message)


@dataclass
class ScenesConfig:
    """The embedded demo data: scenes of handwritten digits, composed on the fly."""

    train: int = 9000  #: number of training scenes
    val: int = 400  #: number of validation scenes
    test: int = 1000  #: number of test scenes
    side: int = 64  #: height and width of a scene in pixels
    seed: int = 0  #: the same seed gives the same scenes

    def __post_init__(self) -> None:
        _require(min(self.train, self.val, self.test) > 0, "data.scenes: counts must be positive")
        _require(self.side >= 32, "data.scenes.side must be at least 32 pixels")


@dataclass
class DataConfig:
    """Where the photos and their labels are, and how the source is to be read."""

    root: str = ""  #: folder, file, hf-datasets:OWNER/NAME, or address of shards
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
    ] = "auto"  #: `auto` looks at the files under `root`
    labels: str = ""  #: table: the file, relative to `root`; huggingface: the column of labels
    images: str = ""  #: table: the folder, relative to `root`; huggingface: the column of images
    classes: str = ""  #: table and sidecars: a file that names the classes, relative to `root`
    missing: Literal["unknown", "negative"] = "unknown"  #: what a cell without an answer means
    year: str = ""  #: coco and voc: 2014, 2017, 2007, 2012; empty finds the only one there
    unlabelled: Literal["keep", "drop"] = "keep"  #: coco: images without any annotation
    difficult: Literal["ignore", "negative", "positive"] = "ignore"  #: voc: difficult-only classes
    protocol: Literal["official", "labelled", "ratio_70_30"] = "official"  #: nuswide: which split
    val_fraction: float = 0.1  #: share of the training part held out to choose the epoch
    test_fraction: float = 0.2  #: share held out for the test, where the source has no test split
    split_seed: int = 0  #: seed of the held-out parts
    max_broken: float = 0.01  #: share of missing or unreadable images at which a run stops
    workers: int = -1  #: processes that load images; 0: the main one does; -1: by the cores
    base_size: int = 0  #: first squash each image to this side in pixels (0: keep its own size)
    cache: bool = False  #: keep the squashed images of `base_size` in a memory-mapped file
    cache_gb: float = 100.0  #: size of all such files together; those longest unused make room
    shard_cache: str = ""  #: folder for shards from elsewhere (default: ~/.cache/mltr/shards)
    shard_cache_gb: float = 100.0  #: its size; the shards longest unused make room
    scenes: ScenesConfig = field(default_factory=ScenesConfig)

    def __post_init__(self) -> None:
        for name in ("val_fraction", "test_fraction"):
            _require(0 < getattr(self, name) < 1, f"data.{name} must lie between 0 and 1")
        _require(0 <= self.max_broken <= 1, "data.max_broken must lie in 0..1")
        _require(self.workers >= -1, "data.workers must be at least -1")
        _require(self.base_size >= 0, "data.base_size must not be negative")
        _require(not self.cache or self.base_size > 0, "data.cache needs data.base_size")
        for name in ("cache_gb", "shard_cache_gb"):
            _require(getattr(self, name) > 0, f"data.{name} must be positive")


@dataclass
class AugmentConfig:
    """How images become the network's input, and how those of training are varied."""

    crop: Literal["squash", "random"] = "squash"  #: squash to the size, or random-resized crop
    min_scale: float = 0.5  #: random crop: least share of the image's area
    flip: bool = True  #: mirror left and right with probability 0.5
    jitter: float = 0.0  #: greatest relative change of brightness, contrast and saturation
    randaugment_ops: int = 2  #: RandAugment operations an image (0: off)
    randaugment_magnitude: int = 9  #: RandAugment magnitude, 0..30
    cutout: float = 0.5  #: side of the erased square as a share of the image's side (0: off)
    erasing: float = 0.0  #: probability that noise replaces a rectangle (random erasing)
    repeats: int = 1  #: times an image comes in a row, varied anew (repeated augmentation)
    mixup: float = 0.0  #: Beta parameter of mixup (0: off)
    cutmix: float = 0.0  #: Beta parameter of cutmix (0: off)
    resize: Literal["squash", "crop"] = "squash"  #: whole image to a square, or timm's centre crop
    normalize: Literal["auto", "none", "imagenet", "inception"] = "auto"  #: auto: as the weights

    def __post_init__(self) -> None:
        _require(0 < self.min_scale <= 1, "augment.min_scale must lie in (0, 1]")
        _require(0 <= self.jitter < 1, "augment.jitter must lie in [0, 1)")
        _require(0 <= self.cutout < 1, "augment.cutout must lie in [0, 1)")
        _require(self.repeats >= 1, "augment.repeats must be at least 1")
        _require(0 <= self.erasing <= 1, "augment.erasing must lie in 0..1")
        _require(0 <= self.randaugment_magnitude <= 30, "augment.randaugment_magnitude: 0..30")
        _require(self.randaugment_ops >= 0, "augment.randaugment_ops must not be negative")
        _require(min(self.mixup, self.cutmix) >= 0, "augment.mixup and .cutmix: not negative")


@dataclass
class ModelConfig:
    """Which network."""

    name: str = "mltr_nano"  #: a variant (`mltr list`), timm/NAME, or a timm network's hf-hub: name
    image_size: int = 0  #: side in pixels that the network sees (0: that of its weights or variant)
    drop_path: float | None = None  #: greatest stochastic-depth rate (null: the variant's own)
    #: From the final map to logits.
    head: Literal["average", "csra", "query2label", "ml_decoder", "mltr"] = "average"
    head_options: dict[str, Any] = field(default_factory=dict)  #: such as num_heads, lam, groups
    overrides: dict[str, Any] = field(default_factory=dict)  #: further arguments of the network
    #: Weights to start from: `pretrained` (timm's own), FILE or FOLDER of a timm network, a bundle,
    #: hf-hub:OWNER/NAME of either, cat:FILE or swin:NAME.
    init: str = ""

    def __post_init__(self) -> None:
        _require(self.image_size >= 0, "model.image_size must not be negative")


@dataclass
class LossConfig:
    """Which loss; the gammas and the clip belong to `asl`, `gamma_neg` alone to `focal`."""

    name: Literal["asl", "bce", "focal", "ce"] = "asl"  #: ce: one label an image, by softmax
    gamma_neg: float = 4.0  #: asl: focusing of negatives (focal: of all)
    gamma_pos: float = 0.0  #: asl: focusing of positives
    clip: float = 0.05  #: asl: probability margin of negatives
    detach_focus: bool = True  #: asl: no gradient through the focusing weight
    label_smoothing: float = 0.0  #: targets become t(1-s) + s/2 (ce: s/K)
    reduction: Literal["sum", "mean"] = "sum"  #: sum over a batch (the field's recipe) or mean

    def __post_init__(self) -> None:
        _require(min(self.gamma_neg, self.gamma_pos) >= 0, "loss gammas must not be negative")
        _require(0 <= self.clip < 1, "loss.clip must lie in [0, 1)")
        _require(0 <= self.label_smoothing < 1, "loss.label_smoothing must lie in [0, 1)")


@dataclass
class TrainConfig:
    """The loop: how long, how fast, from which seed."""

    epochs: int = 40  #: times that all training images are gone through
    stop_epoch: int = 0  #: end here although the schedule is laid out for `epochs` (0: at the end)
    seed: int = 0  #: of the weights, the order of the images and how they are varied
    batch_size: int = 64  #: images a batch, over all processes together
    accumulation: int = 1  #: batches an optimiser step
    optimizer: Literal["adamw", "adam"] = "adamw"  #: how gradients become steps
    lr: float = 1e-3  #: highest learning rate
    weight_decay: float = 0.05  #: not on biases, 1-D weights and position tables
    layer_decay: float = 1.0  #: factor on the learning rate a stage further from the head
    schedule: Literal["onecycle", "cosine"] = "cosine"  #: course of the learning rate
    warmup: float = 0.05  #: share of the run in which the learning rate rises
    clip_grad: float = 5.0  #: greatest norm of the gradient (0: off)
    ema_decay: float = 0.0  #: exponential moving average of the weights (0: off)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"  #: auto: bf16 where fast
    grad_checkpointing: bool = False  #: less memory, more time
    patience: int = 0  #: stop after this many epochs without a better validation map (0: off)
    eval_every: int = 1  #: epochs between validations; the last is always validated
    min_size: int = 0  #: pixels; image side at the first epoch, growing to the full (0: constant)
    freeze: Literal["none", "backbone"] | int = "none"  #: what doesn't learn; N: the first N stages
    views: int = 1  #: of each photo, for a frozen backbone; 2: mirrored too, 3 and more: crops
    threads: int = 0  #: CPU threads of the main process (0: torch's default)
    compile: bool = False  #: torch.compile the network
    sharding: Literal["none", "fsdp"] = "none"  #: several processes: a whole network each, or parts
    save_minutes: float = 10.0  #: greatest time between checkpoints (0: after every step)
    keep: int = 2  #: checkpoints kept, the latest ones; the best weights are kept besides
    max_bad_steps: int = 3  #: steps in a row left out for a bad loss or gradient before a run stops
    spike_factor: float = 20.0  #: a loss so many times the usual one is bad, like nan (0: it isn't)
    timeout_s: float = 1800.0  #: after which a process that doesn't answer the others is given up

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulation", "eval_every", "keep", "views"):
            _require(getattr(self, name) >= 1, f"train.{name} must be at least 1")
        for name in (
            "stop_epoch", "patience", "min_size", "threads", "clip_grad", "save_minutes",
            "max_bad_steps", "spike_factor",
        ):  # fmt: skip
            _require(getattr(self, name) >= 0, f"train.{name} must not be negative")
        _require(self.lr > 0, "train.lr must be positive")
        _require(0 <= self.warmup <= 1, "train.warmup must lie in 0..1: a share of the run")
        _require(0 <= self.ema_decay < 1, "train.ema_decay must lie in [0, 1)")
        _require(0 < self.layer_decay <= 1, "train.layer_decay must lie in (0, 1]")
        _require(self.timeout_s > 0, "train.timeout_s must be positive")
        _require(
            isinstance(self.freeze, str) or self.freeze >= 1,
            "train.freeze: none, backbone, or a number of stages from 1 on",
        )
        _require(
            self.freeze == "none" or self.sharding == "none",
            "train.freeze needs train.sharding none: little is left to divide",
        )
        _require(
            self.freeze == "backbone" or self.views == 1, "train.views needs train.freeze backbone"
        )
        _require(
            self.sharding == "none" or self.precision != "fp16",
            "train.sharding fsdp needs train.precision fp32 or bf16",
        )


@dataclass
class Config:
    """A whole recipe."""

    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        _require(
            self.augment.resize == "squash" or self.data.base_size == 0,
            "augment.resize crop needs whole images: set data.base_size 0 and data.cache false",
        )

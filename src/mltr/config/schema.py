"""The fields of a recipe. Each dataclass documents its fields and bounds them by their types.

Fields have dotted names, both in YAML and on the command line: ``data.root``, ``model.name``,
``train.epochs``. This module imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_type_hints

from mltr.errors import UsageError

SPLITS = ("train", "val", "test")  #: parts of a source: what trains, selects and tests a network


class Bound(NamedTuple):
    """A condition on a number, in words and as a check that nan never passes."""

    words: str
    holds: Callable[[float], bool]


def _at_least(least: int) -> Bound:
    return Bound(f"be at least {least}", lambda x: x >= least)


Whole = Annotated[int, _at_least(0)]
Count = Annotated[int, _at_least(1)]
Seed = Annotated[int, Bound("lie in 0..2147483647", lambda x: 0 <= x < 2**31)]
NotNegative = Annotated[float, _at_least(0)]
Positive = Annotated[float, Bound("be positive", lambda x: x > 0)]
Share = Annotated[float, Bound("lie in 0..1", lambda x: 0 <= x <= 1)]
ShareAbove0 = Annotated[float, Bound("lie in (0, 1]", lambda x: 0 < x <= 1)]
ShareBelow1 = Annotated[float, Bound("lie in [0, 1)", lambda x: 0 <= x < 1)]
InnerShare = Annotated[float, Bound("lie between 0 and 1", lambda x: 0 < x < 1)]
ShareOfRun = Annotated[float, Bound("lie in 0..1: a share of the run", lambda x: 0 <= x <= 1)]
Magnitude = Annotated[int, Bound("lie in 0..30", lambda x: 0 <= x <= 30)]


def bounds_of(section: type) -> dict[str, Bound]:
    """Return the bounds of a section's fields, by name."""
    kinds = get_type_hints(section, include_extras=True).items()
    return {
        name: part.__metadata__[0]
        for name, kind in kinds
        for part in (kind, *get_args(kind))  # such as of a field that may be null
        if hasattr(part, "__metadata__")
    }


def _check_bounds(key: str, section: object) -> None:
    """Raise `UsageError` if a field of the section called `key` lies outside its bound."""
    for name, bound in bounds_of(type(section)).items():
        value = getattr(section, name)
        if value is not None and not bound.holds(value):
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
    """Where the photos and their labels are, and how to read them."""

    root: str = ""  #: folder, file, hf-datasets:OWNER/NAME, or URL of shards
    #: `auto` detects it from the files under `root`
    format: Literal[
        "auto",
        "scenes",
        "coco",
        "voc",
        "nuswide",
        "table",
        "sidecars",
        "class_folders",
        "yolo",
        "label_studio",
        "voc_xml",
        "keywords",
        "huggingface",
        "shards",
        "images",
    ] = "auto"
    #: the file of labels, in `root` or the current folder; huggingface: the column of labels
    labels: str = ""
    #: table, coco and label_studio: the folder of photos, in `root` or the current folder;
    #: huggingface: their column
    images: str = ""
    classes: str = ""  #: file that lists the classes, in `root` or the current folder
    label_column: str = ""  #: table: column of labels, or several separated by commas
    path_column: str = ""  #: table: column of the photos
    #: table: separator of labels in a cell: any text, or comma, semicolon, bar, hash, space,
    #: newline, tab or none (auto: detected)
    separator: str = "auto"
    missing: Literal["unknown", "negative"] = "unknown"  #: meaning of an empty cell
    #: table: which of 0 and -1 means absent, if it has both; the other is then unknown
    absent: Literal["auto", 0, -1] = "auto"
    #: table: what the first of data.classes counts as, in labels that are numbers
    count_from: Literal["auto", 0, 1] = "auto"
    #: whether names that differ only in case are one class (null: refuse them)
    merge_case: bool | None = None
    #: globs of files and folders to ignore, separated by commas (hidden ones and caches always are)
    ignore: str = ""
    truncated: Literal["refuse", "allow"] = "refuse"  #: truncated JPEGs
    hierarchy: str = ""  #: YAML (child: parent) or CSV (child,parent): a label implies its parents
    year: str = ""  #: coco and voc: 2014, 2017, 2007, 2012; empty: the only one present
    unlabelled: Literal["keep", "drop"] = "keep"  #: coco and yolo: images without annotations
    #: folder of additional photos without labels, which `train.teacher` labels
    unlabelled_root: str = ""
    #: voc and voc_xml: difficult-only classes
    difficult: Literal["ignore", "negative", "positive"] = "ignore"
    protocol: Literal["official", "labelled", "ratio_70_30"] = "official"  #: nuswide: which split
    #: share of the training images held out to choose the epoch if the source has no such split
    val_fraction: InnerShare = 0.1
    test_fraction: InnerShare = 0.2  #: share held out for testing if the source has no test split
    split_seed: Whole = 0  #: seed of the random splits
    max_broken: Share = 0.01  #: a larger share of missing or unreadable images stops a run
    #: processes that load images (0: the main process, -1: by cores)
    workers: Annotated[int, _at_least(-1)] = -1
    #: first resize to a square of this side, or 8/7 of a larger model.image_size (0: don't)
    base_size: Whole = 0
    cache: bool = False  #: keep the images of `base_size` in a memory-mapped file
    cache_gb: Positive = 100.0  #: total size of these files; the least recently used are evicted
    shard_cache: str = ""  #: folder for remote shards (default: ~/.cache/mltr/shards)
    shard_cache_gb: Positive = 100.0  #: its size; the least recently used shards are evicted
    scenes: ScenesConfig = field(default_factory=ScenesConfig)

    def __post_init__(self) -> None:
        _check_bounds("data", self)
        if self.cache and not self.base_size:
            raise UsageError("data.cache needs data.base_size")


@dataclass
class AugmentConfig:
    """How images become the network's input, and how training images are augmented."""

    crop: Literal["squash", "random"] = "squash"  #: squash to a square, or random-resized crop
    min_scale: ShareAbove0 = 0.5  #: random crop: minimum share of the image's area
    flip: bool = True  #: horizontal flip with probability 0.5
    jitter: ShareBelow1 = 0.0  #: maximum relative change of brightness, contrast and saturation
    randaugment_ops: Whole = 2  #: RandAugment operations per image (0: off)
    randaugment_magnitude: Magnitude = 9  #: RandAugment magnitude, of 30 (timm's m9 is 27)
    cutout: ShareBelow1 = 0.5  #: side of the erased square as a share of the image's side (0: off)
    erasing: Share = 0.0  #: probability that noise replaces a rectangle (random erasing)
    repeats: Count = 1  #: consecutive uses of an image, each augmented anew (1: off)
    mixup: NotNegative = 0.0  #: Beta parameter of mixup (0: off)
    cutmix: NotNegative = 0.0  #: Beta parameter of cutmix (0: off)
    mix_from: Whole = 0  #: epochs before images are mixed, which doesn't help a short run
    resize: Literal["squash", "crop"] = "squash"  #: squash to a square, or timm's centre crop
    #: auto: as for the weights
    normalize: Literal["auto", "none", "imagenet", "inception"] = "auto"

    def __post_init__(self) -> None:
        _check_bounds("augment", self)


PRETRAINED = "pretrained"  #: as `model.init`: timm's own weights
START = "start"  #: as `model.init`: the weights that come with this package


@dataclass
class ModelConfig:
    """The network and the weights that it starts from."""

    name: str = "mltr_nano"  #: a variant (`mltr list`), timm/NAME, or hf-hub:OWNER/NAME of timm
    image_size: Whole = 0  #: input side in pixels (0: that of the weights or the variant)
    drop_path: ShareBelow1 | None = None  #: maximum stochastic-depth rate (null: the variant's own)
    #: how the final map becomes logits
    head: Literal["average", "csra", "query2label", "ml_decoder", "mltr"] = "average"
    head_options: dict[str, Any] = field(default_factory=dict)  #: e.g. num_heads, lam, groups
    overrides: dict[str, Any] = field(default_factory=dict)  #: other arguments of the network
    #: weights to start from: `pretrained` (timm's own), `start` (mltr_nano, in the package), FILE
    #: or FOLDER of a timm network, a bundle, hf-hub:OWNER/NAME of either, cat:FILE or swin:NAME
    init: str = ""

    def __post_init__(self) -> None:
        _check_bounds("model", self)
        if self.head == "average" and self.head_options:
            raise UsageError(
                f"model.head_options.{next(iter(self.head_options))} has no effect on the head "
                "average: set model.head"
            )


@dataclass
class LossConfig:
    """The loss. `asl` uses both gammas and the clip, `focal` only `gamma_neg`."""

    #: ce: softmax, one label per image; hill, splc and wan: for missing positive labels
    name: Literal["asl", "bce", "focal", "ce", "hill", "splc", "wan"] = "asl"
    gamma_neg: NotNegative = 4.0  #: asl: focusing of negatives (focal: of all, usually 2)
    gamma_pos: NotNegative = 0.0  #: asl: focusing of positives
    clip: ShareBelow1 = 0.05  #: asl: probability margin of negatives
    detach_focus: bool = True  #: asl: no gradient through the focusing weight
    margin: NotNegative = 1.0  #: hill and splc: subtracted from the logits of positives
    tau: Share = 0.6  #: splc: probability above which a negative counts as positive from epoch 2 on
    label_smoothing: ShareBelow1 = 0.0  #: targets become t(1-s) + s/2 (ce: s/K)
    reduction: Literal["sum", "mean"] = "sum"  #: over a batch; most published recipes use sum

    def __post_init__(self) -> None:
        _check_bounds("loss", self)


@dataclass
class TrainConfig:
    """The training loop: duration, learning rate, seed and checkpoints."""

    epochs: Whole = 40  #: passes over the training images (0: 600 / sqrt(images), within 3..100)
    #: duration of the whole run; `epochs` then limits only a frozen backbone
    minutes: NotNegative = 0.0
    stop_epoch: Whole = 0  #: stop after this epoch of a schedule over `epochs` (0: don't)
    seed: Seed = 0  #: seed of the weights, the order of images and their augmentation
    batch_size: Count = 64  #: images per batch, over all processes
    accumulation: Count = 1  #: batches per optimiser step
    optimizer: Literal["adamw", "adam"] = "adamw"  #: the optimiser
    lr: Positive = 1e-3  #: highest learning rate
    weight_decay: NotNegative = 0.05  #: not applied to biases, 1-D weights and position tables
    layer_decay: ShareAbove0 = 1.0  #: learning-rate factor for each layer further from the head
    schedule: Literal["onecycle", "cosine"] = "cosine"  #: learning-rate schedule
    warmup: ShareOfRun = 0.05  #: increase of the learning rate, linear or (onecycle) by a cosine
    clip_grad: NotNegative = 5.0  #: maximum norm of the gradient (0: off)
    ema_decay: ShareBelow1 = 0.0  #: decay of the exponential moving average of the weights (0: off)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"  #: auto: bf16 if fast
    grad_checkpointing: bool = False  #: recompute activations: less memory, more time
    patience: Whole = 0  #: stop after this many epochs without a better validation map (0: off)
    eval_every: Count = 1  #: epochs between validations; the last epoch is always validated
    #: image side at first, which grows until three quarters of the run are over (0: constant)
    min_size: Whole = 0
    #: what doesn't learn: nothing, the backbone, or the first N stages
    freeze: Literal["none", "backbone"] | int = "none"
    views: Count = 1  #: of each photo, for a frozen backbone (2: also mirrored; 3 or more: crops)
    #: run, bundle or hf-hub:OWNER/NAME whose predictions are learnt along with the labels
    teacher: str = ""
    #: share of the teacher in the target of a known label (unknown labels: 1)
    teacher_weight: Share = 0.5
    threads: Whole = 0  #: CPU threads of the main process (0: torch's default)
    compile: bool = False  #: compile the network with torch.compile
    sharding: Literal["none", "fsdp"] = "none"  #: fsdp: shard over processes
    #: experiment tracker that gets the figures of each epoch
    tracker: Literal["tensorboard", "wandb", "mlflow", "none"] = "tensorboard"
    save_minutes: NotNegative = 10.0  #: maximum time between checkpoints (0: after every step)
    keep: Count = 2  #: latest checkpoints to keep, in addition to the best weights
    #: consecutive skipped steps (bad loss or gradient) before a run stops
    max_bad_steps: Whole = 3
    #: a loss this many times the usual one counts as bad (0: off)
    spike_factor: NotNegative = 20.0
    timeout_s: Positive = 1800.0  #: time after which an unresponsive process ends the run

    def __post_init__(self) -> None:
        _check_bounds("train", self)
        if self.sharding == "fsdp" and self.precision == "fp16":
            raise UsageError("train.sharding fsdp needs train.precision fp32 or bf16")
        if isinstance(self.freeze, int) and self.freeze < 1:
            raise UsageError("train.freeze: none, backbone, or a number of stages from 1 on")
        if self.minutes and self.stop_epoch:
            raise UsageError("train.minutes and train.stop_epoch can't be combined: set one to 0")
        if self.freeze != "none" and self.sharding != "none":
            raise UsageError("train.freeze needs train.sharding none: little is left to shard")
        if self.freeze != "backbone" and self.views != 1:
            raise UsageError("train.views needs train.freeze backbone")
        if self.freeze == "backbone" and self.teacher:
            raise UsageError("train.teacher needs a network that learns: not train.freeze backbone")


@dataclass
class Config:
    """A recipe."""

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
        if self.data.unlabelled_root and not self.train.teacher:
            raise UsageError("data.unlabelled_root needs train.teacher, which labels its photos")

"""Published facts, with sources: sizes of the public data sets, and figures to reproduce.

`mltr results` compares our runs with them. `mltr plan` takes numbers of images from here if the
data isn't available. No torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mltr.config.schema import Config, DataConfig

Origin = Literal["scratch", "pretrained", "coco"]  #: initial weights of a run

PAPER = "arXiv 2106.06195"
SIBLING = "arXiv 2106.05786"


@dataclass(frozen=True)
class PublicSet:
    """A public data set under one split protocol."""

    name: str
    train: int  #: training images, including those held out for validation
    test: int
    classes: int
    disk_gb: float = 0.0  #: unpacked size, 1e9 bytes (0: unknown)

    def matches(self, train: int, test: int, share: float) -> bool:
        """Return whether the counts match, except for at most a `share` of missing files."""
        return all(
            (1 - share) * whole <= found <= whole
            for found, whole in ((train, self.train), (test, self.test))
        )


# Sources of the counts: cocodataset.org, and ASL, ML-Decoder and CSRA for the sets without
# unlabelled images; the VOC development kits; the NUS-WIDE page and TSFormer; image-net.org and
# timm's lists of classes. Sizes are those of the published archives.
COCO_2014 = PublicSet("MS-COCO 2014", 82_783, 40_504, 80, 21.2)
COCO_2014_LABELLED = PublicSet("MS-COCO 2014", 82_081, 40_137, 80, 21.2)
COCO_2017 = PublicSet("MS-COCO 2017", 118_287, 5_000, 80, 21.2)
COCO_2017_LABELLED = PublicSet("MS-COCO 2017", 117_266, 4_952, 80, 21.2)
VOC_2007 = PublicSet("PASCAL VOC 2007", 5_011, 4_952, 20, 0.9)
VOC_2012 = PublicSet("PASCAL VOC 2012", 5_717, 5_823, 20, 2.0)
NUSWIDE_OFFICIAL = PublicSet("NUS-WIDE, official split", 161_789, 107_859, 81)
NUSWIDE_LABELLED = PublicSet("NUS-WIDE, labelled images", 125_449, 83_898, 81)
NUSWIDE_RATIO = PublicSet("NUS-WIDE, 70/30 of all files", 188_754, 80_894, 81)
IMAGENET_1K = PublicSet("ImageNet-1K", 1_281_167, 50_000, 1000, 144)
# All 14,197,122 images of the fall 2011 release, of which the recipe holds out 0.2 % for testing.
IMAGENET_21K = PublicSet("ImageNet-21K", 14_168_728, 28_394, 21_841)
PRETRAINING = {"imagenet1k": IMAGENET_1K, "imagenet21k": IMAGENET_21K}  #: data sets by recipe name


def public_set(data: DataConfig, recipe: str = "") -> PublicSet | None:
    """Return the public data set of a recipe, identified by its fields or else its name."""
    if data.format == "coco":
        labelled = data.unlabelled == "drop"
        if data.year == "2017":
            return COCO_2017_LABELLED if labelled else COCO_2017
        return COCO_2014_LABELLED if labelled else COCO_2014
    if data.format == "voc":
        return VOC_2012 if data.year == "2012" else VOC_2007
    if data.format == "nuswide":
        by_protocol = {
            "official": NUSWIDE_OFFICIAL,
            "labelled": NUSWIDE_LABELLED,
            "ratio_70_30": NUSWIDE_RATIO,
        }
        return by_protocol[data.protocol]
    return PRETRAINING.get(recipe)


@dataclass(frozen=True)
class Row:
    """A published figure, and the run that would reproduce it."""

    data: str  #: name of the data set in the table
    network: str
    figure: float | None  #: percent (None: not published)
    source: str
    recipe: str
    options: tuple[str, ...]  #: overrides of the recipe
    origin: Origin = "pretrained"
    metric: Literal["map", "top1"] = "map"
    note: str = ""

    @property
    def command(self) -> str:
        """The command to run; words in capitals stand for the user's folders."""
        return " ".join(("mltr train", self.recipe, *self.options))


LARGE_BATCH = ("--train.batch_size", "56")  #: batch size from 384 pixels on (ASL)
UNNAMED = "variant not stated; L is our choice"


def _coco(size: str, figure: float, batch: tuple[str, ...] = LARGE_BATCH, note: str = "") -> Row:
    options = ("--model.name", f"mltr_{size}", *batch)
    return Row("MS-COCO 2014", f"mltr_{size}", figure, PAPER, "coco", options, note=note)


def _nuswide(protocol: str, name: str) -> Row:
    options = ("--model.name", "mltr_l", *LARGE_BATCH, "--data.protocol", protocol)
    note = "variant and split not stated; L is our choice"
    return Row(f"NUS-WIDE, {name}", "mltr_l", 65.5, PAPER, "nuswide", options, note=note)


def _imagenet(network: str, figure: float | None, *options: str) -> Row:
    recipe = "imagenet21k" if network == "mltr_xl" else "imagenet1k"
    return Row(
        PRETRAINING[recipe].name, network, figure, PAPER if figure is None else SIBLING, recipe,
        ("--model.name", network, *options), origin="scratch", metric="top1",
    )  # fmt: skip


#: Pretraining at 224 pixels, like Swin; `mltr resize` or model.init adapts the weights to 384.
SMALL_IMAGES = ("--model.image_size", "224", "--model.overrides.window_size", "7")

ROWS = (
    _coco("s", 81.9, batch=()),
    _coco("m", 86.8),
    _coco("l", 88.5, note="88.8 in the ICME 2022 version"),
    _coco("xl", 90.0, note="pretrained on ImageNet-21K; image size not published"),
    Row(
        "PASCAL VOC 2007", "mltr_l", 95.8, PAPER, "voc2007",
        ("--model.name", "mltr_l", *LARGE_BATCH), note=UNNAMED,
    ),
    Row(
        "PASCAL VOC 2007, from COCO", "mltr_l", None, PAPER, "voc2007",
        ("--model.name", "mltr_l", *LARGE_BATCH, "--model.init", "COCO_RUN"), origin="coco",
        note="95.8 may be this setting: the paper doesn't state the initial weights",
    ),
    _nuswide("official", "official split"),
    _nuswide("labelled", "labelled images"),
    _nuswide("ratio_70_30", "70/30"),
    _imagenet("cat_t", 80.3),
    _imagenet("cat_s", 81.8),
    _imagenet("cat_b", 82.8),
    _imagenet("mltr_s", None),
    _imagenet("mltr_m", None, *SMALL_IMAGES),
    _imagenet("mltr_l", None, *SMALL_IMAGES),
    _imagenet("mltr_xl", None, *SMALL_IMAGES),
)  # fmt: skip


@dataclass(frozen=True)
class Peer:
    """A figure published by another project on the same test images."""

    data: str
    method: str
    figure: float  #: mAP, percent
    source: str


# From their papers and repositories; protocols differ (docs/protocols.md).
PEERS = (
    Peer("MS-COCO 2014", "ASL, TResNet-M, 224 px", 81.8, "arXiv 2009.14119"),
    Peer("MS-COCO 2014", "ASL, TResNet-L, 448 px", 86.6, "arXiv 2009.14119"),
    Peer("MS-COCO 2014", "ASL, TResNet-XL, 640 px", 88.4, "arXiv 2009.14119"),
    Peer("MS-COCO 2014", "Query2Label, ResNet-101, 448 px", 84.9, "arXiv 2107.10834"),
    Peer("MS-COCO 2014", "Query2Label, TResNet-L, 448 px", 87.3, "arXiv 2107.10834"),
    Peer("MS-COCO 2014", "Query2Label, Swin-L, 384 px", 90.5, "arXiv 2107.10834"),
    Peer("MS-COCO 2014", "Query2Label, CvT-w24, 384 px", 91.3, "arXiv 2107.10834"),
    Peer("MS-COCO 2014", "ML-Decoder, TResNet-M, 224 px", 84.2, "arXiv 2111.12933"),
    Peer("MS-COCO 2014", "ML-Decoder, TResNet-L, 448 px", 90.1, "arXiv 2111.12933"),
    Peer("MS-COCO 2014", "ML-Decoder, TResNet-XL, 640 px", 91.4, "arXiv 2111.12933"),
    Peer("MS-COCO 2014", "CSRA, ResNet-101, 448 px", 83.3, "arXiv 2108.02456"),
    Peer("MS-COCO 2014", "CSRA, ViT-L, 448 px", 86.9, "arXiv 2108.02456"),
    Peer("MS-COCO 2014", "ADDS, ViT-L, 336 px", 91.8, "arXiv 2208.09562"),
    Peer("MS-COCO 2014", "ADDS, ViT-L, 1344 px", 93.5, "arXiv 2208.09562"),
    Peer("PASCAL VOC 2007", "CSRA", 94.7, "arXiv 2108.02456"),
    Peer("PASCAL VOC 2007", "CSRA, with more data", 96.8, "arXiv 2108.02456"),
    Peer("PASCAL VOC 2007", "ML-Decoder", 96.6, "arXiv 2111.12933"),
    Peer("PASCAL VOC 2007", "TSFormer", 97.0, "doi 10.1145/3503161.3548343"),
    Peer("NUS-WIDE", "Query2Label", 66.3, "arXiv 2107.10834"),
    Peer("NUS-WIDE", "Query2Label, CvT-w24", 70.1, "arXiv 2107.10834"),
    Peer("NUS-WIDE, labelled images", "TSFormer", 69.3, "doi 10.1145/3503161.3548343"),
)

# Recipe fields in which a run may deviate: paths, speed, seeds; none is meant to change figures.
FREE_FIELDS = frozenset(
    {
        "data.root", "data.workers", "data.max_broken", "data.cache", "data.cache_gb",
        "data.split_seed", "data.shard_cache", "data.shard_cache_gb",
        "model.init", "train.seed", "train.threads", "train.compile", "train.grad_checkpointing",
        "train.precision", "train.batch_size", "train.accumulation", "train.sharding",
        "train.save_minutes", "train.keep", "train.timeout_s", "train.tracker",
    }
)  # fmt: skip


def effective_batch(config: Config) -> int:
    """Return the number of images per optimiser step."""
    return config.train.batch_size * config.train.accumulation

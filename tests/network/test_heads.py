"""Heads: against naive loops, on MlTr and on timm backbones of every layout."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import mltr
from mltr.errors import UsageError
from mltr.network.features import check_image_size
from mltr.network.heads import CSRAHead, QueryHead, make_head, sine_positions
from mltr.network.model import HEADS, TripleHead

#: A CNN (NCHW), a Swin (NHWC), a ViT with a class token, and a mixer of tokens without one.
BACKBONES = {
    "timm/resnet18": {},
    "timm/swin_tiny_patch4_window7_224": {"depths": (1, 1, 1, 1), "embed_dim": 24},
    "timm/vit_tiny_patch16_224": {"depth": 1},
    "timm/deit3_small_patch16_224": {"depth": 1},
    "mltr_nano": {},
}


def naive_csra(head: CSRAHead, maps: Tensor) -> Tensor:
    """The paper's equations, class by class and pixel by pixel, for one image [H, W, C]."""
    pixels = maps.flatten(0, 1)
    logits = []
    for k in range(head.weight.shape[1]):
        logit = 0.0
        for weight, temperature in zip(head.weight[:, k], head.temperatures, strict=True):
            scores = torch.stack([pixel @ weight / weight.norm() for pixel in pixels])
            if temperature == 99:
                attended = scores.max()
            else:
                shares = (temperature * scores).exp()
                attended = (shares / shares.sum() * scores).sum()
            logit = logit + scores.mean() + head.lam * attended
        logits.append(logit)
    return torch.stack(logits)


@pytest.mark.parametrize("num_heads", [1, 2, 4, 6, 8])
def test_csra_equals_the_papers_equations(num_heads: int) -> None:
    head = make_head("csra", 12, 5, num_heads=num_heads, lam=0.3)
    assert isinstance(head, CSRAHead)
    maps = torch.randn(2, 3, 4, 12)
    expected = torch.stack([naive_csra(head, image) for image in maps])
    torch.testing.assert_close(head(maps), expected)


@given(st.sampled_from(["average", "csra", "mltr"]), st.integers(1, 9), st.integers(1, 9))
@settings(deadline=None, max_examples=25)
def test_exact_class_maps_add_up_to_the_logits(name: str, H: int, W: int) -> None:
    head = make_head(name, 8, 3).eval()
    maps = 3 * torch.randn(2, H, W, 8)
    shares = head.class_maps(maps)
    assert head.exact_class_maps
    assert shares.shape == (2, 3, H, W)
    torch.testing.assert_close(shares.sum(dim=(2, 3)), head(maps), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["query2label", "ml_decoder"])
def test_query_heads_tell_where_each_class_looked(name: str) -> None:
    head = make_head(name, 16, 250, dim=16, num_heads=2).eval()
    maps = torch.randn(2, 3, 5, 16)
    looked = head.class_maps(maps)
    assert looked.shape == (2, 250, 3, 5)
    assert not head.exact_class_maps
    torch.testing.assert_close(looked.sum(dim=(2, 3)), torch.ones(2, 250))


def test_a_query_head_sees_the_evidence_of_one_class_alone() -> None:
    """The logit of a class depends on its own row of weights; groups share their query."""
    head = make_head("ml_decoder", 16, 7, groups=3).eval()
    assert isinstance(head, QueryHead)
    assert head.queries.shape == (3, 16)
    assert not head.queries.requires_grad
    maps = torch.randn(1, 4, 4, 16)
    before = head(maps)
    with torch.no_grad():
        head.weight[1] *= 3.0  # classes 3, 4, 5
    changed = (head(maps) - before).abs()[0] > 1e-6
    assert changed.tolist() == [False, False, False, True, True, True, False]


def test_positions_tell_pixels_apart_and_order_matters_only_with_them() -> None:
    places = sine_positions(5, 7, 16)
    assert places.shape == (35, 16)
    assert len(torch.unique(places.round(decimals=5), dim=0)) == 35
    maps = torch.randn(1, 3, 3, 16)
    shuffled = maps.flatten(1, 2)[:, torch.randperm(9, generator=torch.Generator().manual_seed(1))]
    for name, matters in (("query2label", True), ("ml_decoder", False)):
        head = make_head(name, 16, 4, dim=16).eval()
        same = torch.allclose(head(maps), head(shuffled.view(1, 3, 3, 16)), atol=1e-5)
        assert same is not matters


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("head", HEADS)
def test_every_head_trains_on_every_backbone(backbone: str, head: str) -> None:
    model = mltr.create_model(
        backbone, num_classes=6, head=head, image_size=64, **BACKBONES[backbone]
    )
    logits = model(torch.randn(2, 3, 64, 64))
    assert logits.shape == (2, 6)
    (logits - torch.randn(6)).square().sum().backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


@pytest.mark.parametrize("name", [n for n in BACKBONES if n.startswith("timm")])
def test_maps_of_a_timm_backbone_keep_their_places(name: str) -> None:
    """What changes at the top left of an image shows most at the top left of its map."""
    model = mltr.create_model(name, 2, head="csra", image_size=64, **BACKBONES[name]).eval()
    image = torch.zeros(1, 3, 64, 64)
    spot = image.clone()
    spot[..., :16, :16] = 3.0
    with torch.no_grad():
        change = (model.forward_features(spot) - model.forward_features(image)).abs().sum(-1)[0]
    assert change.shape[0] == change.shape[1] >= 2
    assert change.flatten().argmax() == 0


def test_a_thousand_classes_cost_no_more_queries() -> None:
    head = make_head("ml_decoder", 32, 9605)
    assert isinstance(head, QueryHead)
    assert head.num_queries == 100
    assert head(torch.randn(1, 4, 4, 32)).shape == (1, 9605)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"head": "mltr", "head_options": {"depth": 0}}, "depth=0"),
        ({"head": "mltr", "head_options": {"dim": 40}}, "dim=40 must be a multiple of 32"),
        ({"head": "csar"}, "did you mean 'csra'"),
        ({"head": "csra", "head_options": {"num_heads": 3}}, "num_heads=3"),
        ({"head": "csra", "head_options": {"lamda": 1}}, "lamda"),
        ({"head": "query2label", "head_options": {"dim": 30}}, "multiple of num_heads"),
        ({"head": "ml_decoder", "head_options": {"groups": -1}}, "groups must be >= 0"),
        ({"head": "ml_decoder", "head_options": {"groups": 1.5}}, "must be a whole number"),
        ({"head": "ml_decoder", "head_options": {"positions": 2}}, "must be true or false"),
        ({"head": "query2label", "head_options": {"num_heads": 0}}, "can't be built with"),
        ({"head": "query2label", "head_options": {"dim": -64}}, "can't be built with"),
        ({"head": "mltr", "head_options": {"num_classes": 4}}, "can't be built with"),
        ({"head": "csra", "head_options": {"map_side": 4}}, "can't be built with"),
        ({"head": "csra", "head_options": {"lam": "a"}}, "lam='a' must be a number"),
        ({"head": "csra", "head_options": {"lam": math.nan}}, "lam=nan must be a finite number"),
        ({"head": "query2label", "head_options": {"dropout": 2}}, "can't be built with"),
        ({"head_options": {"lam": 1}}, "lam"),
        ({"name": "timm/resnet18", "head_options": {"lam": 1}}, "no options"),
    ],
)
def test_wrong_heads_are_named(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        mltr.create_model(**{"name": "mltr_nano", "num_classes": 3} | arguments)


def test_a_backbone_without_a_map_is_refused() -> None:
    model = mltr.create_model("timm/resnet18", 3, head="csra")
    model.backbone.forward_features = lambda images: images.mean((2, 3))  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="not a map of the image"):
        model(torch.randn(1, 3, 64, 64))


@pytest.mark.parametrize("backbone", ["mltr_nano", "timm/resnet18"])
@pytest.mark.parametrize("head", ["query2label", "mltr"])
def test_layer_decay_treats_a_head_as_one_layer(backbone: str, head: str) -> None:
    from mltr.training.optim import parameter_groups

    model = mltr.create_model(backbone, 3, head=head)
    groups = parameter_groups(model, 0.1, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert isinstance(model.head, nn.Module)
    assert {scale[id(p)] for p in model.head.parameters()} == {1.0}


def test_four_windows_cover_the_map_that_mltrs_head_is_built_for() -> None:
    for side, window in ((7, 4), (8, 4), (14, 7), (3, 2), (1, 1)):
        head = make_head("mltr", 64, 3, side)
        assert isinstance(head, TripleHead)
        assert head.stage.blocks[1].attn.window_size == window
    wide = make_head("mltr", 1280, 3)
    assert wide.norm.normalized_shape == (384,)
    model = mltr.create_model("timm/resnet18", 3, head="mltr", image_size=128)
    assert model.head.stage.blocks[0].attn.window_size == 2  # type: ignore[union-attr]


def test_the_cross_windows_of_mltrs_head_see_the_whole_map() -> None:
    """A pixel of one window changes the class map in all the others; average's stays elsewhere."""
    head = make_head("mltr", 32, 3, 8).double().eval()
    maps = torch.randn(1, 8, 8, 32, dtype=torch.float64)
    changed = maps.clone()
    changed[0, 0, 0] = torch.randn(32)
    with torch.no_grad():
        moved = (head.class_maps(changed) - head.class_maps(maps)).abs().sum(1)[0]
    assert (moved > 1e-12).all()
    pixelwise = make_head("average", 32, 3).double()
    elsewhere = (pixelwise.class_maps(changed) - pixelwise.class_maps(maps)).abs().sum(1)[0]
    assert int((elsewhere > 1e-12).sum()) == 1


def test_mltrs_head_is_spared_and_recomputed_as_its_network_is() -> None:
    torch.manual_seed(0)
    model = mltr.create_model("timm/resnet18", 3, head="mltr", head_options={"depth": 2}).train()
    tables = {n for n, _ in model.named_parameters() if n.endswith("position_bias_table")}
    assert len(tables) == 4
    assert tables <= model.no_weight_decay()  # type: ignore[operator]
    images = torch.randn(2, 3, 64, 64)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)  # type: ignore[operator]
        model.zero_grad()
        model(images).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.head.parameters()])  # type: ignore[union-attr]
    assert model.head.stage.grad_checkpointing
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_an_image_size_is_judged_where_weights_are_tied() -> None:
    network = timm.create_model("coat_lite_tiny", num_classes=3)  # its parts share position tables
    check_image_size(network, 224, "model.image_size")
    with pytest.raises(UsageError, match="model.image_size 64 doesn't suit this network: Input"):
        check_image_size(network, 64, "model.image_size")


@pytest.mark.parametrize("num_classes", [5, 80])
def test_csra_starts_as_a_convolution_does(num_classes: int) -> None:
    """Its directions have length one, so their first length sets how fast they turn."""
    torch.manual_seed(0)
    head = make_head("csra", 768, num_classes)
    convolution = torch.nn.Conv2d(768, num_classes, 1, bias=False)
    weight = head.get_parameter("weight")
    assert float(weight.std()) == pytest.approx(float(convolution.weight.std()), rel=0.05)

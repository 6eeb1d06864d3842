"""The variants as models of timm: its contract, and the numbers of this project's own."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from timm.models import group_parameters, load_checkpoint, save_for_hf
from timm.optim import create_optimizer_v2
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import Tensor, nn

import mltr
import mltr.timm_models
from mltr.config.schema import AugmentConfig
from mltr.data.preprocess import Preprocess
from mltr.errors import UsageError
from mltr.network.model import Block, default_image_size
from mltr.network.variants import VARIANTS
from mltr.weights.bundle import save_bundle

NAMES = list(VARIANTS)
# Narrow and shallow, as `small` builds them, mltr_l and mltr_xl are mltr_m, and CAT is mltr_s.
NARROW = {"embed_dim": 32, "mlp_ratio": 1.0}
KINDS = ["mltr_nano", "mltr_s", "mltr_m"]


def shallow(name: str) -> tuple[int, ...]:
    return tuple(min(depth, 1) for depth in VARIANTS[name].depths)


def small(name: str, **options: Any) -> Any:
    """A variant with its own windows and stages, but few and narrow blocks, of timm."""
    settings = {**NARROW, "depths": shallow(name), "img_size": 64, "num_classes": 3}
    return timm.create_model(name, **settings | options).eval()


def twin(name: str, model: nn.Module, image_size: Any = 64, **options: Any) -> Any:
    """The same network of this project, with the same weights."""
    settings = {**NARROW, "depths": shallow(name), "num_classes": 3}
    own = mltr.create_model(name, image_size=image_size, **settings | options)
    own.load_state_dict(model.state_dict())
    return own.eval()


def images(batch: int = 2, size: tuple[int, int] = (64, 64), channels: int = 3) -> Tensor:
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(0))


# -- the registry ------------------------------------------------------------------------------


def test_only_this_module_registers() -> None:
    code = """
import json, sys
import mltr
light = [name for name in ("torch", "timm", "mltr.timm_models") if name in sys.modules]
import timm
before = timm.list_models(["mltr_*", "cat_*"])
known = set(timm.list_models())
import mltr.timm_models
print(json.dumps([light, before, sorted(set(timm.list_models()) - known)]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[], [], sorted(NAMES)]


@pytest.mark.parametrize("name", NAMES)
def test_registered_as_a_model_without_weights(name: str) -> None:
    assert timm.is_model(name)
    assert name in timm.list_models(module="timm_models", name_matches_cfg=True)
    assert not timm.is_model_pretrained(name)
    assert timm.list_models(name, pretrained=True) == []
    with pytest.raises(RuntimeError, match=f"No pretrained weights exist for {name}"):
        timm.create_model(name, pretrained=True, depths=shallow(name), **NARROW)
    build = getattr(mltr.timm_models, name)
    assert build(depths=shallow(name), **NARROW).num_classes == 80


@pytest.mark.parametrize("name", NAMES)
def test_full_size_has_the_parameters_and_the_map_of_its_cfg(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name).eval()
        own = mltr.create_model(name)
        cfg = model.default_cfg
        maps = model.forward_features(torch.empty(1, *cfg["input_size"]))
    assert {key: value.shape for key, value in model.state_dict().items()} == {
        key: value.shape for key, value in own.state_dict().items()
    }
    assert model.pretrained_cfg is cfg
    assert cfg["architecture"] == name
    assert cfg["input_size"] == (3, default_image_size(name), default_image_size(name))
    assert not cfg["fixed_input_size"]
    assert maps.shape == (1, *cfg["pool_size"], model.num_features)
    assert model.num_classes == cfg["num_classes"] == 80
    assert {f"{cfg[key]}.weight" for key in ("first_conv", "classifier")} <= {*model.state_dict()}
    stem = model.get_submodule(cfg["first_conv"])
    assert isinstance(stem, nn.Conv2d) and stem.in_channels == 3
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()


# -- the same numbers as the project's own -----------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_weights_go_both_ways(name: str) -> None:
    model = small(name)
    own = twin(name, model)
    assert torch.equal(model(images()), own(images()))
    assert torch.equal(model.forward_features(images()), own.forward_features(images()))
    back = small(name)
    assert not torch.equal(back(images()), own(images()))
    back.load_state_dict(own.state_dict())
    assert torch.equal(back(images()), own(images()))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("size", [(64, 96), (50, 37)])
def test_grey_images_that_are_no_squares(name: str, size: tuple[int, int]) -> None:
    model = small(name, in_chans=1, img_size=size)
    assert model.in_chans == 1
    inputs = images(2, size, channels=1)
    assert torch.equal(model(inputs), twin(name, model, size, in_chans=1)(inputs))
    assert model(images(2, (64, 64), channels=1)).shape == (2, 3)  # any other size passes


def test_timms_words_and_this_projects() -> None:
    def rates(model: nn.Module) -> list[float]:
        return [block.drop_path.drop_prob for block in model.modules() if isinstance(block, Block)]

    assert rates(timm.create_model("mltr_nano")) == rates(mltr.create_model("mltr_nano"))
    expected = [0.5 * i / 11 for i in range(12)]
    assert rates(small("mltr_s", drop_path_rate=0.5)) == pytest.approx(expected)
    assert rates(small("mltr_s", drop_path=0.5)) == pytest.approx(expected)
    assert max(rates(small("mltr_s", drop_path_rate=0.0))) == 0
    variant = small("cat_t", attention="pixel").variant
    assert variant == small("cat_t", attention="pixel", img_size=None, image_size=64).variant
    assert (variant.attention, variant.image_size) == ("pixel", 64)
    assert small("cat_t", img_size=[32, 64]).variant.image_hw == (32, 64)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"dephts": (1,)}, UsageError, "did you mean 'depths'"),
        ({"embed_dim": 50}, UsageError, "multiple of head_dim"),
        ({"img_size": (64, 64, 3)}, UsageError, "height and width"),
        ({"img_size": 0}, UsageError, "must be positive"),
        ({"global_pool": "median"}, AssertionError, "Invalid pool type"),
    ],
)
def test_wrong_arguments_are_named(options: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        small("mltr_s", **options)


# -- the classifier ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_classifier_can_be_removed_and_replaced(name: str) -> None:
    model = small(name)
    maps = model.forward_features(images())
    pooled = maps.mean(dim=(1, 2))
    assert torch.equal(model.forward_head(maps, pre_logits=True), pooled)
    assert torch.equal(model.forward_head(maps), model.get_classifier()(pooled))
    assert pooled.shape == (2, model.head_hidden_size)

    model.reset_classifier(0)
    assert model.num_classes == 0
    assert isinstance(model.get_classifier(), nn.Identity)
    assert torch.equal(model(images()), pooled)
    model.reset_classifier(0, "")
    assert torch.equal(model(images()), maps)
    without = small(name, num_classes=0, global_pool="")
    assert without(images()).shape == maps.shape == (*maps.shape[:3], model.num_features)

    model.reset_classifier(7, "catavgmax")
    assert model.head_hidden_size == 2 * model.num_features
    assert model.forward_head(maps, pre_logits=True).shape == (2, model.head_hidden_size)
    assert model(images()).shape == (2, 7)
    model.reset_classifier(5)  # pooling stays
    assert model.num_classes == 5
    assert model.get_classifier().weight.shape == (5, 2 * model.num_features)
    model.reset_classifier(4, "")
    assert model(images()).shape == (*maps.shape[:3], 4)

    model.head = nn.Linear(model.num_features, 6)  # as many users do it
    assert model(images()).shape == (*maps.shape[:3], 6)


@pytest.mark.parametrize("pool", ["avg", "max", "avgmax", "catavgmax", ""])
def test_pooling(pool: str) -> None:
    model = small("cat_t", global_pool=pool)
    maps = torch.randn(2, 5, 3, model.num_features)
    average, maximum = maps.mean(dim=(1, 2)), maps.flatten(1, 2).max(dim=1).values
    expected = {
        "avg": average, "max": maximum, "avgmax": (average + maximum) / 2,
        "catavgmax": torch.cat([average, maximum], dim=1), "": maps,
    }[pool]  # fmt: skip
    torch.testing.assert_close(model.forward_head(maps, pre_logits=True), expected)
    logits = F.linear(expected, model.head.weight, model.head.bias)
    torch.testing.assert_close(model.forward_head(maps), logits)


def test_dropout_stands_before_the_classifier() -> None:
    model = small("mltr_s", drop_rate=1.0)
    nn.init.normal_(model.head.bias)
    kept = model(images())
    model.train()
    assert torch.equal(model(images()), model.head.bias.expand(2, 3))
    model.eval()
    assert torch.equal(model(images()), kept)


def test_new_classifier_takes_place_and_precision_of_the_network() -> None:
    model = small("mltr_nano", dtype=torch.bfloat16)
    model.reset_classifier(4)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model(images().bfloat16()).shape == (2, 4)
    assert {p.device.type for p in small("mltr_nano", device="meta").parameters()} == {"meta"}


# -- features of every stage -------------------------------------------------------------------


def stage_maps(name: str, model: nn.Module) -> list[Tensor]:
    """The maps of each stage, NHWC, by this project's own network; the final one stands last."""
    maps = twin(name, model).forward_maps(images())
    stages = [maps[key] for key in maps if key.startswith("stage")]
    return [*stages, maps["final"]]


@pytest.mark.parametrize("name", ["mltr_nano", "mltr_s"])
@pytest.mark.parametrize("feature_cls", ["list", "dict", "hook", "getter", "fx"])
@pytest.mark.parametrize("out_indices", [None, (0, -2), 2])
def test_features_only(name: str, feature_cls: str, out_indices: Any) -> None:
    model = small(name)
    expected = stage_maps(name, model)[:-1]
    taken = {None: range(len(expected)), 2: (-2, -1)}.get(out_indices, out_indices)
    backbone = small(
        name, features_only=True, feature_cls=feature_cls, out_indices=out_indices,
        pretrained=True, pretrained_cfg_overlay={"state_dict": model.state_dict()},
    )  # fmt: skip
    outputs = backbone(images())
    outputs = list(outputs.values()) if isinstance(outputs, dict) else outputs
    if feature_cls == "getter":  # the only one that changes the layout
        outputs = [output.permute(0, 2, 3, 1) for output in outputs]
    assert backbone.output_fmt.value == ("NCHW" if feature_cls == "getter" else "NHWC")
    for output, i in zip(outputs, taken, strict=True):
        assert torch.equal(output, expected[i])
    assert backbone.feature_info.channels() == [expected[i].shape[3] for i in taken]
    assert backbone.feature_info.reduction() == [64 // expected[i].shape[1] for i in taken]


@pytest.mark.parametrize("name", KINDS)
def test_forward_intermediates(name: str) -> None:
    model = small(name)
    *expected, final = stage_maps(name, model)
    output, intermediates = model.forward_intermediates(images())
    assert torch.equal(output, model.forward_features(images()))
    assert torch.equal(output, final)
    for own, maps in zip(intermediates, expected, strict=True):
        assert torch.equal(own, maps.permute(0, 3, 1, 2)) and own.is_contiguous()
    normalised = model.forward_intermediates(images(), norm=True, output_fmt="NHWC")[1]
    for own, maps in zip(normalised, [*expected[:-1], final], strict=True):
        assert torch.equal(own, maps)
    with pytest.raises(ValueError, match="neither NCHW nor NHWC"):
        model.forward_intermediates(images(), output_fmt="NLC")
    with pytest.raises(AssertionError, match="out of range"):
        model.forward_intermediates(images(), [len(expected)])


@functools.cache
def _model_and_maps() -> tuple[Any, list[Tensor]]:
    model = small("cat_t")
    return model, stage_maps("cat_t", model)[:-1]


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_any_choice_of_intermediates(data: st.DataObject) -> None:
    model, expected = _model_and_maps()
    count = len(expected)
    indices = data.draw(
        st.integers(1, count) | st.lists(st.integers(-count, count - 1), min_size=1, max_size=4)
    )
    chosen = set(range(count - indices, count) if isinstance(indices, int) else indices)
    wanted = sorted({i % count for i in chosen})
    seen: list[int] = []
    handles = [
        stage.register_forward_hook(lambda *_, i=i: seen.append(i))
        for i, stage in enumerate(model.stages)
    ]
    only = model.forward_intermediates(
        images(1), indices, stop_early=True, output_fmt="NHWC", intermediates_only=True
    )
    for handle in handles:
        handle.remove()
    assert seen == list(range(max(wanted) + 1))
    for own, i in zip(only, wanted, strict=True):
        torch.testing.assert_close(own, expected[i][:1])


@pytest.mark.parametrize("name", KINDS)
def test_prune_intermediate_layers(name: str) -> None:
    model = small(name)
    *expected, _ = stage_maps(name, model)
    assert model.prune_intermediate_layers([0, -2]) == [0, len(expected) - 2]
    output, intermediates = model.forward_intermediates(images(), [0, -1], output_fmt="NHWC")
    assert torch.equal(intermediates[0], expected[0])
    assert torch.equal(intermediates[1], expected[-2])
    assert torch.equal(output, expected[-2])
    assert model.num_features == model.head_hidden_size == expected[-2].shape[-1]
    assert torch.equal(model(images()), expected[-2])  # no head is left
    model.reset_classifier(6, "avg")
    assert model(images()).shape == (2, 6)

    model = small(name)
    model.prune_intermediate_layers(1, prune_norm=False, prune_head=False)
    assert model(images()).shape == (2, 3)  # nothing was superfluous
    maps = model.forward_maps(images())
    model.prune_intermediate_layers(1, prune_norm=True)
    last = list(maps)[-2]
    assert torch.equal(model(images()), maps[last])
    assert not torch.equal(maps[last], maps["final"])


# -- training ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_full_size_infers_and_trains(name: str) -> None:
    model = timm.create_model(name, num_classes=42).eval()
    size = (3, *(min(128, side) for side in model.default_cfg["input_size"][1:]))
    with torch.no_grad():
        assert torch.isfinite(model(torch.randn(1, *size))).all()
    logits = model.train()(torch.randn(2, *size))
    assert logits.shape == (2, 42)
    logits.mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_all_and_checkpointing_changes_none(name: str) -> None:
    model = small(name, drop_path_rate=0.0).train()
    calls: list[int] = []
    model.stages[-1].blocks[-1].register_forward_pre_hook(lambda *_: calls.append(1))
    found = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        logits = model(images())
        logits.square().sum().backward()
        without = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        assert without == []
        found.append([logits.detach()] + [p.grad.clone() for p in model.parameters()])
    assert len(calls) == 3  # once plainly, then once more for the backward pass
    for plain, recomputed in zip(*found, strict=True):
        assert torch.isfinite(plain).all()
        torch.testing.assert_close(recomputed, plain)


@pytest.mark.parametrize("name", KINDS)
def test_optimizer_scales_layers_in_order_and_spares_positions(name: str) -> None:
    model = small(name)
    optimizer = create_optimizer_v2(model, opt="adamw", weight_decay=0.05, layer_decay=0.75)
    names = {id(p): key for key, p in model.named_parameters()}
    found = {
        names[id(parameter)]: (group["lr_scale"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    in_order = [found[key][0] for key in names.values()]  # as they are used
    assert in_order == sorted(in_order)
    layers = sum(len(stage.blocks) for stage in model.stages) + 2  # stem and head
    assert sorted(set(in_order)) == pytest.approx([0.75**i for i in reversed(range(layers))])
    assert found["norm.weight"][0] == 0.75 and found["head.weight"][0] == 1
    spared = {key for key, (_, decay) in found.items() if decay == 0}
    one_dimensional = {key for key, p in model.named_parameters() if p.ndim <= 1}
    tables = {key for key in found if "position" in key and "conv" not in key}
    assert spared == one_dimensional | tables
    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert max(coarse.values()) == len(model.stages) + 1


def test_training_as_timm_does_it(tmp_path: Path) -> None:
    """AdamW with layer decay, bfloat16, averaged weights, timm's checkpoints: the loss falls."""
    torch.manual_seed(0)
    model = small("mltr_nano", drop_rate=0.1).train()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=3e-3, layer_decay=0.75)
    ema = ModelEmaV3(model, decay=0.5)
    inputs = images(8)
    targets = torch.rand(8, 3).round()
    losses = []
    for _ in range(12):
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(inputs)
            loss = F.binary_cross_entropy_with_logits(logits.float(), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ema.update(model)
        losses.append(loss.item())
    assert logits.dtype == torch.bfloat16
    assert losses[-1] < 0.5 * losses[0]

    saver = CheckpointSaver(model, optimizer, model_ema=ema, checkpoint_dir=str(tmp_path))
    saver.save_checkpoint(epoch=0, metric=1.0)
    best = tmp_path / "model_best.pth.tar"
    restored = small("mltr_nano", checkpoint_path=str(best))  # timm prefers averaged weights
    assert torch.equal(restored(inputs), ema.module.eval()(inputs))
    load_checkpoint(restored, str(best), use_ema=False)
    assert torch.equal(restored(inputs), model.eval()(inputs))


def test_backbone_under_a_foreign_head() -> None:
    """A 1x1 convolution on two stages, as in a pyramid; everything below it learns."""
    options = {"feature_cls": "getter", "out_indices": (1, 3), "drop_path_rate": 0.0}
    backbone = small("mltr_s", features_only=True, **options).train()
    heads = nn.ModuleList(nn.Conv2d(count, 5, 1) for count in backbone.feature_info.channels())
    score = torch.zeros(())
    for maps, head in zip(backbone(images()), heads, strict=True):
        score = score + head(maps).square().mean()
    score.backward()
    without = [key for key, p in backbone.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


# -- preprocessing, files and other sizes ------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_timm_prepares_images_as_this_project_does(name: str) -> None:
    model = small(name)
    config = resolve_model_data_config(model)
    size = default_image_size(name)
    own = Preprocess.from_config(AugmentConfig(), size, 0)
    assert config["input_size"] == (3, size, size)
    assert (config["mean"], config["std"]) == (own.mean, own.std)
    pixels = np.random.default_rng(0).integers(0, 256, (150, 260, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    found = torch.from_numpy(own(image))
    torch.testing.assert_close(create_transform(**config)(image), found, rtol=0, atol=1e-6)


def test_weights_of_a_bundle_are_a_checkpoint_for_timm(tmp_path: Path) -> None:
    overrides = {**NARROW, "depths": (0, 1, 1), "image_size": 32}
    own = mltr.create_model("mltr_nano", num_classes=2, **overrides).eval()
    save_bundle(
        tmp_path, model=own, name="mltr_nano", overrides=overrides, classes=("sea", "sun"),
        preprocess=Preprocess(32),
    )  # fmt: skip
    file = str(tmp_path / "model.safetensors")
    options = {**NARROW, "num_classes": 2, "depths": (0, 1, 1), "img_size": 32}
    model = timm.create_model("mltr_nano", checkpoint_path=file, **options).eval()
    assert torch.equal(model(images()), own(images()))

    # As pretrained weights they fit other channels, classes and sizes, too.
    overlay = {"file": file, "num_classes": 2}
    options |= {"num_classes": 9, "in_chans": 1, "img_size": 64}
    options |= {"pretrained": True, "pretrained_cfg_overlay": overlay}
    other = timm.create_model("mltr_nano", **options)
    assert other.eval()(images(channels=1)).shape == (2, 9)
    stem, grey = own.embed.proj[0].weight, other.embed.proj[0].weight
    torch.testing.assert_close(grey, stem.sum(dim=1, keepdim=True))
    torch.testing.assert_close(other.norm.weight, own.norm.weight)
    stemmed = small("mltr_s", conv_stem=True)  # another first convolution than its cfg names
    overlay = {"state_dict": stemmed.state_dict(), "num_classes": 3}
    options = {"conv_stem": True, "pretrained": True, "pretrained_cfg_overlay": overlay}
    assert small("mltr_s", in_chans=1, **options)(images(channels=1)).shape == (2, 3)


@pytest.mark.parametrize("name", KINDS)
def test_a_saved_model_comes_back(name: str, tmp_path: Path) -> None:
    """After new classes, pooling and sizes, timm's export for the Hub holds all that it needs."""
    model = small(name, drop_rate=0.5)
    model.set_input_size((96, 128), window_size=4)
    model.reset_classifier(7, "catavgmax")
    save_for_hf(model, str(tmp_path))
    restored = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    inputs = images(size=(96, 128))
    assert torch.equal(restored(inputs), model(inputs))


@pytest.mark.parametrize("name", KINDS)
def test_another_input_size(name: str) -> None:
    side = 8 * VARIANTS[name].window_size  # the windows of both stages are full
    options = {"depths": (1, 1), "img_size": side}
    model = small(name, **options)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    before = list(model.parameters())
    model.set_input_size()
    assert all(a is b for a, b in zip(model.parameters(), before, strict=True))

    # With the same windows only positions change, as otherwise in each forward.
    wide = (side + 8, side + 20)
    logits = model(images(size=wide))
    model.set_input_size(wide)
    assert model.variant.image_hw == wide
    torch.testing.assert_close(model(images(size=wide)), logits, rtol=1e-4, atol=1e-5)

    # The same as when timm loads the weights into a network built for that size.
    model = small(name, **options)
    model.load_state_dict(weights)
    model.set_input_size(img_size=40, window_size=2)
    overlay = {"state_dict": weights, "num_classes": 3}
    options |= {"img_size": 40, "window_size": 2}
    loaded = small(name, pretrained=True, pretrained_cfg_overlay=overlay, **options)
    assert torch.equal(model(images()), loaded(images()))
    assert not torch.equal(model(images()), small(name, **options)(images()))


def test_resizing_keeps_what_is_frozen() -> None:
    model = small("mltr_s")
    model.stages[0].requires_grad_(False)
    model.set_input_size(window_size=4)
    assert not any(parameter.requires_grad for parameter in model.stages[0].parameters())
    assert all(parameter.requires_grad for parameter in model.stages[1].parameters())
    windows = [stage.blocks[0].attn.window_size for stage in model.stages]
    assert windows == [4, 4, 4, 2]

"""Parameter groups, schedules and averaged weights, against torch's and timm's own."""

from __future__ import annotations

import pytest
import torch
from timm.optim import param_groups_layer_decay
from timm.utils import ModelEmaV3
from torch import nn

import mltr
from mltr.config.schema import TrainConfig
from mltr.training.optim import AveragedModel, lr_factor, make_optimizer, parameter_groups, set_lr


def test_every_parameter_is_in_one_group_and_biases_do_not_decay() -> None:
    model = mltr.create_model("cat_t", num_classes=3, depths=(1, 1), image_size=56)
    groups = parameter_groups(model, 0.1)
    grouped = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(grouped) == sum(len(group["params"]) for group in groups)
    for name, parameter in model.named_parameters():
        spared = parameter.ndim == 1 or name == "embed.position" or name.endswith("bias_table")
        assert grouped[id(parameter)] == (0.0 if spared else 0.1), name


def test_layer_decay_falls_towards_the_input() -> None:
    model = mltr.create_model("mltr_nano", num_classes=3)
    scale = {id(p): g["lr_scale"] for g in parameter_groups(model, 0.1, 0.5) for p in g["params"]}
    scales = [scale[id(parameter)] for parameter in model.parameters()]
    assert scales == sorted(scales)
    assert scales[-1] == 1
    assert scale[id(model.head.weight)] == scale[id(model.head.bias)] == 1
    blocks = model.stages[-1].blocks
    assert scale[id(blocks[-2].mlp.fc1.weight)] == 0.5 * scale[id(blocks[-1].mlp.fc1.weight)]
    assert all(group["lr_scale"] == 1 for group in parameter_groups(model, 0.1, 1.0))


@pytest.mark.parametrize("head", ["average", "csra"])
def test_layer_decay_of_a_pretrained_network_is_the_same_under_any_head(head: str) -> None:
    options = {} if head == "average" else {"head": head, "head_options": {}}
    model = mltr.create_model("timm/tf_efficientnet_lite0", 3, image_size=32, **options)
    backbone = getattr(model, "backbone", model)
    scale = {id(p): g["lr_scale"] for g in parameter_groups(model, 0.1, 0.5) for p in g["params"]}
    stem, last, top = (
        scale[id(layer.weight)]
        for layer in (backbone.conv_stem, backbone.blocks[-1][-1].conv_pwl, backbone.conv_head)
    )
    assert stem < last <= top == 0.5  # below the head alone


def test_layers_of_a_backbone_that_numbers_none_are_its_blocks() -> None:
    model = mltr.create_model("timm/poolformer_s12", 3, head="csra")
    assert not hasattr(model.backbone, "group_matcher")
    scale = {id(p): g["lr_scale"] for g in parameter_groups(model, 0.1, 0.5) for p in g["params"]}
    *_, first, second = (scale[id(b.norm1.weight)] for b in model.backbone.stages[2].blocks)
    assert first == 0.5 * second < 1
    assert scale[id(model.head.weight)] == 1


def test_norms_of_a_backbone_and_of_its_head_are_in_other_layers() -> None:
    model = mltr.create_model("timm/test_convnext", 3, image_size=64, head="mltr")
    scale = {id(p): g["lr_scale"] for g in parameter_groups(model, 0.1, 0.5) for p in g["params"]}
    assert {scale[id(p)] for p in model.head.parameters()} == {1}
    assert scale[id(model.backbone.head.norm.weight)] < 1


@pytest.mark.parametrize(
    "name", ["tf_efficientnet_lite0", "ghostnet_050", "densenet121", "volo_d1_224"]
)
def test_layer_decay_of_timm_networks_is_timms(name: str) -> None:
    model = mltr.create_model(f"timm/{name}", 3)
    expected = {
        id(parameter): group["lr_scale"]
        for group in param_groups_layer_decay(model, layer_decay=0.9)
        for parameter in group["params"]
    }
    scale = {id(p): g["lr_scale"] for g in parameter_groups(model, 0.1, 0.9) for p in g["params"]}
    assert scale == pytest.approx(expected)


def test_onecycle_equals_torch() -> None:
    steps, warmup = 50, 0.2
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.0, total_steps=steps, pct_start=warmup
    )
    for step in range(steps):
        # torch puts the peak at the last step of the warm-up and the end at the last step.
        peak = warmup * steps - 1
        progress = step / peak * warmup if step <= peak else (
            warmup + (step - peak) / (steps - 1 - peak) * (1 - warmup)
        )  # fmt: skip
        expected = theirs.get_last_lr()[0]
        assert lr_factor(progress, warmup, "onecycle") == pytest.approx(expected, abs=1e-9)
        optimizer.step()
        theirs.step()


def test_cosine_warms_up_and_falls_to_zero() -> None:
    factors = [lr_factor(step / 100, 0.1, "cosine") for step in range(101)]
    assert factors[0] == 0
    assert factors[5] == pytest.approx(0.5)
    assert factors[10] == 1
    assert factors[55] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0)
    assert lr_factor(0.0, 0.0, "cosine") == 1


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)]
)
def test_optimizer_of_the_recipe(name: str, kind: type) -> None:
    model = nn.Linear(3, 2)
    optimizer = make_optimizer(model, TrainConfig(optimizer=name, lr=0.5, layer_decay=0.5))
    assert isinstance(optimizer, kind)
    set_lr(optimizer, 0.1)
    assert {group["lr"] for group in optimizer.param_groups} <= {0.1, 0.05}


def test_average_equals_timm_at_full_decay_and_follows_buffers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    ours, theirs = AveragedModel(model, 0.8), ModelEmaV3(model, decay=0.8)
    for step in range(60, 70):
        model(torch.randn(8, 4))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        ours.update(model, step)
        theirs.update(model)
    for name, value in theirs.module.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(ours.weights[name], value)
    assert ours.weights["1.num_batches_tracked"] == 10


def test_average_starts_quickly() -> None:
    model = nn.Linear(2, 2)
    average = AveragedModel(model, 0.999)
    with torch.no_grad():
        model.weight.add_(1)
    average.update(model, 0)
    torch.testing.assert_close(average.weights["weight"], model.weight - 0.1)

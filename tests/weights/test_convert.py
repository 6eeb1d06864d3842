"""Other people's weights: CAT against its reference numbers, Swin against timm, bad files."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from making import ONE_TRIPLE, save_untrained, write_image
from reference_cat import cat_checkpoint, small_cat
from torch import Tensor, nn

import mltr
from mltr.cli import main
from mltr.errors import MltrError, UsageError
from mltr.weights.bundle import load_bundle
from mltr.weights.convert import _spread, imagenet_classes, load_cat, load_swin
from mltr.weights.foreign import read_checkpoint

CAT_S = {"embed_dim": 32, "depths": (1, 1, 3, 1), "window_size": 2, "image_size": 64}
#: Swin-T, S, B, L by their depths, beside the variant that takes their weights; widths are cut to
#: a third so that the test is quick. The slow test below has the full ones.
SIZES = {
    "mltr_s": ("swin_tiny_patch4_window7_224", 7, 224),
    "mltr_m": ("swin_small_patch4_window7_224", 12, 384),
    "mltr_l": ("swin_base_patch4_window12_384", 12, 384),
    "mltr_xl": ("swin_large_patch4_window12_384", 12, 384),
}


def wrapped(tensors: dict[str, Tensor], path: Path) -> Path:
    """Save as the authors do: under `model`, here with the prefix of a parallel training, too."""
    torch.save({"model": {f"module.{k}": v for k, v in tensors.items()}, "epoch": 3}, path)
    return path


# -- CAT ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cat_c32", "cat_tiny"])
def test_reference_numbers_through_the_command(
    shared: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    case = json.loads((shared / "parity" / f"{name}.json").read_text())
    file = wrapped(cat_checkpoint(case), tmp_path / "cat.pth")
    assert main(["convert", "cat", str(file), "--out", str(tmp_path / "out")]) == 0
    assert "tensors taken" in capsys.readouterr().out
    tagger = mltr.load(tmp_path / "out", device="cpu")
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(20210611))
    expected = torch.tensor(case["logits_float32"])
    found = torch.from_numpy(tagger.network(images.numpy()))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert len(tagger.classes) == case["config"]["num_classes"]
    if name == "cat_tiny":
        assert tagger.classes[0] == "tench"
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert config["model"] == {"name": "cat_t", "overrides": {}}


def test_a_deeper_network_begins_as_the_shallow_one() -> None:
    """Blocks that the file lacks start as identity, so the logits are the same."""
    tensors = small_cat(32, (1, 1, 3, 1), 2, 5)
    exact = mltr.create_model("cat_t", num_classes=5, **CAT_S).eval()
    deeper = mltr.create_model("mltr_s", num_classes=5, **CAT_S | {"depths": (2, 1, 5, 2)}).eval()
    assert load_cat(exact, tensors).fresh == []
    report = load_cat(deeper, tensors)
    assert len(report.identity) == 3 * (1 + 2 + 1)
    assert not report.unused
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(deeper(images), exact(images))


def test_the_report_says_what_came_from_where() -> None:
    model = mltr.create_model("mltr_s", num_classes=7, **CAT_S | {"depths": (1, 2, 2, 1)})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tensors = small_cat(32, (1, 1, 3, 1), 2, 5)
    report = load_cat(model, tensors)
    state = model.state_dict()
    assert set(report.taken) | set(report.fresh) == set(state)
    assert not set(report.taken) & set(report.fresh)
    for own, theirs in report.taken.items():
        assert torch.equal(state[own], tensors[theirs].view(state[own].shape))
    head = [name for name in report.fresh if name.startswith("head")]
    assert head == ["head.weight", "head.bias"]  # five classes there, seven here
    assert torch.equal(state["head.weight"], before["head.weight"])
    used = set(report.taken.values())
    assert set(report.unused) == set(tensors) - used
    text = str(report)
    assert "stages.1.blocks.5" in text
    assert "starts as identity" in text
    assert "head.weight is [5, 256] where [7, 256] belongs" in text


def test_only_stages_of_the_same_width_are_filled() -> None:
    tensors = small_cat(32, (1, 1), 2, 5)
    model = mltr.create_model("mltr_s", 5, **CAT_S | {"depths": (1, 1, 1)})
    report = load_cat(model, tensors)
    assert {name.split(".")[1] for name in report.taken if name.startswith("stages")} == {"0", "1"}
    assert report.parts["stages.2.blocks.0"] == "new"
    assert "stages.2.blocks.0" not in report.identity


@pytest.mark.parametrize(
    ("image_size", "window_size"), [(64, 3), (96, 2), (128, 4)], ids=["windows", "image", "both"]
)
def test_other_sizes_are_resampled_and_listed(image_size: int, window_size: int) -> None:
    sizes = {"image_size": image_size, "window_size": window_size, "depths": (1, 1, 3, 1)}
    model = mltr.create_model("cat_t", 5, embed_dim=32, **sizes)
    report = load_cat(model, small_cat(32, (1, 1, 3, 1), 2, 5))
    assert ("embed.position" in report.resampled) is (image_size != 64)
    tables = [name for name in report.resampled if name.endswith("bias_table")]
    assert bool(tables) is (window_size != 2)
    assert report.fresh == []


# -- Swin --------------------------------------------------------------------------------------


def without_shifts(model: Any) -> nn.Module:
    for stage in model.layers:
        for block in stage.blocks:
            block.shift_size = (0, 0)
            block.attn_mask = None
    return model.eval()


def randomise(model: nn.Module) -> None:
    """Weights large enough that a wrong one shows."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        scale = 0.3 if "bias" in name else 0.2 if parameter.ndim == 1 else 1.0
        width = parameter[0].numel() if parameter.ndim > 1 else 1
        offset = (
            1.0 if name.endswith("norm.weight") or "norm1.w" in name or "norm2.w" in name else 0
        )
        parameter.data = offset + scale * noise / width**0.5


def compare_with_swin(variant: str, width: int | None, image_size: int | None = None) -> None:
    """The network warm-started from Swin equals timm's Swin without its shifts.

    Where the network has fewer pixel blocks than Swin, Swin loses those that the report says were
    not used: everything else must be equal.
    """
    swin_name, w, size = SIZES[variant]
    size = image_size or size
    own_width = width or mltr.network.variants.VARIANTS[variant].embed_dim
    swin = timm.create_model(
        swin_name, num_classes=11, img_size=size, window_size=w, embed_dim=own_width,
        num_heads=[own_width // 32 * 2**i for i in range(4)],
    )  # fmt: skip
    randomise(swin)
    model = mltr.create_model(
        variant, num_classes=11, embed_dim=own_width, image_size=size, window_size=w
    ).eval()
    report = load_swin(model, swin.state_dict())
    taken = set(report.taken.values())
    for stage, layer in enumerate(swin.layers):
        kept = [
            block for number, block in enumerate(layer.blocks)
            if f"layers.{stage}.blocks.{number}.norm1.weight" in taken
        ]  # fmt: skip
        layer.blocks = nn.Sequential(*kept)
    images = torch.randn(1, 3, size, size)
    with torch.no_grad():
        expected = without_shifts(swin)(images)
        torch.testing.assert_close(model(images), expected, atol=1e-4, rtol=1e-4)
    assert expected.std() > 0.1


@pytest.mark.parametrize("variant", SIZES)
def test_swin_without_shifts(variant: str) -> None:
    size = 224 if variant == "mltr_s" else 192
    compare_with_swin(variant, width=32, image_size=size)


@pytest.mark.slow
@pytest.mark.parametrize("variant", SIZES)
def test_swin_without_shifts_in_full_size(variant: str) -> None:
    compare_with_swin(variant, width=None)


def test_swin_blocks_are_spread_over_the_stages() -> None:
    """Swin-T has 2, 2, 6, 2 blocks and MlTr-S 2, 4, 4, 2 pixel blocks."""
    swin = timm.create_model(
        "swin_tiny_patch4_window7_224", embed_dim=32, num_heads=(1, 2, 4, 8), num_classes=0
    )
    model = mltr.create_model("mltr_s", num_classes=4, embed_dim=32)
    report = load_swin(model, swin.state_dict())
    sources = {own: theirs for own, theirs in report.parts.items() if ".blocks." in theirs}
    stage1 = {own: theirs for own, theirs in sources.items() if own.startswith("stages.1")}
    stage2 = [theirs for own, theirs in sources.items() if own.startswith("stages.2")]
    assert stage1 == {
        "stages.1.blocks.0": "layers.1.blocks.0", "stages.1.blocks.5": "layers.1.blocks.1",
    }  # fmt: skip
    assert stage2 == [f"layers.2.blocks.{i}" for i in (0, 2, 3, 5)]
    assert "stages.1.blocks.1" in report.identity  # a cross-window block
    assert report.parts["head"].startswith("new")


def test_the_original_files_of_swin_are_read_too() -> None:
    """They downsample at the end of a stage, and hold masks and index tables."""
    swin = timm.create_model(
        "swin_tiny_patch4_window7_224", embed_dim=32, num_heads=(1, 2, 4, 8), num_classes=3
    )
    original = {}
    for name, tensor in swin.state_dict().items():
        stage = int(name.split(".")[1]) if ".downsample." in name else 0
        new = name.replace(f"layers.{stage}.downsample", f"layers.{stage - 1}.downsample")
        original[new.replace("head.fc.", "head.")] = tensor
    original["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49)
    original["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
    models = [mltr.create_model("mltr_s", 3, embed_dim=32).eval() for _ in range(2)]
    for model, tensors in zip(models, (swin.state_dict(), original), strict=True):
        load_swin(model, tensors)
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(models[0](images), models[1](images))


def test_pretrained_weights_come_through_timm(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`swin:NAME` asks timm for its weights; here they lie in a file."""
    real = timm.create_model
    swin = real("swin_tiny_patch4_window7_224", num_classes=5)
    torch.save(swin.state_dict(), tmp_path / "swin.pth")

    def from_file(name: str, pretrained: bool) -> nn.Module:
        overlay = {"file": str(tmp_path / "swin.pth"), "num_classes": 5}
        return real(name, pretrained=pretrained, num_classes=5, pretrained_cfg_overlay=overlay)

    monkeypatch.setattr(timm, "create_model", from_file)
    out = str(tmp_path / "out")
    arguments = ["convert", "swin", "swin_tiny_patch4_window7_224", "--variant", "mltr_s"]
    assert main([*arguments, "--out", out]) == 0
    tagger = mltr.load(out, device="cpu")
    assert torch.equal(tagger.model.head.weight, swin.head.fc.weight)
    assert tagger.preprocess.mean == pytest.approx((0.485, 0.456, 0.406))


def test_a_recipe_names_what_to_start_from(tmp_path: Path) -> None:
    """`model.init` takes `cat:FILE` and `swin:FILE`, and blames itself for what is wrong."""
    from mltr.config.schema import ModelConfig
    from mltr.training.build import build_model

    cat = wrapped(small_cat(64, (1, 1, 3, 1), 7, 5), tmp_path / "cat.pth")
    model = build_model(ModelConfig(name="cat_t", init=f"cat:{cat}"), 4, image_size=224)
    expected = read_checkpoint(cat)["layers.1.cpsa_blocks.0.attn.qkv.weight"]
    assert torch.equal(model.stages[1].blocks[1].attn.qkv.weight, expected)
    swin = timm.create_model("swin_tiny_patch4_window7_224", num_classes=3)
    torch.save(swin.state_dict(), tmp_path / "swin.pth")
    config = ModelConfig(name="mltr_s", init=f"swin:{tmp_path / 'swin.pth'}")
    model = build_model(config, 4, image_size=224)
    assert torch.equal(model.embed.proj.weight, swin.patch_embed.proj.weight)
    with pytest.raises(MltrError, match="model.init cat:none.pth: none.pth: no such file"):
        build_model(ModelConfig(init="cat:none.pth"), 4, image_size=96)


def test_a_bundle_without_labels_is_a_start_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as earlier versions pretrained on photos alone."""
    from mltr.config.schema import ModelConfig
    from mltr.training.build import build_model

    folder, photo = save_untrained(tmp_path / "start", ()), write_image(tmp_path / "a.png")
    start = load_bundle(folder)
    assert start.classes == ()
    config = ModelConfig("mltr_nano", init=str(folder), overrides=ONE_TRIPLE)
    model = build_model(config, num_classes=5, image_size=32)
    own = start.model.state_dict()
    for name, tensor in model.state_dict().items():
        if not name.startswith("head."):
            assert torch.equal(tensor, own[name]), name
    for command in (["predict", str(folder), str(photo)], ["export", str(folder)]):
        assert main(command) == 1
        assert "has no labels yet" in capsys.readouterr().err


# -- what is refused ---------------------------------------------------------------------------


class Bomb:
    """Unpickled by an incautious program, it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.path}",)


def convert_fails(file: Path, out: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    capsys.readouterr()
    assert main(["convert", "cat", str(file), "--out", str(out), *options]) in (1, 2)
    assert not out.exists()  # nothing half-written
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert str(file) in error
    return error


def test_bad_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = small_cat(64, (1, 1, 3, 1), 7, 5)
    whole = wrapped(tensors, tmp_path / "whole.pth")
    out = tmp_path / "out"

    cut = tmp_path / "cut.pth"
    cut.write_bytes(whole.read_bytes()[:-2000])
    assert "damaged or cut short" in convert_fails(cut, out, capsys)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    assert "damaged or cut short" in convert_fails(cut, out, capsys)

    proof = tmp_path / "executed"
    for name, save in (("bomb.pth", torch.save), ("bomb.pkl", _pickle)):
        bomb = tmp_path / name
        save({"model": tensors, "payload": Bomb(proof)}, bomb)
        assert "nothing in it was run" in convert_fails(bomb, out, capsys)
        assert not proof.exists()

    text = tmp_path / "text.pth"
    text.write_text("no weights")
    assert "damaged or not a PyTorch file" in convert_fails(text, out, capsys)
    torch.save([1, 2, 3], text)
    assert "no named tensors" in convert_fails(text, out, capsys)
    assert "no such file" in convert_fails(tmp_path / "none.pth", out, capsys)


def _pickle(content: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))


def test_entries_that_do_not_fit_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = small_cat(64, (1, 1, 3, 1), 7, 5)
    out = tmp_path / "out"
    name = "layers.2.cpsa_blocks.1.attn.qkv.weight"

    file = wrapped(tensors | {name: torch.zeros(10, 49)}, tmp_path / "shape.pth")
    error = convert_fails(file, out, capsys)
    assert f"{name} [10, 49] where [147, 49] belongs" in error
    assert "fit cat_t" in error
    file = wrapped({k: v for k, v in tensors.items() if k != name}, tmp_path / "missing.pth")
    assert f"missing: {name}" in convert_fails(file, out, capsys)
    file = wrapped(tensors | {"layers.9.what": torch.zeros(1)}, tmp_path / "unknown.pth")
    assert "unknown: layers.9.what" in convert_fails(file, out, capsys)
    file = wrapped(tensors | {"norm.weight": torch.full((512,), torch.nan)}, tmp_path / "nan.pth")
    assert "NaN or infinity in norm.weight" in convert_fails(file, out, capsys)


def test_the_variant_that_would_fit_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = wrapped(small_cat(64, (1, 1, 3, 1), 7, 5), tmp_path / "cat_t.pth")
    out = tmp_path / "out"
    for variant in ("cat_s", "cat_b", "mltr_s"):
        error = convert_fails(file, out, capsys, "--variant", variant)
        assert "it would fit cat_t" in error
    swin = timm.create_model("swin_tiny_patch4_window7_224", embed_dim=64, num_heads=(2, 4, 8, 16))
    torch.save(swin.state_dict(), tmp_path / "swin.pth")
    error = convert_fails(tmp_path / "swin.pth", out, capsys, "--variant", "cat_t")
    assert "it looks like Swin: use mltr convert swin" in error


def test_a_bundle_is_not_overwritten_unasked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = wrapped(small_cat(64, (1, 1, 3, 1), 7, 5), tmp_path / "cat_t.pth")
    arguments = ["convert", "cat", str(file), "--variant", "cat_t", "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    before = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    assert main(arguments) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == before
    (tmp_path / "out" / "config.yaml").write_text("model: {name: cat_s}")  # as of a resized run
    (tmp_path / "out" / "model.onnx").write_bytes(b"of a tagger")
    assert main([*arguments, "--overwrite"]) == 0
    assert not (tmp_path / "out" / "config.yaml").exists()
    assert not (tmp_path / "out" / "model.onnx").exists()
    (tmp_path / "out" / "metrics.json").write_text("{}")
    assert main([*arguments, "--overwrite"]) == 2
    assert "holds a training run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["swin", "swin_tinny_patch4_window7_224", "--variant", "mltr_s"], "did you mean 'swin_t"),
        (["swin", "resnet18", "--variant", "mltr_s"], "neither a file nor a Swin"),
        (["cat", "x.pth", "--variant", "cat_z"], "did you mean 'cat_"),
    ],
)
def test_wrong_names_are_reported(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", *arguments, "--out", str(tmp_path / "out")]) == 2
    assert words in capsys.readouterr().err


def test_timm_backbones_take_no_cat_weights() -> None:
    with pytest.raises(UsageError, match="not ResNet"):
        load_cat(mltr.create_model("timm/resnet18", 3), small_cat(32, (1,), 2, 5))
    with pytest.raises(MltrError, match="not weights of Swin"):
        load_swin(mltr.create_model("mltr_s", 3), {"a": torch.zeros(1)})


# -- small parts -------------------------------------------------------------------------------


@given(st.integers(0, 30), st.integers(0, 30))
def test_blocks_are_spread_evenly_and_in_order(own: int, count: int) -> None:
    pairs = list(_spread(range(own), count))
    assert [place for place, _ in pairs] == list(range(own))
    chosen = [source for _, source in pairs if source is not None]
    assert len(chosen) == min(own, count)
    assert chosen == sorted(set(chosen))
    if min(own, count) > 1:
        assert (chosen[0], chosen[-1]) == (0, count - 1)
        assert pairs[0][1] is not None
        assert pairs[-1][1] is not None


def test_wrappers_are_taken_off(tmp_path: Path) -> None:
    tensors = {"a.weight": torch.ones(2)}
    for content in (
        tensors, {"model": tensors}, {"state_dict": {"module.a.weight": torch.ones(2)}, "lr": 1.0}
    ):  # fmt: skip
        torch.save(content, tmp_path / "file.pth")
        assert list(read_checkpoint(tmp_path / "file.pth")) == ["a.weight"]


@pytest.mark.parametrize("count", [1000, 21841, 20])
def test_names_of_classes_differ(count: int) -> None:
    names = imagenet_classes(count)
    assert len(set(names)) == count

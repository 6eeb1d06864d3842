"""Recipes: YAML and overrides, and what is said of mistakes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mltr.config.recipe import find_recipe, load_recipe, to_yaml, value_of
from mltr.config.schema import Config
from mltr.errors import UsageError

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))

#: Nine times nine times ... nine values: half a gigabyte as soon as anyone writes them out.
ALIASES_OF_ALIASES = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 9)
)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_and_tells_its_command(path: Path) -> None:
    assert isinstance(load_recipe(path), Config)
    head = path.read_text().split("\ndata:")[0]
    assert f"mltr train {path.stem}" in head
    assert re.search(r"\bmap\b|top-1", head, re.IGNORECASE)  # the figure to expect


def test_overrides_win_and_a_resolved_recipe_reads_back(tmp_path: Path) -> None:
    config = load_recipe(
        find_recipe("scenes_nano"),
        ["--train.epochs", "3", "--data.root=/photos", "--model.name", "timm/resnet18",
         "--data.scenes.train", "10", "--model.drop_path", "0.2", "--data.cache=false"],
    )  # fmt: skip
    assert (config.train.epochs, config.data.root) == (3, "/photos")
    assert (config.model.name, config.model.drop_path) == ("timm/resnet18", 0.2)
    assert config.data.scenes.train == 10
    assert config.data.cache is False
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert load_recipe(tmp_path / "again.yaml") == config


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_short_run_warms_up_for_as_small_a_share_as_a_long_one(path: Path) -> None:
    share = load_recipe(path).train.warmup
    assert 0.05 <= share <= 0.2
    assert load_recipe(path, ["--train.epochs", "10"]).train.warmup == share


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("{epochs: 80, warmup_epochs: 5.0}", 0.0625),
        ("{warmup_epochs: 10}", 0.25),  # of 40, where nothing is said
        ("{epochs: 300, warmup_epochs: 20}", 0.0667),
        ("{epochs: 2, warmup_epochs: 5}", 1.0),
        ("{epochs: 80, warmup_epochs: 0}", 0.0),
    ],
)
def test_recipes_of_earlier_versions_load(tmp_path: Path, text: str, share: float) -> None:
    (tmp_path / "r.yaml").write_text(f"train: {text}")
    assert load_recipe(tmp_path / "r.yaml").train.warmup == share


def test_network_overrides(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("model:\n  name: mltr_s\n  overrides: {depths: [1, 1]}\n")
    assert load_recipe(path).model.overrides == {"depths": [1, 1]}
    config = load_recipe(path, ["--model.overrides.window_size", "4"])
    assert config.model.overrides == {"depths": [1, 1], "window_size": 4}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: {epoch: 3}", r"r.yaml: no key 'train.epoch'; did you mean 'train.epochs'"),
        ("trian: {epochs: 3}", r"no key 'trian'; did you mean 'train'"),
        ("train: {epochs: many}", r"train.epochs: expected int, got many"),
        ("train: {epochs: -1}", r"train.epochs must be at least 0"),
        ("train: {seed: -1}", r"train.seed must lie in 0..2147483647"),
        ("data: {split_seed: -1}", r"data.split_seed must be at least 0"),
        ("train: {weight_decay: -5}", r"train.weight_decay must be at least 0"),
        ("model: {head_options: {lam: 1}}", r"head_options.lam has no effect on the head average"),
        ("model: {drop_path: 1.5}", r"model.drop_path must lie in \[0, 1\), not 1.5"),
        ("train: {lr: -1}", r"train.lr must be positive"),
        ("train: {warmup: 5}", r"train.warmup must lie in 0..1: a share of the run"),
        (
            "loss: {name: hinge}",
            r"loss.name: expected one of 'asl', .*, got hinge",
        ),
        ("data: {cache: true}", r"data.cache needs data.base_size"),
        ("train: {lr: }", r"r.yaml: train.lr has no value: give one, or leave the line out"),
        ("model: {name: }", r"model.name has no value"),
        ("data: {scenes: {side: }}", r"data.scenes.side has no value"),
        (
            "train: {epochs: 3}\nloss: {}\ntrain: {lr: 1}",
            r"line 3: train is there a second time",
        ),
        ("train: {epochs: 3, lr: 1, epochs: 7}", r"line 1: epochs is there a second time"),
        ("train: 3", "sections"),
        (ALIASES_OF_ALIASES, "r.yaml: more than 10,000 values after expanding its aliases"),
        ("train: &a {epochs: [*a]}", "nested too deeply, or contains itself"),
        ("train: " + "[" * 20_000, "nested too deeply, or contains itself"),
        ("data: {root: 2026-13-45}", "r.yaml: not YAML: month must be in 1..12"),
        ("- 3", "sections"),
        ("train: [", "not YAML"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UsageError, match=words):
        load_recipe(tmp_path / "r.yaml")


@pytest.mark.parametrize(
    ("key", "inside", "outside"),
    [
        ("data.scenes.side", [32], [31]),
        ("data.val_fraction", [0.01, 0.99], [0, 1]),
        ("data.max_broken", [0, 1], [-0.1, 1.1]),
        ("data.workers", [-1, 0], [-2]),
        ("data.cache_gb", [0.1], [0, -1]),
        ("augment.min_scale", [0.1, 1], [0, 1.1]),
        ("augment.jitter", [0, 0.9], [-0.1, 1]),
        ("augment.randaugment_magnitude", [0, 30], [-1, 31]),
        ("augment.mixup", [0, 0.2], [-0.1]),
        ("model.image_size", [0, 64], [-1]),
        ("loss.gamma_pos", [0], [-1]),
        ("loss.clip", [0, 0.9], [-0.1, 1]),
        ("train.batch_size", [1], [0]),
        ("train.seed", [0, 2**31 - 1], [-1, 2**31]),
        ("train.patience", [0], [-1]),
        ("train.clip_grad", [0], [-1, ".nan"]),
        ("train.ema_decay", [0, 0.999], [1, ".nan"]),
        ("train.layer_decay", [0.1, 1], [0, 1.1]),
    ],
)
def test_bounds_hold_in_files_and_on_the_command_line(
    tmp_path: Path, key: str, inside: list[float], outside: list[float | str]
) -> None:
    path = tmp_path / "r.yaml"
    *sections, name = key.split(".")
    for number in [*inside, *outside]:
        nested = f"{{{name}: {number}}}"
        for section in reversed(sections):
            nested = f"{{{section}: {nested}}}"
        path.write_text(nested)
        if number in inside:
            assert value_of(load_recipe(path), key) == number
            continue
        for given, overrides in ((path, []), (find_recipe("scratch"), [f"--{key}={number}"])):
            with pytest.raises(UsageError, match=rf"^{key} must (be|lie) .*, not "):
                load_recipe(given, overrides)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--train.epoch", "3"], r"no option '--train.epoch'; did you mean '--train.epochs'"),
        (["--train.epochs", "x"], r"^train.epochs: expected int, got x"),
        (["--train.epochs"], "expected one argument"),
        (["stray"], "unrecognized arguments: stray"),
    ],
)
def test_mistakes_on_the_command_line_are_named(arguments: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load_recipe(find_recipe("scenes_nano"), arguments)


def test_unknown_recipe_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"no recipe 'scenes_nono'; did you mean 'scenes_nano'"):
        find_recipe("scenes_nono")

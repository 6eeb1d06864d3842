"""The command line: fast start-up, clear errors."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from making import TINY_ON_PHOTOS, write_photos

import mltr
from mltr import cli
from mltr.cli import COMMANDS, main
from mltr.config.recipe import fields, load_recipe


def run_python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout


HEAVY = ("torch", "numpy", "PIL", "matplotlib", "rich", "jsonargparse", "timm")
LIGHT = {"mltr", "yaml", "_yaml", "psutil", "filelock"}  #: the packages that a help may import


def test_no_help_imports_anything_heavy() -> None:
    printed = run_python(f"""
import sys
before = {{*sys.modules, *sys.stdlib_module_names}}
from mltr.cli import COMMANDS, main
for name in ("", *COMMANDS):
    try:
        main([*name.split(), "--help"])
    except SystemExit:
        pass
    loaded = [key for key, module in sys.modules.items() if getattr(module, "__file__", None)]
    heavy = {{key.partition(".")[0] for key in loaded}} - before - {LIGHT!r}
    print(f"the help of mltr {{name}} imports", *heavy)
""")
    told = [line for line in printed.splitlines() if line.startswith("the help of")]
    assert told == [f"the help of mltr {name} imports" for name in ("", *COMMANDS)]
    assert all(name in printed.partition("the help of")[0] for name in COMMANDS)


def test_importing_the_package_imports_nothing_heavy() -> None:
    printed = run_python(
        f"import sys, mltr; print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    assert printed.strip() == "[]"
    assert len(mltr.__all__) <= 8
    assert all(getattr(mltr, name) is not None for name in mltr.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mltr.nothing  # noqa: B018


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main([*command.split(), "--help"])
    assert end.value.code == 0
    assert f"usage: mltr {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "no command 'trian'; did you mean 'train'"),
        (["train"], "RECIPE"),
        (["train", "no_such"], "no recipe 'no_such'"),
        (["train", "scenes_nano", "--train.epoch", "1"], "did you mean '--train.epochs'"),
        (["train", "scenes_nano", "--resum"], "did you mean '--resume'"),
        (["train", "scenes_nano", "--epochs", "3"], "did you mean '--train.epochs'"),
        (["list", "--clases", "3"], "did you mean '--classes'"),
        (["evaluate", "run", "--split", "tset"], "invalid choice: 'tset'"),
    ],
)
def test_wrong_usage_is_named_and_exits_with_2(arguments: list[str], words: str, capsys) -> None:
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("mltr: error: ")
    assert words in message


def test_no_command_shows_the_table(capsys) -> None:
    assert main([]) == 2
    assert "usage: mltr COMMAND" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert mltr.__version__ in capsys.readouterr().out


def test_an_unexpected_error_is_one_line_unless_debugged(monkeypatch, capsys) -> None:
    def fail(arguments: list[str]) -> int:
        raise RuntimeError("boom")

    monkeypatch.setattr(cli, "_dispatch", fail)
    assert main(["list"]) == 1
    message = capsys.readouterr().err
    assert "internal error: RuntimeError: boom" in message
    assert "--debug" in message
    with pytest.raises(RuntimeError):
        main(["list", "--debug"])


def test_too_little_memory_is_no_bug(monkeypatch, capsys) -> None:
    for error in (torch.OutOfMemoryError("CUDA out of memory. Tried\nto ..."), MemoryError()):

        def fail(arguments: list[str], error: Exception = error) -> int:
            raise error

        monkeypatch.setattr(cli, "_dispatch", fail)
        assert main(["list"]) == 1
        (message,) = capsys.readouterr().err.splitlines()
        assert message.startswith("mltr: error: out of memory (")
        assert "lower --batch-size" in message


def test_list_gives_the_parameter_counts(tmp_path: Path, capsys) -> None:
    assert main(["list", "--json", str(tmp_path / "list.json")]) == 0
    figures = json.loads((tmp_path / "list.json").read_text())
    assert figures["mltr_s"]["parameters"] == 33_039_086
    assert "mltr_nano" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "own", "fields"),
    [
        (["--data.root", "COCO", "RUN"], ["RUN"], ["--data.root=COCO"]),
        (["--data.root=COCO", "RUN", "--json", "-"], ["RUN", "--json", "-"], ["--data.root=COCO"]),
        (["RUN", "--data.cache", "--rerun"], ["RUN", "--rerun"], ["--data.cache=true"]),
        (["--data.cache", "RUN"], ["RUN"], ["--data.cache=true"]),
        (["--data.cache", "false", "RUN"], ["RUN"], ["--data.cache=false"]),
        (["--data.workers", "-1", "RUN"], ["RUN"], ["--data.workers=-1"]),
        (["--json", "f.json", "RUN", "--out=x.y"], ["--json", "f.json", "RUN", "--out=x.y"], []),
        (["--data.root", "a", "--", "--data.root"], ["--", "--data.root"], ["--data.root=a"]),
    ],
)
def test_recipe_fields_are_separated_from_a_commands_own_arguments(
    arguments: list[str], own: list[str], fields: list[str]
) -> None:
    assert cli._divide(arguments) == (own, fields)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--data.root", "{photos}", "{run}", "--json", "{out}"],
        ["--json={out}", "--data.root={photos}", "{run}"],
        ["--data.cache", "false", "--data.root", "{photos}", "{run}", "--json", "{out}"],
        ["--data.val_fraction", "0.2", "--json", "{out}", "{run}", "--data.root", "{photos}"],
    ],
)
def test_options_may_stand_before_the_run(small_run: Path, tmp_path: Path, arguments) -> None:
    out = tmp_path / "figures.json"
    names = {"photos": small_run.parent / "photos", "run": small_run, "out": out}
    assert main(["evaluate", *(argument.format(**names) for argument in arguments)]) == 0
    assert json.loads(out.read_text())["images"] == 4


@pytest.mark.parametrize(
    "arguments",
    [
        ["{run}"],
        ["{run}", "{photos}"],
        ["{photos}", "--run", "{run}"],
        ["--split", "test", "val", "{run}"],
        ["--split", "test", "--data.max_broken", "0.5", "{run}", "--no-duplicates", "{photos}"],
    ],
)
def test_an_audit_takes_its_run_as_every_command_does(
    small_run: Path, tmp_path: Path, arguments
) -> None:
    names = {"photos": small_run.parent / "photos", "run": small_run}
    out = tmp_path / "figures.json"
    places = [argument.format(**names) for argument in arguments]
    assert main(["audit", *places, "--out", str(tmp_path / "audit"), "--json", str(out)]) == 0
    images = json.loads((small_run / "splits.json").read_text())
    asked = {"train", "val", "test"}
    if "--split" in arguments:
        asked &= set(arguments)
    assert json.loads(out.read_text())["images"] == sum(len(images[name]) for name in asked)


def test_an_audit_without_a_run_says_how(capsys) -> None:
    assert main(["audit"]) == 2
    assert "mltr audit RUN [SOURCE]" in capsys.readouterr().err


def test_photos_may_be_named_after_the_recipe(small_run: Path, tmp_path: Path, capsys) -> None:
    photos = str(small_run.parent / "photos")
    out = tmp_path / "run"
    assert main(["train", "scratch", photos, *TINY_ON_PHOTOS, "--out", str(out)]) == 0
    assert load_recipe(out / "config.yaml").data.root == photos
    assert main(["plan", "scratch", photos, *TINY_ON_PHOTOS, "--gpus", "A100-80GB"]) == 0
    assert main(["train", "scratch", photos, "--data.root", "elsewhere"]) == 2
    assert "both give the photos" in capsys.readouterr().err


def test_help_lists_the_fields_with_the_values_of_the_recipe(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["train", "scratch", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "--data.root TEXT folder, file," in shown
    assert "--train.epochs N" in shown and "(default: 120)" in shown  # of recipes/scratch.yaml
    assert "--augment.crop {squash,random}" in shown and "(default: random)" in shown
    assert "--data.cache {true,false}" in shown and "(default: true)" in shown
    assert "--train.lr X highest learning rate; positive (default: 0.001)" in shown
    assert "--augment.cutout X" in shown and "; in [0, 1) (default: 0.0)" in shown
    known = [field for field in fields() if not dataclasses.is_dataclass(field.kind)]
    assert len(known) > 70
    for field in known:
        assert f"--{field.key} " in shown, field.key
        assert field.words.partition(";")[0], f"{field.key} has no comment in schema.py"


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def run_mltr(*arguments: str, shell: str = "", **environment: str) -> subprocess.CompletedProcess:
    """Run the command in a new process, followed by `shell`, such as a redirection."""
    command = shlex.join([sys.executable, "-m", "mltr", *arguments])
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHON"))}
    return subprocess.run(
        ["bash", "-c", f"{command} {shell}"], capture_output=True, text=True, encoding="utf-8",
        env=variables | {"LC_ALL": "C.UTF-8"} | environment, check=False,
    )  # fmt: skip


def test_one_of_several_processes_ends_with_its_own_exit_code() -> None:
    """It leaves the interpreter as it is, with all output written."""
    listed = run_mltr("cache", WORLD_SIZE="2")
    assert listed.returncode == 0
    assert listed.stdout == run_mltr("cache").stdout != ""
    done = run_mltr("predict", "nowhere", "photo.png", WORLD_SIZE="2")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "mltr: error: no such file or folder: photo.png\n"
    # Also where it leaves as by SIGTERM.
    code = "from mltr import cli\ndef main(): raise SystemExit(3)\ncli.main = main\ncli.console()"
    environment = {**os.environ, "RANK": "0", "WORLD_SIZE": "2"}
    left = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert left.returncode == 3


@pytest.mark.parametrize("name", [n for n, c in COMMANDS.items() if c.sections == cli.DATA])
def test_fields_without_an_effect_are_refused(name: str, capsys) -> None:
    assert main([*name.split(), "run", "--model.image_size", "256"]) == 2
    assert capsys.readouterr().err == (
        f"mltr: error: mltr {name} has no use for --model.image_size: of a recipe's fields, it "
        f"takes those of data (see `mltr {name} --help`)\n"
    )
    with pytest.raises(SystemExit):
        main([*name.split(), "--help"])
    shown = capsys.readouterr().out
    assert "--data.root" in shown
    assert "--model." not in shown


def test_commands_keep_the_memory_that_they_free() -> None:
    faults = run_python("""
import resource
from concurrent.futures import ThreadPoolExecutor
from mltr import cli

def block():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(100_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def main():
    with ThreadPoolExecutor(1) as network:
        network.submit(block).result()
        print(network.submit(block).result())
    return 0

if not cli.keep_freed_memory():
    print("not here")
cli.main = main
cli.console()
""")
    if "not here" in faults:
        pytest.skip("this C library isn't glibc, or the environment says otherwise")
    assert int(faults) < 100


def test_photos_and_labels_beyond_ascii_in_a_locale_without_them(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "ü", 12)
    (photos / "0.png").rename(photos / "é☃.png")
    table = (photos / "labels.csv").read_text().replace("\n0.png", "\né☃.png")
    (photos / "labels.csv").write_text(table.replace("sea", "mère"), "utf-8")
    done = run_mltr("data", str(photos), "--json", str(tmp_path / "é.json"), **ASCII)
    assert (done.returncode, done.stderr) == (
        0, f"next: mltr train probe {shlex.quote(str(photos))}\n",
    )  # fmt: skip
    assert "mère" in done.stdout
    report = json.loads((tmp_path / "é.json").read_text("utf-8"))[str(photos)]
    assert report["broken"] == []
    assert report["classes"] == ["mère", "sunset"]
    asked = run_mltr("data", str(photos), "--quick", PYTHONIOENCODING="ascii")
    assert asked.returncode == 0
    assert r"m\u00e8re" in asked.stdout
    told = run_mltr("data", str(photos), "--quick", "--json", "-", PYTHONIOENCODING="cp1252")
    assert json.loads(told.stdout)[str(photos)]["classes"] == ["mère", "sunset"]


@pytest.mark.parametrize("command", [["cache"], ["evaluate", "--help"], ["list", "--json", "-"]])
def test_output_that_cannot_be_written_is_reported_in_one_line(command: list[str]) -> None:
    done = run_mltr(*command, shell="> /dev/full")
    assert (done.returncode, done.stderr) == (
        1, "mltr: error: standard output: No space left on device; free some space or write to "
        "another disk\n",
    )  # fmt: skip
    closed = run_mltr(*command, shell=">&-")
    assert (closed.returncode, closed.stderr) == (0, "mltr: standard output is closed\n")
    assert run_mltr(*command, shell="2>&-").returncode == 0


REFUSED = {
    "data": ["{photos}"], "evaluate": ["{run}"], "diagnose": ["{run}"], "report": ["{run}"],
    "audit": ["{run}"], "calibrate": ["{run}", "--min-positives", "1"],
    "explain": ["{run}", "{photos}/0.png"], "export": ["{run}"], "resize": ["{run}"],
    "shard": ["{photos}"],
}  # fmt: skip
ENDINGS = {"report": "/page.html", "export": "/model.onnx"}


@pytest.mark.parametrize("command", REFUSED)
def test_a_folder_that_takes_no_files_is_reported_in_one_line(
    command: str, small_run: Path, capfd
) -> None:
    names = {"photos": small_run.parent / "photos", "run": small_run}
    arguments = [argument.format(**names) for argument in REFUSED[command]]
    size = ["--image-size", "64"] if command == "resize" else []
    out = "/proc/self/nothing" + ENDINGS.get(command, "")
    assert main([command, *arguments, *size, "--out", out]) == 1
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "error" in line]
    assert line.startswith(
        (
            "mltr: error: can't write /proc/",
            "mltr: error: can't make the folder /proc/",
            "mltr: error: /proc/",
        )
    )
    assert "No such file or directory" in line


@pytest.mark.parametrize("command", ["evaluate", "explain"])
def test_a_full_disk_is_reported_with_the_file(
    command: str, small_run: Path, tmp_path: Path
) -> None:
    photos = [str(small_run.parent / "photos" / "0.png")] if command == "explain" else []
    asked = ["-m", "mltr", command, str(small_run), *photos, "--out", str(tmp_path / "out")]
    done = subprocess.run(
        ["bash", "-c", f"ulimit -f 4; {shlex.join([sys.executable, *asked])}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith(f"mltr: error: can't write {tmp_path / 'out'}/")
    assert done.stderr.endswith(".png: File too large\n")
    assert not list((tmp_path / "out").iterdir())


NEXT = {
    "data": "mltr train probe {photos}", "evaluate": "mltr calibrate {run}",
    "diagnose": "mltr audit {run}", "calibrate": "mltr predict {run} PHOTOS",
    "explain": "mltr report {run}", "report": "mltr predict {run} PHOTOS",
    "predict": "mltr serve {run}",
}  # fmt: skip


@pytest.mark.parametrize("command", NEXT)
def test_a_command_ends_with_what_to_type_next(
    command: str, small_run: Path, tmp_path: Path, monkeypatch, capsys, caplog
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"photos": small_run.parent / "photos", "run": small_run}
    asked = REFUSED.get(command, ["{run}", "{photos}/0.png", "--out", "tags.csv"])
    arguments = [command, *(argument.format(**names) for argument in asked)]
    assert main(arguments) == 0
    assert caplog.messages[-1] == f"next: {NEXT[command].format(**names)}"
    if command != "report":
        capsys.readouterr()
        caplog.clear()
        machine = arguments[:-2] if command == "predict" else arguments
        assert main([*machine, "--json", "-"]) == 0
        assert json.loads(capsys.readouterr().out)
        assert "next:" not in caplog.text


def test_the_next_command_reads_the_source_as_this_one_did(tmp_path: Path, caplog) -> None:
    photos = write_photos(tmp_path / "my photos", 12)
    (photos / "labels.csv").rename(tmp_path / "labels.csv")
    table = str(tmp_path / "labels.csv")
    assert main(["data", table, "--images", str(photos), "--data.val_fraction", "0.2"]) == 0
    wanted = f"--data.images {shlex.quote(str(photos))} --data.val_fraction 0.2"
    assert caplog.messages[-1] == f"next: mltr train probe {table} {wanted}"


def test_data_takes_the_names_of_a_recipe(tmp_path: Path, capsys) -> None:
    photos = write_photos(tmp_path / "photos", 12)
    (photos / "labels.csv").rename(photos / "other.csv")
    for option in (["--data.labels", "other.csv"], ["--labels", "other.csv"]):
        assert main(["data", *option, str(photos), "--quick", "--json", "-"]) == 0
        report = json.loads(capsys.readouterr().out)[str(photos)]
        assert sum(split["images"] for split in report["splits"].values()) == 12
    assert main(["data", str(photos), "--data.lables", "other.csv"]) == 2
    assert "did you mean '--data.labels'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["data", "--help"])
    assert "short for --data.labels: the file of labels" in " ".join(
        capsys.readouterr().out.split()
    )


def test_what_a_hurried_user_types(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, caplog
) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["train", "--out", "runs/x", "coco", "--help"])
    assert "(default: 2014)" in " ".join(capsys.readouterr().out.split())
    for words in ([], ["--out", "runs/x"], ["--out", "probe"]):
        assert main(["train", *words, "cocoo", "--help"]) == 2
        assert "did you mean 'coco'?" in capsys.readouterr().err
    assert main(["data", "scenes", "--quick"]) == 0
    assert caplog.messages[-1] == "next: mltr demo"
    assert main(["data", f"table:{write_photos(tmp_path / 'my photos')}", "--quick"]) == 0
    wanted = f"{shlex.quote(str(tmp_path / 'my photos'))} --data.format table"
    assert caplog.messages[-1] == f"next: mltr train probe {wanted}"
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "")
    assert main(["list"]) == 0


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("in_chans=1", "model.overrides.in_chans: photos have three channels"),
        ("image_size=64", "model.overrides.image_size: set model.image_size"),
        ("num_classes=3", "model.overrides.num_classes: the data decide on it"),
        ("mlp_ratio=-1", "mlp_ratio=-1 must be positive"),
        ("mlp_ratio=x", "mlp_ratio='x' must be a number"),
        ("drop_path=x", "drop_path='x' must be a number"),
        ("conv_depths=[-1]", "conv_depths=(-1,) must be 0 or more"),
        ("head_dim=true", "head_dim=True must be a positive whole number"),
        ("head_dim=0", "head_dim=0 must be a positive whole number"),
        ("embed_dim=wide", "embed_dim='wide' must be a positive whole number"),
        ("window_size=3.5", "window_size=3.5 must be a positive whole number"),
    ],
)
def test_impossible_networks_are_refused_in_a_line(option: str, words: str, capsys) -> None:
    assert main(["plan", "coco", "--gpus=L4", f"--model.overrides.{option}"]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1

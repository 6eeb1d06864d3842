"""Which precision and how many threads: what is faster, and what the environment says."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import mltr
from mltr.errors import UsageError
from mltr.machine.choice import is_faster
from mltr.machine.precision import _gains_by_bf16, choose_precision, slow_cpu_types
from mltr.machine.threads import on_one_thread, told_threads


@pytest.mark.parametrize(
    ("abilities", "gains", "chosen"),
    [
        ({"avx2": True}, True, "fp32"),
        ({"avx512_bf16": True}, True, "bf16"),
        ({"avx512_bf16": True}, False, "fp32"),
        ({"avx512_bf16": True, "amx_bf16": True}, False, "bf16"),
    ],
)
def test_auto_is_bf16_only_where_the_processor_is_faster_in_it(
    abilities: dict, gains: bool, chosen: str, monkeypatch, caplog
) -> None:
    monkeypatch.delenv("MLTR_PRECISION", raising=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: abilities)
    monkeypatch.setattr("mltr.machine.precision._gains_by_bf16", lambda: gains)
    cpu = torch.device("cpu")
    assert choose_precision("auto", cpu) == chosen
    assert choose_precision("fp32", cpu) == "fp32"
    assert not caplog.records
    assert choose_precision("bf16", cpu) == "bf16"
    assert ("slower in bf16" in caplog.text) == (chosen == "fp32")


def test_what_is_faster_is_told_by_the_best_of_several_rounds() -> None:
    hindered = iter([0.0, 0.05, 0.001])  # to get ready, and two rounds

    def quick() -> None:
        time.sleep(next(hindered))

    def slow() -> None:
        time.sleep(0.01)

    assert is_faster(quick, slow, rounds=2)
    assert not is_faster(slow, lambda: time.sleep(0.001), rounds=2)


@pytest.mark.parametrize(("told", "threads"), [("", 0), ("3", 3), (" 2, 1", 2), ("many", 0)])
def test_threads_that_the_environment_sets(told: str, threads: int, monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", told)
    assert told_threads() == threads


def test_the_environment_says_what_auto_is(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for told in ("fp32", "bf16"):
        monkeypatch.setenv("MLTR_PRECISION", told)
        assert choose_precision("auto", cpu) == told
        assert choose_precision("fp32", cpu) == "fp32"
    monkeypatch.setenv("MLTR_PRECISION", "fp64")
    with pytest.raises(UsageError, match="MLTR_PRECISION is 'fp64': set it to fp32 or bf16"):
        choose_precision("auto", cpu)


def test_torch_has_its_threads_back_after_a_context_with_one() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with pytest.raises(KeyError), on_one_thread():
            assert torch.get_num_threads() == 1
            raise KeyError
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


def test_the_processor_is_judged_alike_within_other_defaults(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By products in memory of its own, whatever tensors are made by default."""
    judged = []

    def is_faster(one: Callable[[], Tensor], other: Callable[[], Tensor]) -> bool:
        judged.extend((product.dtype, product.device.type) for product in (one(), other()))
        return False

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setattr("mltr.machine.precision.is_faster", is_faster)
    _gains_by_bf16.cache_clear()
    expected = slow_cpu_types()
    _gains_by_bf16.cache_clear()
    with torch.device("meta"):
        model = mltr.create_model("mltr_nano", 2, depths=(0, 0, 1, 0), image_size=32)
    assert model.slow_types == slow_cpu_types() == expected
    assert judged == [(torch.bfloat16, "cpu"), (torch.float32, "cpu")] * 2
    _gains_by_bf16.cache_clear()

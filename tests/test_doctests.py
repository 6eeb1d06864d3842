"""Every public name of the metrics and the losses has an example, and the examples run."""

from __future__ import annotations

import doctest
from types import ModuleType

import pytest

from mltr import losses, metrics


@pytest.mark.parametrize(
    ("module", "count"), [(metrics, 7), (losses, 9)], ids=["metrics", "losses"]
)
def test_every_public_name_has_an_example_that_runs(module: ModuleType, count: int) -> None:
    found = {test.name: test for test in doctest.DocTestFinder().find(module)}
    public = [
        f"{module.__name__}.{name}"
        for name, value in vars(module).items()
        if callable(value) and not name.startswith("_") and value.__module__ == module.__name__
    ]
    assert len(public) == count
    for name in public:
        assert found[name].examples, name
        assert doctest.DocTestRunner().run(found[name]).failed == 0, name

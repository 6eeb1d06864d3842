"""The API conforms to its own OpenAPI description for any input (schemathesis)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from serving import colour_predictor, live_server

from mltr.serve.app import create_app
from mltr.serve.settings import Settings
from mltr.serve.uploads import IMAGE_TYPES

CHECKS = [content_type_conformance, response_schema_conformance, status_code_conformance]
NO_HEAT_MAPS = 501  #: status of /v1/explain, as the network of this test is exported


@pytest.fixture(scope="module")
def api() -> Iterator[Any]:
    app = create_app(colour_predictor(), Settings(max_body_mb=0.2, timeout_s=10))
    with live_server(app) as server:
        yield schemathesis.openapi.from_url(f"http://127.0.0.1:{server.port}/openapi.json")


@schemathesis.serializer(*IMAGE_TYPES)
def as_it_is(context: Any, value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


@pytest.mark.parametrize("examples", [15, pytest.param(500, marks=pytest.mark.slow)])
def test_every_answer_is_described(api: Any, examples: int) -> None:
    statuses = set()
    for operation in api.get_all_operations():

        @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.ok().as_strategy())
        def check(case: Any) -> None:
            answer = case.call()
            statuses.add(answer.status_code)
            assert answer.status_code < 500 or answer.status_code == NO_HEAT_MAPS, answer.text
            case.validate_response(answer, checks=CHECKS)

        check()
    assert statuses > {200, 422}

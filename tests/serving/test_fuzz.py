"""Fuzzing by the API's own OpenAPI document: every answer is documented and none is a 500."""

from collections import Counter
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import openapi

from tests.serving.bundles import USER_WIDTH
from tests.serving.clients import client_of

PATHS = ["/v1/recommend", "/v1/recommend:batch", "/v1/propensity", "/v1/users/{user_id}/events"]
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much, HealthCheck.large_base_example]
KNOWN: dict[str, list[Any]] = {
    "territory": ["north", "south"],
    "user_id": ["ann", "nobody"],
    "ignore": [[], ["gender"], ["age", "gender"]],
    "history": [["t01"], ["t01", "gone"]],
    "k": [1, 7],
    "attributes": [{}],
    "embedding": [[1.0] * USER_WIDTH],
    "title_id": ["t01", "gone"],
    "title_ids": [["t01", "t02"]],
}


@pytest.fixture(scope="module")
def schema(bundle_uri, store):
    with mock.patch.object(store, "close", mock.AsyncMock()):  # each fuzzed request starts and ends the app
        yield openapi.from_asgi("/openapi.json", client_of(bundle_uri, store).app)


def with_known(body: Any, data: st.DataObject) -> Any:
    """Replace some fields by known values, so that requests pass the first check."""
    if isinstance(body, list):
        return [with_known(one, data) for one in body]
    if not isinstance(body, dict):
        return body
    changed = {key: with_known(value, data) for key, value in body.items()}
    for key in sorted(changed.keys() & KNOWN.keys()):
        if changed[key] is not None and data.draw(st.integers(0, 7)):
            changed[key] = data.draw(st.sampled_from(KNOWN[key]))
    for other in changed.keys() & {"history", "embedding"}:
        if "user_id" in changed and data.draw(st.booleans()):
            changed.pop(data.draw(st.sampled_from(["user_id", other])))
    return changed


@pytest.mark.parametrize("path", PATHS)
def test_every_answer_is_documented_and_none_is_a_500(schema, path):
    operation = schema[path]["PUT" if path.endswith("events") else "POST"]
    documented, seen = set(operation.definition.raw["responses"]), Counter()

    @settings(max_examples=15, deadline=None, database=None, derandomize=True, suppress_health_check=SLOW)
    @given(case=operation.as_strategy(), data=st.data())
    def fuzz(case: Any, data: st.DataObject) -> None:
        case.body = with_known(case.body, data)
        answer = case.call()
        seen[answer.status_code] += 1
        assert answer.status_code < 500, answer.text
        assert answer.status_code == 200 or f"{answer.status_code // 100}XX" in documented
        if answer.status_code != 200:
            assert set(answer.json()) == {"field", "message"}

    fuzz()
    assert seen[200] or path.endswith(":batch")  # one bad request in a batch refuses it

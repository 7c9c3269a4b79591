"""The API without Ray Serve: answers, refusals with a field and a fix, keys, limits, the store and the page."""

import asyncio
import json
import logging
import re
from typing import Any, cast
from urllib.parse import quote

import pytest
import redis
from pydantic import ValidationError
from starlette.testclient import TestClient

from mtrec_ray.bundle.manifest import Bundle
from mtrec_ray.serving import guard
from mtrec_ray.serving.api import build_api
from mtrec_ray.serving.guard import PUBLIC, Message
from mtrec_ray.serving.pointer import LiveEngine
from mtrec_ray.serving.schemas import (
    Combinations,
    Propensities,
    PropensityRequest,
    Recommendation,
    RecommendBatch,
    RecommendRequest,
    RequestBody,
)
from mtrec_ray.serving.service import Service
from mtrec_ray.serving.store import Store, StoreUnavailable, UserState, open_store
from mtrec_ray.serving.telemetry import Telemetry
from tests.serving.bundles import NUM_TITLES, SOUTH_ONLY, TITLE_IDS, USER_WIDTH, write_bundle

HISTORY = {"history": ["t01", "t02", "t03"], "territory": "north"}
ANN = {"user_id": "ann", "territory": "north"}
ONES = [1.0] * USER_WIDTH


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    store = open_store(str(tmp_path_factory.mktemp("api") / "store"))
    embedding = b"\x00\x3c" * USER_WIDTH  # ones
    store.put_many(
        [
            ("ann", UserState(("t01", "t02", "gone"), {"gender": "F", "age": "old"}, "north", embedding)),
            ("bob", UserState(("t09",), {"gender": "M"}, "south", b"")),
            ("new", UserState((), {}, "south", b"")),
        ]
    )
    return store


def client_of(
    bundle: str,
    store: Store | None = None,
    keys: tuple[str, ...] = (),
    root_path: str = "",
    requests_per_s: float = 200.0,
) -> TestClient:
    """A client that raises what the app lets through, which Ray would log."""
    service = Service(LiveEngine(bundle), store, Telemetry())
    return TestClient(build_api(service, keys, requests_per_s), root_path=root_path)


@pytest.fixture(scope="module")
def client(bundle_uri, store) -> TestClient:
    return client_of(bundle_uri, store)  # not entered, because leaving would close the store of other tests


def recommend(client: TestClient, **request: Any) -> dict[str, Any]:
    answer = client.post("/v1/recommend", json=request)
    assert answer.status_code == 200, answer.text
    Recommendation.model_validate(answer.json(), strict=True)
    return answer.json()


def recommend_batch(client: TestClient, *requests: Any) -> Any:
    return client.post("/v1/recommend:batch", json={"requests": requests})


def test_ignored_attributes_change_the_list_and_are_named(client):
    plain = recommend(client, **HISTORY)
    hidden = recommend(client, **HISTORY, ignore=["age", "gender"], attributes={"gender": "F"})
    assert (plain["combination"], hidden["combination"]) == ("none", "gender+age")
    assert plain["source"] == hidden["source"] == "model"
    assert plain["titles"] != hidden["titles"]
    assert (plain["unknown_values"], hidden["unknown_values"]) == ([], ["age"])
    assert plain["bundle_version"] == "v0"


def test_stored_user_equals_its_history_and_attributes(client):
    stored = recommend(client, **ANN, ignore=["gender"])
    attributes = {"gender": "F", "age": "old"}
    sent = recommend(client, history=["t01", "t02"], attributes=attributes, territory="north", ignore=["gender"])
    assert stored["titles"] == sent["titles"]
    assert stored["unknown_titles"] == 1


def test_seen_titles_are_returned_only_on_request(client):
    def titles(**request: Any) -> set[str]:
        return {title["title_id"] for title in recommend(client, **HISTORY, k=NUM_TITLES, **request)["titles"]}

    with_seen = titles(exclude_seen=False)
    assert with_seen - titles() == set(HISTORY["history"])
    assert with_seen == set(TITLE_IDS) - set(SOUTH_ONLY)


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"user_id": "nobody"}, "unknown user"),
        ({"user_id": "new"}, "no known title in the history"),
        ({"history": ["gone"]}, "no known title in the history"),
    ],
)
def test_without_a_history_popular_titles_are_returned_with_the_reason(client, request_, reason):
    answer = recommend(client, **request_, territory="north", ignore=["gender"], k=3)
    assert (answer["source"], answer["reason"]) == ("popularity", reason)
    assert [title["title_id"] for title in answer["titles"]] == ["t10", "t11", "t12"]


def test_batch_equals_its_requests(client):
    requests = [
        {**HISTORY, "ignore": ignore, "territory": territory, "k": k}
        for ignore in ([], ["gender"], ["age"], ["gender", "age"])
        for territory in ("north", "south")
        for k in (1, 7)
    ]
    requests += [{"user_id": user, "territory": "south"} for user in ("ann", "nobody", "bob")]
    answer = recommend_batch(client, *requests)
    assert answer.status_code == 200, answer.text
    for one, request in zip(answer.json()["responses"], requests, strict=True):
        single = recommend(client, **request)
        assert [t["title_id"] for t in one["titles"]] == [t["title_id"] for t in single["titles"]]
        assert {**one, "titles": 0} == {**single, "titles": 0}


@pytest.mark.parametrize(
    ("request_", "field", "text"),
    [
        ({"territory": "north"}, None, "either user_id or history"),
        ({**HISTORY, "user_id": "ann"}, None, "either user_id or history"),
        ({**ANN, "attributes": {"gender": "F"}}, None, "leave attributes out"),
        ({"history": [], "territory": "north"}, "history", "at least 1"),
        ({"history": ["t01"] * 10_000, "territory": "north"}, "history", "at most 1000"),
        ({**HISTORY, "territory": "west"}, "territory", "no territory 'west'"),
        ({**HISTORY, "ignore": ["gender", "race"]}, "ignore[1]", "choose from gender, age"),
        ({**HISTORY, "ignroe": ["gender"]}, "ignroe", "not permitted"),
        ({**HISTORY, "k": 0}, "k", "greater than or equal to 1"),
        ({**HISTORY, "k": NUM_TITLES + 1}, "k", "the catalogue has 40 titles"),
        ({**HISTORY, "k": "many"}, "k", "valid integer"),
        ({**HISTORY, "attributes": {"gender": "X"}}, "attributes.gender", "'F', 'M'"),
        ({**HISTORY, "attributes": {"race": "X"}}, "attributes", "no attribute 'race'"),
    ],
)
def test_refusal_names_the_field_and_the_fix(client, request_, field, text):
    answer = client.post("/v1/recommend", json=request_)
    assert (answer.status_code, answer.json()["field"]) == (422, field)
    assert text in answer.json()["message"]
    batch = recommend_batch(client, HISTORY, request_)
    assert (batch.status_code, batch.json()["field"]) == (422, f"requests[1].{field}" if field else "requests[1]")


@pytest.mark.parametrize(
    ("kind", "request_", "location"),
    [
        (RecommendRequest, {**HISTORY, "b": 1, "a": 1}, ("b",)),
        (RecommendRequest, {**HISTORY, "attributes": {"gender": 1, "age": 1}}, ("attributes", "gender")),
        (RecommendRequest, {**HISTORY, "ignore": [1, 1]}, ("ignore", 0)),
        (PropensityRequest, {"territory": "north", "embedding": [1.0, "x", "x"]}, ("embedding", 1)),
        (RecommendBatch, {"requests": [HISTORY, {**HISTORY, "b": 1, "a": 1}, {"c": 1}]}, ("requests", 1, "b")),
    ],
)
def test_only_the_first_error_is_reported(kind: type[RequestBody], request_, location):
    with pytest.raises(ValidationError) as refused:
        kind.model_validate(request_)
    assert [error["loc"] for error in refused.value.errors()] == [location]


def test_batch_has_a_limited_sum_of_k(client):
    assert len(recommend_batch(client, *[{**HISTORY, "k": 10}] * 1000).json()["responses"]) == 1000
    refused = recommend_batch(client, *[{**HISTORY, "k": 51}] * 1000)
    assert (refused.status_code, refused.json()["field"]) == (422, "requests")
    assert "the sum of k is 51,000, at most 50,000" in refused.json()["message"]


def test_large_batch_lets_others_have_their_turn(bundle_uri):
    service = Service(LiveEngine(bundle_uri), None, Telemetry())
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def work(count: int) -> int:
        before, other = turns, asyncio.create_task(others())
        await service.recommend([RecommendRequest.model_validate(HISTORY)] * count, many=True)
        other.cancel()
        return turns - before

    assert asyncio.run(work(640)) - asyncio.run(work(1)) >= 10


def test_missing_store_is_named(bundle_uri):
    client = client_of(bundle_uri)
    assert recommend_batch(client, HISTORY, ANN).json()["field"] == "requests[1].user_id"
    assert client.post("/v1/recommend", json=ANN).json()["field"] == "user_id"
    propensity = client.post("/v1/propensity", json=ANN)
    assert (propensity.status_code, propensity.json()["field"]) == (422, "user_id")
    assert client.get("/readyz").json()["store"] is None


def test_combination_without_an_eliminator_is_never_replaced(tmp_path):
    client = client_of(str(write_bundle(tmp_path / "bundle", combinations=[("gender",), ("age",)])))
    answer = client.post("/v1/recommend", json={**HISTORY, "ignore": ["age", "gender"]})
    assert (answer.status_code, answer.json()["field"]) == (422, "ignore")
    assert answer.json()["message"] == "no eliminator was trained for gender+age; choose from gender, age"


@pytest.mark.parametrize("body", [b"{", b"[]", b"null", b"\xff\xfe", b'{"history": "t01"}', b'{"territory": NaN}'])
def test_broken_body_is_refused(client, body):
    answer = client.post("/v1/recommend", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)
    assert set(answer.json()) == {"field", "message"}


def test_body_without_json_content_type_is_refused(client):
    answer = client.post("/v1/recommend", content=json.dumps(HISTORY))
    problem = {"field": None, "message": "send the header content-type: application/json"}
    assert (answer.status_code, answer.json()) == (422, problem)


def test_propensities_for_a_user_an_embedding_and_titles(client):
    by_user = client.post("/v1/propensity", json={"user_id": "ann", "territory": "south", "k": 4})
    Propensities.model_validate(by_user.json(), strict=True)
    assert by_user.json()["group"] == 1
    request = {"embedding": ONES, "territory": "south", "title_ids": ["t05", "t01"]}
    by_embedding = client.post("/v1/propensity", json=request).json()
    assert [title["title_id"] for title in by_embedding["titles"]] == ["t05", "t01"]
    assert all(0 < title["propensity"] < 1 for title in by_embedding["titles"])


@pytest.mark.parametrize(
    ("request_", "status", "field"),
    [
        ({"user_id": "bob", "territory": "south"}, 404, "user_id"),
        ({"user_id": "nobody", "territory": "south"}, 404, "user_id"),
        ({"embedding": ONES, "territory": "south", "k": NUM_TITLES + 1}, 422, "k"),
        ({"embedding": [1.0], "territory": "south"}, 422, "embedding"),
        ({"embedding": [1e39] * USER_WIDTH, "territory": "south"}, 422, "embedding"),
        ({"embedding": [3e38] * USER_WIDTH, "territory": "south"}, 422, "embedding"),
        ({"embedding": ONES, "territory": "north", "title_ids": ["t05"]}, 422, "title_ids[0]"),
        ({"embedding": ONES, "territory": "north", "title_ids": ["t01", "gone"]}, 422, "title_ids[1]"),
    ],
)
def test_propensities_that_cannot_be_computed_are_refused(client, request_, status, field):
    answer = client.post("/v1/propensity", json=request_)
    assert (answer.status_code, answer.json()["field"]) == (status, field)


def put_events(client: TestClient, user_id: str, *titles: str, **headers: str) -> Any:
    path = f"/v1/users/{quote(user_id, safe='')}/events"
    return client.put(path, json={"events": [{"title_id": title} for title in titles]}, headers=headers)


def test_stored_event_changes_the_next_recommendation(client):
    assert client.get("/readyz").json()["store"] == "reachable"
    before = recommend(client, user_id="carl", territory="north")
    stored = put_events(client, "carl", "t03", "gone")
    assert stored.json() == {"stored": 1, "unknown_titles": 1, "history_length": 1}
    after = recommend(client, user_id="carl", territory="north")
    assert (before["source"], after["source"]) == ("popularity", "model")
    assert after["titles"] == recommend(client, history=["t03"], territory="north")["titles"]
    nothing = put_events(client, "carl", "gone")
    assert (nothing.status_code, nothing.json()["field"]) == (422, "events")


@pytest.mark.parametrize("user_id", ["a/b", "a/events", "é?#"])
def test_any_text_is_a_user_id(client, user_id):
    stored = put_events(client, user_id, "t03")
    assert (stored.status_code, stored.json()["history_length"]) == (200, 1)
    assert recommend(client, user_id=user_id, territory="north")["source"] == "model"


def test_events_with_a_repeated_key_are_stored_once(client):
    first, again = (put_events(client, "dora", "t03", **{"idempotency-key": "one"}) for _ in range(2))
    assert first.json() == again.json() == {"stored": 1, "unknown_titles": 0, "history_length": 1}
    assert put_events(client, "dora", "t03", **{"idempotency-key": "two"}).json()["history_length"] == 2
    assert put_events(client, "dora", "t03").json()["history_length"] == 3
    for wrong in ("", "x" * 65):
        refused = put_events(client, "dora", "t03", **{"idempotency-key": wrong})
        assert (refused.status_code, refused.json()["field"]) == (422, "idempotency-key")


def test_combinations_have_the_metrics_and_audit_of_the_manifest(client, bundle_uri):
    answer = client.get("/v1/combinations").json()
    Combinations.model_validate(answer)
    manifest = Bundle.open(bundle_uri).manifest.model_dump(mode="json")
    assert [one["name"] for one in answer["combinations"]] == ["none", "gender", "age", "gender+age"]
    for one in answer["combinations"]:
        assert (one["metrics"], one["audit"]) == (manifest["metrics"][one["name"]], manifest["audit"][one["name"]])


class BrokenStore:
    """A store that cannot be reached."""

    async def get(self, *_: Any) -> Any:
        raise StoreUnavailable("gone")

    append = ping = sample = get

    async def close(self) -> None:
        pass


def test_unavailable_store_degrades_answers_and_is_reported(bundle_uri):
    with client_of(bundle_uri, cast(Store, BrokenStore())) as client:
        answer = recommend(client, **ANN, ignore=["gender"], k=2)
        assert (answer["source"], answer["reason"]) == ("popularity", "store unavailable")
        assert recommend(client, **HISTORY)["source"] == "model"
        mixed = recommend_batch(client, HISTORY, ANN).json()["responses"]
        assert [one["reason"] for one in mixed] == [None, "store unavailable"]
        refused = put_events(client, "ann", "t01")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["message"].endswith("send them again with the same Idempotency-Key")
        assert client.get("/readyz").json() == {"status": "ready", "bundle_version": "v0", "store": "unavailable"}
        assert client.get("/healthz").status_code == 200
        examples = client.get("/v1/examples").json()
        assert (examples["users"], len(examples["titles"])) == ([], NUM_TITLES)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": "Basic secret"}, 401),
        ({"x-api-key": "öther"}, 401),
        ({"authorization": "Bearer secret"}, 200),
        ({"x-api-key": "other"}, 200),
    ],
)
def test_api_keys_are_required_and_compared(bundle_uri, headers, status):
    client = client_of(bundle_uri, keys=("secret", "other"))
    sent = {name.encode(): value.encode() for name, value in headers.items()}
    answer = client.post("/v1/recommend", json=HISTORY, headers=sent)
    assert answer.status_code == status
    assert answer.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)
    assert client.get("/v1/examples", headers=sent).status_code == (401 if status == 401 else 404)


@pytest.mark.parametrize("root_path", ["", "/mtrec", "/v1"])
def test_only_public_paths_need_no_key_behind_any_prefix(bundle_uri, root_path):
    client = client_of(bundle_uri, keys=("secret",), root_path=root_path)
    for path in ("/v1/recommend", "/v1/recommend:batch", "/v1/propensity", "/v2", "/page/other", "/healthz/x"):
        assert client.post(root_path + path, json=HISTORY).status_code == 401, path
    for path in PUBLIC - {""}:
        assert client.get(root_path + path).status_code in (200, 204), path
    sent = {"x-api-key": "secret"}
    assert client.post(f"{root_path}/v1/recommend", json=HISTORY, headers=sent).status_code == 200


@pytest.mark.parametrize("root_path", ["", "/mtrec"])
def test_api_documentation_needs_no_other_host(bundle_uri, root_path):
    client = client_of(bundle_uri, keys=("secret",), root_path=root_path)
    for path in ("/docs", "/redoc"):
        files = re.findall(r'(?:src|href)="([^"]+)"', client.get(root_path + path).text)
        assert any(file.endswith(".js") for file in files)
        assert {client.get(file).status_code for file in files} == {200}


def test_each_key_has_its_own_rate(bundle_uri):
    client = client_of(bundle_uri, keys=("a", "b"), requests_per_s=1.0)
    answers = [client.get("/v1/combinations", headers={"x-api-key": key}) for key in "aaab"]
    assert [answer.status_code for answer in answers] == [200, 200, 429, 200]
    assert answers[2].headers["retry-after"] == "1"


def test_long_body_is_refused_with_and_without_content_length(client, monkeypatch):
    monkeypatch.setattr(guard, "MAX_BODY_BYTES", 200)
    assert client.post("/v1/recommend", json=HISTORY).status_code == 200
    body = json.dumps({**HISTORY, "history": ["t01"] * 100}).encode()
    parts = (body[start : start + 50] for start in range(0, len(body), 50))
    assert [client.post("/v1/recommend", content=content).status_code for content in (body, parts)] == [413, 413]


def test_too_many_requests_in_flight_get_503(client, monkeypatch):
    monkeypatch.setattr(guard, "MAX_IN_FLIGHT", 1)
    client.app.in_flight = 1
    busy = client.post("/v1/recommend", json=HISTORY)
    assert (busy.status_code, busy.headers["retry-after"]) == (503, "1")
    assert client.get("/healthz").status_code == 200
    client.app.in_flight = 0
    assert client.post("/v1/recommend", json=HISTORY).status_code == 200
    assert client.app.in_flight == 0


def test_request_counts_as_in_flight_from_its_admission(bundle_uri, monkeypatch):
    monkeypatch.setattr(guard, "MAX_IN_FLIGHT", 1)
    monkeypatch.setattr(guard, "MAX_BODY_BYTES", 8)
    app: Any = client_of(bundle_uri).app
    scope = {"type": "http", "method": "POST", "path": "/v1/recommend", "headers": []}

    async def work() -> list[int]:
        codes, rest = [], asyncio.Event()

        async def slow() -> Message:
            await rest.wait()
            return {"type": "http.request", "body": b"x" * 9}

        async def send(message: Message) -> None:
            codes.extend([message["status"]] if "status" in message else [])

        first = asyncio.create_task(app({**scope}, slow, send))
        await asyncio.sleep(0)
        await asyncio.wait_for(app({**scope}, slow, send), timeout=5)
        assert app.in_flight == 1
        rest.set()
        await first
        return codes

    assert asyncio.run(work()) == [503, 413]
    assert app.in_flight == 0


def test_no_value_of_a_request_is_logged(bundle_uri, caplog, monkeypatch):
    def broken(*_):
        raise RuntimeError("F t01 ann") from redis.ResponseError("RPUSH mtrec:history:ann t01")

    with caplog.at_level(logging.DEBUG), client_of(bundle_uri) as client:
        client.post("/v1/recommend", json={**HISTORY, "attributes": {"gender": "F"}, "ignore": ["gender"]})
        client.post("/v1/recommend", json={**HISTORY, "attributes": {"gender": "t0815"}})
        monkeypatch.setattr("mtrec_ray.serving.engine.Engine.recommend", broken)
        failed = client.post("/v1/recommend", json=HISTORY)
    assert (failed.status_code, failed.json()) == (500, {"field": None, "message": "internal error"})
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("mtrec")]
    assert ours == ["a request failed: RuntimeError"]
    assert not [record for record in caplog.records if "t01" in logging.Formatter().format(record)]


def test_page_is_served_with_a_strict_policy(client):
    for path, kind in (("/", "text/html"), ("/page/page.css", "text/css"), ("/page/page.js", "text/javascript")):
        answer = client.get(path)
        assert answer.status_code == 200, path
        assert answer.headers["content-type"].startswith(kind)
    assert "default-src 'self'" in client.get("/").headers["content-security-policy"]
    for path in ("/page/../engine.py", "/page/engine.py", "/nothing"):
        assert client.get(path).status_code == 404

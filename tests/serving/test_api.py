"""The API without Ray Serve: answers, refusals with a field and a fix, keys, limits, the store and what it knows."""

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

from mtrec_ray.serving.api import build_api
from mtrec_ray.serving.config import LimitsConfig
from mtrec_ray.serving.guard import PUBLIC, Message
from mtrec_ray.serving.live import LiveEngine
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


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> str:
    return str(write_bundle(tmp_path_factory.mktemp("api") / "bundle"))


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    store = open_store(str(tmp_path_factory.mktemp("api store") / "store"))
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
    bundle: str, store: Store | None, keys: tuple[str, ...] = (), root_path: str = "", **limits: Any
) -> TestClient:
    """A client that raises what the app lets through, which Ray would log."""
    service = Service(LiveEngine(bundle, 0.05), store, Telemetry(), batch_rows=8)
    return TestClient(build_api(service, keys, LimitsConfig(**limits)), root_path=root_path)


@pytest.fixture(scope="module")
def client(bundle, store) -> TestClient:
    return client_of(bundle, store)  # not entered: leaving would close the store that other tests use


def recommend(client: TestClient, **request: Any) -> dict[str, Any]:
    answer = client.post("/v1/recommend", json=request)
    assert answer.status_code == 200, answer.text
    Recommendation.model_validate(answer.json(), strict=True)
    return answer.json()


def test_switches_change_the_list_and_are_named(client):
    plain = recommend(client, **HISTORY)
    hidden = recommend(client, **HISTORY, ignore=["age", "gender"], attributes={"gender": "F"})
    assert (plain["combination"], hidden["combination"]) == ("none", "gender+age")
    assert plain["source"] == hidden["source"] == "model"
    assert plain["titles"] != hidden["titles"]
    assert (plain["unknown_values"], hidden["unknown_values"]) == ([], ["age"])
    assert plain["bundle_version"] == "v0"


def test_a_stored_user_is_their_history_and_values(client):
    stored = recommend(client, user_id="ann", territory="north", ignore=["gender"])
    typed = recommend(
        client, history=["t01", "t02"], attributes={"gender": "F", "age": "old"}, territory="north", ignore=["gender"]
    )
    assert stored["titles"] == typed["titles"]
    assert stored["unknown_titles"] == 1


def test_seen_titles_come_only_when_asked_for(client):
    asked = {**HISTORY, "k": NUM_TITLES}
    without = {title["title_id"] for title in recommend(client, **asked)["titles"]}
    with_seen = {title["title_id"] for title in recommend(client, **asked, exclude_seen=False)["titles"]}
    assert with_seen - without == set(HISTORY["history"])
    assert not with_seen & set(SOUTH_ONLY)
    assert with_seen | set(SOUTH_ONLY) == set(TITLE_IDS)


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"user_id": "nobody", "territory": "north"}, "unknown user"),
        ({"user_id": "new", "territory": "north"}, "no known title in the history"),
        ({"history": ["gone"], "territory": "north"}, "no known title in the history"),
    ],
)
def test_without_a_history_the_territory_answers_and_says_so(client, request_, reason):
    answer = recommend(client, **request_, ignore=["gender"], k=3)
    assert (answer["source"], answer["reason"]) == ("popularity", reason)
    assert [title["title_id"] for title in answer["titles"]] == ["t10", "t11", "t12"]


def test_a_batch_equals_its_requests(client):
    requests = [
        {**HISTORY, "ignore": ignore, "territory": territory, "k": k}
        for ignore in ([], ["gender"], ["age"], ["gender", "age"])
        for territory in ("north", "south")
        for k in (1, 7)
    ]
    requests += [{"user_id": user, "territory": "south"} for user in ("ann", "nobody", "bob")]
    answer = client.post("/v1/recommend:batch", json={"requests": requests})
    assert answer.status_code == 200, answer.text
    for one, request in zip(answer.json()["responses"], requests, strict=True):
        single = recommend(client, **request)
        assert [t["title_id"] for t in one["titles"]] == [t["title_id"] for t in single["titles"]]
        assert {**one, "titles": 0} == {**single, "titles": 0}


@pytest.mark.parametrize(
    ("request_", "status", "field", "says"),
    [
        ({"territory": "north"}, 422, None, "either user_id or history"),
        ({**HISTORY, "user_id": "ann"}, 422, None, "either user_id or history"),
        ({"user_id": "ann", "territory": "north", "attributes": {"gender": "F"}}, 422, None, "leave attributes out"),
        ({"history": [], "territory": "north"}, 422, "history", "at least 1"),
        ({"history": ["t01"] * 10_000, "territory": "north"}, 422, "history", "at most 1000"),
        ({**HISTORY, "territory": "west"}, 422, "territory", "no territory 'west'"),
        ({**HISTORY, "ignore": ["gender", "race"]}, 422, "ignore[1]", "choose from gender, age"),
        ({**HISTORY, "ignroe": ["gender"]}, 422, "ignroe", "not permitted"),
        ({**HISTORY, "k": 0}, 422, "k", "greater than or equal to 1"),
        ({**HISTORY, "k": NUM_TITLES + 1}, 422, "k", "40 titles"),
        ({**HISTORY, "k": "many"}, 422, "k", "valid integer"),
        ({**HISTORY, "attributes": {"gender": "X"}}, 422, "attributes.gender", "'F', 'M'"),
        ({**HISTORY, "attributes": {"race": "X"}}, 422, "attributes", "no attribute 'race'"),
    ],
)
def test_what_is_refused_names_the_field_and_the_fix(client, request_, status, field, says):
    answer = client.post("/v1/recommend", json=request_)
    assert answer.status_code == status
    assert answer.json()["field"] == field
    assert says in answer.json()["message"]
    batch = client.post("/v1/recommend:batch", json={"requests": [HISTORY, request_]})
    assert batch.status_code == status
    assert batch.json()["field"] == ("requests[1]" if field is None else f"requests[1].{field}")


@pytest.mark.parametrize(
    ("kind", "request_", "at"),
    [
        (RecommendRequest, {**HISTORY, "b": 1, "a": 1}, ("b",)),
        (RecommendRequest, {**HISTORY, "attributes": {"gender": 1, "age": 1}}, ("attributes", "gender")),
        (RecommendRequest, {**HISTORY, "ignore": [1, 1]}, ("ignore", 0)),
        (PropensityRequest, {"territory": "north", "embedding": [1.0, "x", "x"]}, ("embedding", 1)),
        (RecommendBatch, {"requests": [HISTORY, {**HISTORY, "b": 1, "a": 1}, {"c": 1}]}, ("requests", 1, "b")),
    ],
)
def test_of_many_faults_one_is_looked_for(kind: type[RequestBody], request_, at):
    with pytest.raises(ValidationError) as refused:
        kind.model_validate(request_)
    assert [error["loc"] for error in refused.value.errors()] == [at]


def test_a_batch_has_a_bounded_number_of_titles(client):
    def ask(k: int) -> Any:
        return client.post("/v1/recommend:batch", json={"requests": [{**HISTORY, "k": k}] * 1000})

    assert len(ask(10).json()["responses"]) == 1000
    refused = ask(51)
    assert (refused.status_code, refused.json()["field"]) == (422, "requests")
    assert "the sum of k is 51,000, at most 50,000" in refused.json()["message"]


def test_a_large_batch_lets_others_have_their_turn(bundle):
    service = Service(LiveEngine(bundle, 1.0), None, Telemetry(), batch_rows=1000)
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


def test_a_store_that_is_asked_for_and_not_there_is_named_by_its_place(bundle):
    client, request_ = client_of(bundle, None), {"user_id": "ann", "territory": "north"}
    batch = client.post("/v1/recommend:batch", json={"requests": [HISTORY, request_]})
    assert (batch.status_code, batch.json()["field"]) == (422, "requests[1].user_id")
    assert client.post("/v1/recommend", json=request_).json()["field"] == "user_id"
    propensity = client.post("/v1/propensity", json=request_)
    assert (propensity.status_code, propensity.json()["field"]) == (422, "user_id")
    assert propensity.json()["message"].endswith("send an embedding")


def test_a_combination_that_was_not_trained_is_never_replaced(tmp_path):
    client = client_of(str(write_bundle(tmp_path / "bundle", combinations=[("gender",), ("age",)])), None)
    answer = client.post("/v1/recommend", json={**HISTORY, "ignore": ["age", "gender"]})
    assert (answer.status_code, answer.json()["field"]) == (422, "ignore")
    assert answer.json()["message"] == "no eliminator was trained for gender+age; choose from gender, age"


@pytest.mark.parametrize("body", [b"{", b"[]", b"null", b"\xff\xfe", b'{"history": "t01"}', b'{"territory": NaN}'])
def test_broken_bodies_are_the_callers_fault(client, body):
    answer = client.post("/v1/recommend", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)
    assert set(answer.json()) == {"field", "message"}


@pytest.mark.parametrize("headers", [{}, {"content-type": "text/plain"}])
def test_a_body_that_is_not_said_to_be_json_is_told_so(client, headers):
    answer = client.post("/v1/recommend", content=json.dumps(HISTORY), headers=headers)
    assert (answer.status_code, answer.json()["field"]) == (422, None)
    assert answer.json()["message"] == "send the header content-type: application/json"


def test_propensities_for_a_user_an_embedding_and_titles(client):
    by_user = client.post("/v1/propensity", json={"user_id": "ann", "territory": "south", "k": 4})
    Propensities.model_validate(by_user.json(), strict=True)
    assert by_user.json()["group"] == 1
    by_embedding = client.post(
        "/v1/propensity", json={"embedding": [1.0] * USER_WIDTH, "territory": "south", "title_ids": ["t05", "t01"]}
    ).json()
    assert [title["title_id"] for title in by_embedding["titles"]] == ["t05", "t01"]
    assert all(0 < title["propensity"] < 1 for title in by_embedding["titles"])


@pytest.mark.parametrize(
    ("request_", "status", "field"),
    [
        ({"user_id": "bob", "territory": "south"}, 404, "user_id"),
        ({"user_id": "nobody", "territory": "south"}, 404, "user_id"),
        ({"embedding": [1.0], "territory": "south"}, 422, "embedding"),
        ({"embedding": [1e39] * USER_WIDTH, "territory": "south"}, 422, "embedding"),
        ({"embedding": [3e38] * USER_WIDTH, "territory": "south"}, 422, "embedding"),
        ({"embedding": [1.0] * USER_WIDTH, "territory": "north", "title_ids": ["t05"]}, 422, "title_ids[0]"),
        ({"embedding": [1.0] * USER_WIDTH, "territory": "north", "title_ids": ["t01", "gone"]}, 422, "title_ids[1]"),
    ],
)
def test_propensities_that_cannot_be_had(client, request_, status, field):
    answer = client.post("/v1/propensity", json=request_)
    assert (answer.status_code, answer.json()["field"]) == (status, field)


def test_an_event_is_known_to_the_next_request(client):
    before = recommend(client, user_id="carl", territory="north")
    stored = client.put("/v1/users/carl/events", json={"events": [{"title_id": "t03"}, {"title_id": "gone"}]})
    assert stored.json() == {"stored": 1, "unknown_titles": 1, "history_length": 1}
    after = recommend(client, user_id="carl", territory="north")
    assert (before["source"], after["source"]) == ("popularity", "model")
    assert after["titles"] == recommend(client, history=["t03"], territory="north")["titles"]
    nothing = client.put("/v1/users/carl/events", json={"events": [{"title_id": "gone"}]})
    assert (nothing.status_code, nothing.json()["field"]) == (422, "events")


@pytest.mark.parametrize("user_id", ["a/b", "a/events", "é?#"])
def test_any_text_is_a_user_id(client, user_id):
    path = f"/v1/users/{quote(user_id, safe='')}/events"
    stored = client.put(path, json={"events": [{"title_id": "t03"}]})
    assert (stored.status_code, stored.json()["history_length"]) == (200, 1)
    assert recommend(client, user_id=user_id, territory="north")["source"] == "model"


def test_events_with_a_key_are_stored_once(client):
    def put(**headers: str) -> Any:
        return client.put("/v1/users/dora/events", json={"events": [{"title_id": "t03"}]}, headers=headers)

    first, again = (put(**{"idempotency-key": "one"}) for _ in range(2))
    assert first.json() == again.json() == {"stored": 1, "unknown_titles": 0, "history_length": 1}
    assert put(**{"idempotency-key": "two"}).json()["history_length"] == 2
    assert put().json()["history_length"] == 3
    for wrong in ("", "x" * 65):
        refused = put(**{"idempotency-key": wrong})
        assert (refused.status_code, refused.json()["field"]) == (422, "idempotency-key")
    operation = client.get("/openapi.json").json()["paths"]["/v1/users/{user_id}/events"]["put"]
    assert [one["name"] for one in operation["parameters"]] == ["user_id", "idempotency-key"]


def test_combinations_come_with_their_audit(client):
    answer = client.get("/v1/combinations").json()
    found = Combinations.model_validate(answer)
    assert [one.name for one in found.combinations] == ["none", "gender", "age", "gender+age"]
    assert found.combinations[1].audit["gender"]["null_high"] == 0.54
    assert found.combinations[1].audit["gender"]["hidden"] is True
    assert found.combinations[0].metrics["ndcg@10"] == 0.4


class BrokenStore:
    """A store that cannot be reached."""

    async def get(self, *_: Any) -> Any:
        raise StoreUnavailable("gone")

    append = ping = sample = get

    async def close(self) -> None:
        pass


def test_without_its_store_the_endpoint_degrades_and_says_so(bundle):
    with client_of(bundle, cast(Store, BrokenStore())) as client:
        answer = recommend(client, user_id="ann", territory="north", ignore=["gender"], k=2)
        assert (answer["source"], answer["reason"]) == ("popularity", "store unavailable")
        assert recommend(client, **HISTORY)["source"] == "model"
        requests = [HISTORY, {"user_id": "ann", "territory": "north"}]
        mixed = client.post("/v1/recommend:batch", json={"requests": requests}).json()["responses"]
        assert [one["reason"] for one in mixed] == [None, "store unavailable"]
        refused = client.put("/v1/users/ann/events", json={"events": [{"title_id": "t01"}]})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["message"].endswith("send them again with the same Idempotency-Key")
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()["store"]) == (200, "unavailable")
        assert client.get("/healthz").status_code == 200


def test_ready_says_what_of_the_store(bundle, client):
    assert client.get("/readyz").json() == {"status": "ready", "bundle_version": "v0", "store": "reachable"}
    assert client_of(bundle, None).get("/readyz").json()["store"] is None


def test_keys_are_asked_for_and_compared(bundle):
    with client_of(bundle, None, keys=("secret", "other")) as client:
        assert client.post("/v1/recommend", json=HISTORY).status_code == 401
        for headers in ({"authorization": "Bearer wrong"}, {"authorization": "Basic secret"}, {"x-api-key": "öther"}):
            sent = {name.encode(): value.encode() for name, value in headers.items()}
            bad = client.post("/v1/recommend", json=HISTORY, headers=sent)
            assert bad.status_code == 401
            assert bad.headers["www-authenticate"] == "Bearer"
        for headers in ({"authorization": "Bearer secret"}, {"x-api-key": "other"}):
            assert client.post("/v1/recommend", json=HISTORY, headers=headers).status_code == 200
        assert client.get("/healthz").status_code == client.get("/").status_code == 200
        assert client.get("/v1/examples", headers={"x-api-key": "other"}).status_code == 404


@pytest.mark.parametrize("root_path", ["", "/mtrec", "/v1"])
def test_everything_but_the_page_and_health_is_guarded_behind_any_prefix(bundle, root_path):
    client = client_of(bundle, None, keys=("secret",), root_path=root_path)
    for path in ("/v1/recommend", "/v1/recommend:batch", "/v1/propensity", "/v2", "/page/other", "/healthz/x"):
        assert client.post(root_path + path, json=HISTORY).status_code == 401, path
    for path in PUBLIC - {""}:
        assert client.get(root_path + path).status_code in (200, 204), path
    sent = {"x-api-key": "secret"}
    assert client.post(f"{root_path}/v1/recommend", json=HISTORY, headers=sent).status_code == 200


@pytest.mark.parametrize("root_path", ["", "/mtrec"])
@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_the_documents_of_the_api_need_no_other_host(bundle, root_path, path):
    client = client_of(bundle, None, keys=("secret",), root_path=root_path)
    files = re.findall(r'(?:src|href)="([^"]+)"', client.get(root_path + path).text)
    assert any(file.endswith(".js") for file in files)
    for file in files:
        assert client.get(file).status_code == 200, file


def test_each_key_has_a_rate_of_its_own(bundle):
    with client_of(bundle, None, keys=("a", "b"), requests_per_s=0.001, burst=2) as client:
        codes = [client.get("/v1/combinations", headers={"x-api-key": "a"}) for _ in range(3)]
        assert [code.status_code for code in codes] == [200, 200, 429]
        assert codes[-1].headers["retry-after"] == "1"
        assert client.get("/v1/combinations", headers={"x-api-key": "b"}).status_code == 200


def test_long_bodies_are_refused_declared_or_not(bundle):
    with client_of(bundle, None, max_body_bytes=200) as client:
        assert client.post("/v1/recommend", json=HISTORY).status_code == 200
        long = json.dumps({**HISTORY, "history": ["t01"] * 100}).encode()
        assert client.post("/v1/recommend", content=long).status_code == 413
        parts = (long[start : start + 50] for start in range(0, len(long), 50))
        assert client.post("/v1/recommend", content=parts).status_code == 413


def test_too_many_at_once_are_told_to_come_again(bundle):
    client = client_of(bundle, None, max_in_flight=1)
    guard: Any = client.app
    with client:
        guard.in_flight = 1
        busy = client.post("/v1/recommend", json=HISTORY)
        assert (busy.status_code, busy.headers["retry-after"]) == (503, "1")
        assert client.get("/healthz").status_code == 200
        guard.in_flight = 0
        assert client.post("/v1/recommend", json=HISTORY).status_code == 200
        assert guard.in_flight == 0


def test_a_request_counts_from_its_admission(bundle):
    guard: Any = client_of(bundle, None, max_in_flight=1, max_body_bytes=8).app
    scope = {"type": "http", "method": "POST", "path": "/v1/recommend", "headers": []}

    async def work() -> list[int]:
        codes, rest = [], asyncio.Event()

        async def slow() -> Message:
            await rest.wait()
            return {"type": "http.request", "body": b"x" * 9}

        async def send(message: Message) -> None:
            codes.extend([message["status"]] if "status" in message else [])

        first = asyncio.create_task(guard({**scope}, slow, send))
        await asyncio.sleep(0)
        await asyncio.wait_for(guard({**scope}, slow, send), timeout=5)
        assert guard.in_flight == 1
        rest.set()
        await first
        return codes

    assert asyncio.run(work()) == [503, 413]
    assert guard.in_flight == 0


def test_no_value_of_a_request_reaches_a_log(bundle, caplog, monkeypatch):
    def broken(*_):
        raise RuntimeError("F t01 ann") from redis.ResponseError("RPUSH mtrec:history:ann t01")

    with caplog.at_level(logging.DEBUG), client_of(bundle, None) as client:
        client.post("/v1/recommend", json={**HISTORY, "attributes": {"gender": "F"}, "ignore": ["gender"]})
        client.post("/v1/recommend", json={**HISTORY, "attributes": {"gender": "t0815"}})
        monkeypatch.setattr("mtrec_ray.serving.engine.Engine.recommend", broken)
        failed = client.post("/v1/recommend", json=HISTORY)
    assert failed.status_code == 500
    assert failed.json() == {"field": None, "message": "internal error"}
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("mtrec")]
    assert ours == ["a request failed: RuntimeError"]
    assert not [record for record in caplog.records if "t01" in logging.Formatter().format(record)]


def test_the_page_is_served_with_a_strict_policy(client):
    for path, kind in (("/", "text/html"), ("/page/page.css", "text/css"), ("/page/page.js", "text/javascript")):
        answer = client.get(path)
        assert answer.status_code == 200, path
        assert answer.headers["content-type"].startswith(kind)
        assert "default-src 'self'" in answer.headers["content-security-policy"]
    for path in ("/page/../engine.py", "/page/index.html", "/page/engine.py", "/nothing"):
        assert client.get(path).status_code == 404

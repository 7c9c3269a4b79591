"""Answers of the API without Ray Serve, and refusals with a field and a fix."""

import asyncio
from typing import Any, cast
from urllib.parse import quote

import pytest
from pydantic import ValidationError
from starlette.testclient import TestClient

from mtrec_ray.bundle.manifest import Bundle
from mtrec_ray.serving import schemas
from mtrec_ray.serving.pointer import LiveEngine
from mtrec_ray.serving.schemas import RecommendRequest, RequestBody
from mtrec_ray.serving.service import Service
from mtrec_ray.serving.store import Store, StoreUnavailable
from mtrec_ray.serving.telemetry import Telemetry
from tests.serving.bundles import NUM_TITLES, SOUTH_ONLY, TITLE_IDS, USER_WIDTH, leakage, metric, write_bundle
from tests.serving.clients import ANN, HISTORY, client_of, recommend

ONES = [1.0] * USER_WIDTH
EXCLUDED = {"exclude_seen": True}


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


def test_bundle_of_a_service_where_rewatching_counts_returns_seen_titles(store, tmp_path):
    client = client_of(str(write_bundle(tmp_path / "bundle", exclude_seen=False)), store)
    assert client.get("/v1/combinations").json()["exclude_seen"] is False
    of = {"k": NUM_TITLES, **HISTORY}
    returned = [{t["title_id"] for t in recommend(client, **of, **asked)["titles"]} for asked in ({}, EXCLUDED)]
    assert returned[0] - returned[1] == set(HISTORY["history"])


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
        (schemas.PropensityRequest, {"territory": "north", "embedding": [1.0, "x", "x"]}, ("embedding", 1)),
        (schemas.RecommendBatch, {"requests": [HISTORY, {**HISTORY, "b": 1, "a": 1}, {"c": 1}]}, ("requests", 1, "b")),
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


def test_propensities_for_a_user_an_embedding_and_titles(client):
    by_user = client.post("/v1/propensity", json={"user_id": "ann", "territory": "south", "k": 4})
    schemas.Propensities.model_validate(by_user.json(), strict=True)
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
    assert put_events(client, user_id, "t03").json()["history_length"] == 1
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
    schemas.Combinations.model_validate(answer)
    manifest = Bundle.open(bundle_uri).manifest.model_dump(mode="json")
    assert [one["name"] for one in answer["combinations"]] == ["none", "gender", "age", "gender+age"]
    for one in answer["combinations"]:
        assert (one["metrics"], one["audit"]) == (manifest["metrics"][one["name"]], manifest["audit"][one["name"]])
        assert (one["list_audit"], one["warnings"]) == ({"lists_watched_kept": {}, "lists_watched_left_out": {}}, [])


def test_answers_warn_of_what_the_audit_found(store, tmp_path):
    """Gender leaks from vectors, age from lists without watched titles only, and gender+age was not audited."""
    leaks, undecided = leakage(auc=0.61) | {"leaks": True, "hidden": False}, leakage() | {"hidden": None}
    audit = {"gender": {"gender": leaks}, "age": {"age": undecided}}
    lists = {"age": {"lists_watched_kept": {"age": leakage()}, "lists_watched_left_out": {"age": leaks}}}
    client = client_of(str(write_bundle(tmp_path / "bundle", audit=audit, list_audit=lists)), store)
    ranks = "ranks users with AUC 0.610, where chance ends at 0.550"
    profile = f"gender still leaks: an attacker who sees the hidden profile {ranks}"
    few = "age may not be hidden: too few users were audited to tell"
    listed = f"the list tells age: an attacker who sees ten titles {ranks}"
    expected = {
        "none": [],
        "gender": [profile],
        "age": [few, f"{listed}; keep watched titles in (exclude_seen=false), then it does not"],
        "gender+age": ["gender may not be hidden: it was not audited", "age may not be hidden: it was not audited"],
    }
    assert "`warnings` of the answer say so" in client.get("/openapi.json").json()["info"]["description"]
    of = {one["name"]: one for one in client.get("/v1/combinations").json()["combinations"]}
    assert {name: one["warnings"] for name, one in of.items()} == expected
    for name, one in of.items():
        assert recommend(client, **HISTORY, ignore=one["ignore"])["warnings"] == expected[name]
    assert recommend(client, **HISTORY, ignore=["age"], exclude_seen=False)["warnings"] == [few]
    assert recommend(client, user_id="nobody", territory="north", ignore=["gender"])["warnings"] == []  # popular titles


def test_answers_warn_of_values_that_the_profile_writes(store, tmp_path):
    """Gender's eliminator writes it; age's leaks to attackers with many profiles, but no more than without hiding."""
    leaks = leakage(auc=0.81) | {"leaks": True, "hidden": False}
    changes = {
        "history_audit": {"gender": {"gender": leaks}, "age": {"age": leaks, "gender": leaks}},
        "written": {
            "gender": {"gender": metric(0.15) | {"writes_value": True}},
            "age": {"age": metric(0.0) | {"writes_value": False}},
        },
    }
    client = client_of(str(write_bundle(tmp_path / "bundle", **changes)), store)
    many, ranks = "an attacker with many profiles of each person of known", "ranks users with AUC 0.810"
    (gender,) = recommend(client, **HISTORY, ignore=["gender"])["warnings"]
    assert gender.startswith(f"the hidden profile writes gender: {many} gender {ranks}")
    assert gender.endswith("0.150 more than without hiding")
    (age,) = recommend(client, **HISTORY, ignore=["age"])["warnings"]
    assert age.startswith(f"age still leaks: {many} age {ranks}")
    assert recommend(client, **HISTORY, ignore=["gender", "age"])["warnings"] == []


def test_leaks_by_balanced_accuracy_alone_are_warned_of(store, tmp_path):
    audit = {"gender": {"gender": leakage(balanced_accuracy=0.6) | {"leaks": True, "hidden": False}}}
    client = client_of(str(write_bundle(tmp_path / "bundle", audit=audit)), store)
    (warning,) = recommend(client, **HISTORY, ignore=["gender"])["warnings"]
    assert warning.endswith("profile has a balanced accuracy of 0.600, where chance ends at 0.540")


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

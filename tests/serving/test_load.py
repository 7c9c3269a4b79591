"""A lake's users in the store: every user, every event, in time order; and the command."""

import asyncio
import itertools
import json
from collections.abc import Iterable
from datetime import datetime

import numpy as np
import pytest

from mtrec_ray.errors import UserError
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.serving import load
from mtrec_ray.serving.config import StoreLoadConfig
from mtrec_ray.serving.load import load_store
from mtrec_ray.serving.store import UserState
from tests.serving.stores import append, get
from tests.streams.lakes import day, lake_of, title_table
from tests.tuning.conftest import build_here

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

SYNTHETIC = {"users": 300, "territories": 4, "titles": 30, "user_width": 8, "events_per_user": 20.0}


@pytest.fixture(scope="module")
def lake(tmp_path_factory) -> Lake:
    return build_here(tmp_path_factory.mktemp("load") / "lake", num_buckets=2, **SYNTHETIC)


def stored(url: str, user_ids: Iterable[str]) -> dict[str, UserState | None]:
    return dict(zip(user_ids, get(url, *user_ids), strict=True))


def states_of(lake: Lake, max_events: int = 1000) -> dict[str, UserState]:
    histories: dict[str, list[tuple[datetime, str]]] = {}
    users: list[dict] = []
    for bucket in range(lake.manifest.num_buckets):
        users += lake.read("users", bucket).to_pylist()
        for event in lake.read("events", bucket).to_pylist():
            histories.setdefault(event["user_id"], []).append((event["timestamp"], event["title_id"]))
    for events in histories.values():
        events.sort(key=lambda event: event[0])  # stable
    return {
        user["user_id"]: UserState(
            history=tuple(title for _, title in histories.get(user["user_id"], []))[-max_events:],
            attributes={name: user[name] for name in lake.manifest.attributes if user[name] is not None},
            territory=user["territory"],
            embedding=user.get("embedding", b""),
        )
        for user in users
    }


@pytest.mark.parametrize("kind", ["folder", "redis"])
def test_store_equals_the_lake_and_loading_again_replaces(lake, kind, tmp_path, request):
    url = str(tmp_path / "store") if kind == "folder" else request.getfixturevalue("redis_server").url
    expected = states_of(lake)
    steps: list[tuple] = []
    result = load_store(StoreLoadConfig(lake=lake.uri, store=url), lambda *step: steps.append(step))
    assert stored(url, expected) == expected
    assert result.counts == {
        "users": 300,
        "events": lake.manifest.counts["events"],
        "users_without_events": sum(not state.history for state in expected.values()),
        "users_with_embedding": 300,
    }
    assert result.counts["users_without_events"] > 0
    assert result.metrics.set_index("metric")["value"].to_dict() == result.counts
    assert steps[-1][1:3] == (lake.manifest.num_buckets,) * 2
    assert {len(np.frombuffer(state.embedding, "<f2")) for state in expected.values()} == {8}
    for name, values in lake.manifest.attributes.items():
        known = [state.attributes[name] for state in expected.values() if name in state.attributes]
        assert 0 < len(known) < len(expected)
        assert set(known) <= set(values)

    append(url, next(iter(expected)), "later")
    assert stored(url, expected) != expected

    async def cell_of_a_notebook() -> load.LoadResult:
        return load_store(StoreLoadConfig(lake=lake.uri, store=url))

    assert asyncio.run(cell_of_a_notebook()).counts == result.counts
    assert stored(url, expected) == expected


def test_only_the_last_events_are_loaded(lake, monkeypatch):
    monkeypatch.setattr(load, "MAX_STORED_EVENTS", 3)
    states = [load.bucket_states(index, lake) for index in range(lake.manifest.num_buckets)]
    assert dict(itertools.chain(*states)) == states_of(lake, 3)


def test_ties_keep_the_order_of_the_lake_and_embeddings_are_optional(ray_cluster, tmp_path):
    homes, noon = {"anna": "north", "bob": "south", "carl": "north"}, day(2, 1)
    rows = [("anna", "t2", noon), ("anna", "t0", noon), ("anna", "t1", day(1, 1)), ("carl", "t2", noon)]
    titles = title_table({"t0": [], "t1": [], "t2": []})
    lake = lake_of(tmp_path / "lake", homes, rows, titles, num_buckets=2, embedded=False)
    result = load_store(StoreLoadConfig(lake=lake.uri, store=str(tmp_path / "store")))
    assert result.counts == {"users": 3, "events": 4, "users_without_events": 1, "users_with_embedding": 0}
    assert stored(str(tmp_path / "store"), homes) == {
        "anna": UserState(("t1", "t2", "t0"), {}, "north"),
        "bob": UserState((), {}, "south"),
        "carl": UserState(("t2",), {}, "north"),
    }


def test_unreachable_store_is_a_user_error(lake):
    with pytest.raises(UserError, match=r"Redis at redis://127\.0\.0\.1:1/0: Error 111"):
        load_store(StoreLoadConfig(lake=lake.uri, store="redis://me:secret@127.0.0.1:1/0"))


def test_command_loads_and_reports(lake, tmp_path, run):
    url = str(tmp_path / "store")
    command = ["store", "load", lake.uri, "--store", url]
    code, out, _ = run(*command, "--json")
    document = json.loads(out)
    assert (code, document["version"], document["store"], document["users"]) == (0, 1, url, 300)
    for arguments, shown in ((["--set", "expire_s=9", "--print-config"], "expire_s: 9"), ([], "users without events")):
        code, out, _ = run(*command, *arguments)
        assert (code, shown in out) == (0, True)

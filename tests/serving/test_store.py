"""One contract for both stores, and what is particular to a folder that processes share."""

import asyncio
import multiprocessing
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mtrec_ray.errors import UserError
from mtrec_ray.serving import redis_store
from mtrec_ray.serving import store as store_module
from mtrec_ray.serving.store import (
    MAX_APPEND_KEYS,
    MAX_STORED_EVENTS,
    LmdbStore,
    Store,
    StoreUnavailable,
    UserState,
    open_store,
    without_password,
)
from tests.serving.redis_server import RedisServer
from tests.serving.stores import ANNA, EMBEDDING, append, append_pairs, get, put, using

EMPTY = UserState()
EXPIRE_S = 0.8
EXPIRED_S = 1.2 * EXPIRE_S


@pytest.fixture(params=["lmdb", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "lmdb":
        yield str(tmp_path / "store")
    else:
        server: RedisServer = request.getfixturevalue("redis_server")
        server.client.flushall()
        yield server.url


def test_get_returns_what_was_put_last_in_the_requested_order(url):
    assert put(url, {"anna": ANNA, "bob": ANNA, "empty": EMPTY}) == 3
    assert get(url, "empty", "nobody", "anna", "empty") == [EMPTY, None, ANNA, EMPTY]
    put(url, {"anna": UserState(("t9",)), "bob": EMPTY})
    assert get(url, "anna", "bob") == [UserState(("t9",)), EMPTY]
    assert get(url) == []


def test_append_extends_or_creates_and_returns_the_length(url):
    put(url, {"anna": ANNA})
    assert append(url, "anna", "t5", "t6") == 5
    assert [append(url, "new", "t7"), append(url, "new", "t7")] == [1, 2]
    assert [append(url, "anna"), append(url, "nobody")] == [5, 0]
    extended = UserState(("t1", "t2", "t1", "t5", "t6"), ANNA.attributes, "US", EMBEDDING)
    assert get(url, "anna", "new", "nobody") == [extended, UserState(("t7", "t7")), None]


def test_append_with_a_repeated_key_is_stored_once(url):
    async def work(store: Store) -> list[int]:
        store.put_many([("anna", ANNA)])
        keys = ["a", "a", None, None, "b", "a"]
        lengths = [await store.append("anna", ["t5"], key) for key in keys]
        lengths += [await store.append("new", ["t5", "t6"], "a") for _ in range(2)]
        many = [f"k{i}" for i in range(MAX_APPEND_KEYS)]
        lengths += [[await store.append("anna", ["t5"], key) for key in many][-1]]
        lengths += [await store.append("anna", ["t5"], key) for key in (many[0], "a")]  # "a" is forgotten by now
        store.put_many([("anna", ANNA)])
        return [*lengths, await store.append("anna", ["t5"], "a")]

    assert using(url, work) == [4, 4, 5, 6, 7, 7, 2, 2, 23, 23, 24, 4]
    assert get(url, "anna") == [UserState(("t1", "t2", "t1", "t5"), ANNA.attributes, "US", EMBEDDING)]


def test_concurrent_appends_are_all_stored_once(url):
    async def work(store: Store) -> list[int]:
        assert await asyncio.gather(*(store.append("anna", ["t1"], "a") for _ in range(10))) == [1] * 10
        return await asyncio.gather(*(store.append("bob", [f"t{i}"]) for i in range(40)))

    assert sorted(using(url, work)) == list(range(1, 41))


def test_histories_keep_their_last_titles(url):
    titles = tuple(f"title-{i}" for i in range(MAX_STORED_EVENTS + 5))
    put(url, {"long": UserState(titles), "full": UserState(titles[:MAX_STORED_EVENTS])})
    assert append(url, "full", "x", "y") == append(url, "flood", *titles) == MAX_STORED_EVENTS
    full = UserState((*titles[2:MAX_STORED_EVENTS], "x", "y"))
    assert get(url, "long", "flood", "full") == [UserState(titles[5:]), UserState(titles[5:]), full]


@pytest.mark.parametrize(
    "user_id", ["Zoë 渡辺 🎬", "x" * 511, "x" * 512, "ü" * 300, "a:b*?[c]\n\x00", ""], ids=range(6)
)
def test_any_text_is_a_user_id_and_a_title_id(url, user_id):
    near = user_id + "x"
    put(url, {user_id: ANNA, near: EMPTY})
    assert [append(url, user_id, "タイトル", "t\x00\n"), append(url, near, "t")] == [5, 1]
    assert sorted(using(url, lambda store: store.sample(9))) == sorted([user_id, near])
    mine, other = get(url, user_id, near)
    assert mine is not None
    assert mine.history == ("t1", "t2", "t1", "タイトル", "t\x00\n")
    assert other == UserState(("t",))


def test_many_users_are_put_in_several_batches(url, monkeypatch):
    monkeypatch.setattr(store_module, "BATCH_USERS", 20)
    monkeypatch.setattr(redis_store, "BATCH_ITEMS", 200)
    states = {f"u{i}": UserState((f"t{i}", *["common"] * i), {"age": str(i)}, "FR", EMBEDDING) for i in range(45)}
    assert put(url, states) == 45
    assert get(url, *states) == list(states.values())


def test_sample_returns_users_with_a_history_once(url):
    put(url, {f"u{i}": ANNA if i % 2 else EMPTY for i in range(100)})
    few = using(url, lambda store: store.sample(7))
    assert len(few) == len(set(few)) == 7
    assert all(int(user_id[1:]) % 2 for user_id in few)
    assert sorted(using(url, lambda store: store.sample(1000))) == sorted(f"u{i}" for i in range(1, 100, 2))


def test_expired_users_are_empty_when_they_return(url):
    async def work(store: Store) -> list[UserState | None]:
        store.put_many([("anna", ANNA)])
        assert await store.append("new", ["t1"]) == await store.append("bob", ["t1"], "a") == 1
        before = await store.get(["anna", "new"])
        await asyncio.sleep(EXPIRED_S)
        assert await store.sample(5) == []
        assert await store.append("anna", ["t9"]) == await store.append("bob", ["t1"], "a") == 1
        return [*before, *await store.get(["anna", "new"])]

    assert using(url, work, EXPIRE_S) == [ANNA, UserState(("t1",)), UserState(("t9",)), None]


def test_append_restarts_the_time_and_put_sets_it(url):
    async def work(store: Store) -> None:
        store.put_many([("appended", ANNA), ("left", ANNA)])
        for _ in range(2):
            await asyncio.sleep(0.6 * EXPIRE_S)
            await store.append("appended", ["t9"])
        appended, left = await store.get(["appended", "left"])
        assert appended is not None
        assert left is None
        assert (len(appended.history), appended.attributes) == (5, ANNA.attributes)

    using(url, work, EXPIRE_S)
    put(url, {"put": EMPTY}, EXPIRE_S)
    append(url, "appended", "t9")  # by a store without expiry, which does not end one
    put(url, {"put": ANNA})  # which does
    time.sleep(EXPIRED_S)
    assert get(url, "appended", "put") == [None, ANNA]


def test_appends_of_several_processes_lose_nothing(url):
    names, count = ["a", "b", "c"], 60
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=append_pairs, args=(url, name, count)) for name in names]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    (state,) = get(url, "shared")
    assert state is not None
    for name in names:  # complete, in order, and pairs stay together
        own = [title for title in state.history if title.startswith(name)]
        assert own == [title for i in range(count) for title in (f"{name}-{i}", f"{name}-{i}b")]
    assert all(one + "b" == two for one, two in zip(state.history[::2], state.history[1::2], strict=True))


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("http://host", "'http://host': give redis://"),
        ("", "'': give redis://"),
        ("redis://me:secret@host:port/0", "'redis://host:port/0': Port could not be cast"),
        ("redis://host/films", "'redis://host/films': 'films' is no database number"),
        ("redis://host/0?colour=red", "'redis://host/0': .*colour"),
        ("/dev/null/store", "'/dev/null/store' cannot be opened"),
    ],
)
def test_wrong_url_is_named_without_its_password(url, named):
    with pytest.raises(UserError, match=named) as caught:
        open_store(url)
    assert "secret" not in str(caught.value)


def test_shown_url_has_no_user_password_or_options():
    assert without_password("rediss://me:p@ss@host:1/2?password=secret") == "rediss://host:1/2"
    assert without_password("some/folder@home") == "some/folder@home"


def test_closed_folder_is_unavailable_and_can_be_reopened(tmp_path):
    store = LmdbStore(str(tmp_path))
    store.put_many([("anna", ANNA)])
    asyncio.run(store.close())
    with pytest.raises(StoreUnavailable, match="LMDB"):
        asyncio.run(store.get(["anna"]))
    assert get(str(tmp_path), "anna") == [ANNA]


def test_reads_of_a_folder_continue_during_writes(tmp_path):
    store = LmdbStore(str(tmp_path))
    store.put_many([("anna", ANNA)])

    async def work() -> int:
        appends = [asyncio.create_task(store.append(f"u{i}", ["t" * 2000])) for i in range(200)]
        states = [(f"v{i}", UserState(embedding=bytes(2048))) for i in range(2000)]
        loading = asyncio.create_task(asyncio.to_thread(store.put_many, states))
        reads = 0
        while not (loading.done() and all(task.done() for task in appends)):
            assert await store.get(["anna"]) == [ANNA]
            reads += 1
            await asyncio.sleep(0)
        return reads

    assert asyncio.run(work()) > 1
    assert asyncio.run(store.get(["v1999"])) == [UserState(embedding=bytes(2048))]
    asyncio.run(store.close())

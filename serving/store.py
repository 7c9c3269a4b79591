"""The online store of user states: in a folder of one machine (LMDB), or in Redis."""

import asyncio
import hashlib
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from threading import Lock
from typing import Any, NamedTuple, Protocol

import lmdb
import msgpack

from mtrec_ray.errors import TryAgain, UserError

MAX_STORED_EVENTS = 1000  # maximum stored history; the oldest titles are dropped
MAX_APPEND_KEYS = 16  # stored idempotency keys of a user's last appends
TIMEOUT_S = 0.25  # maximum wait for a connection and for each reply: an answer without states comes within a second
MAP_BYTES = 1 << 38  # upper limit of the store: address space, which costs nothing; the file is as large as its content
BATCH_USERS = 2000  # users per transaction of `put_many`; appends of other processes wait until it ends
MAX_SAMPLED = 100  # maximum records read per user of a sample
MAX_READERS, MAX_KEY_BYTES = 1024, 511
HASHED = b"\xff"  # first byte of the keys of longer ids, which are hashed; no UTF-8 text contains it


class StoreUnavailable(TryAgain):
    """The store cannot be reached at present."""


@dataclass(frozen=True)
class UserState:
    """What is stored of one user."""

    history: tuple[str, ...] = ()  # title ids, oldest first, the most recent `MAX_STORED_EVENTS`
    attributes: dict[str, str] = field(default_factory=dict)  # known values of the sensitive attributes
    territory: str | None = None
    embedding: bytes = b""  # float16, little-endian; empty if there is none


class Store(Protocol):
    """User states by id, for one event loop; all methods may raise StoreUnavailable."""

    async def get(self, user_ids: Sequence[str]) -> list[UserState | None]:
        """States in the requested order, in one round trip; None = never stored, or expired."""
        ...

    async def append(self, user_id: str, title_ids: Sequence[str], key: str | None = None) -> int:
        """Append titles, oldest first, to a user's history, old or new; returns its length.

        Atomic across processes; restarts the time to expiry. Never retried: after a lost reply the caller may repeat it
        with the same idempotency `key`, which stores it once.
        """
        ...

    def put_many(self, states: Iterable[tuple[str, UserState]]) -> int:
        """Store many users, replacing their state, in blocking batches; returns their number."""
        ...

    async def ping(self) -> None: ...

    async def sample(self, count: int) -> list[str]:
        """Ids of up to `count` arbitrary users with a history."""
        ...

    async def close(self) -> None: ...


def open_store(url: str, *, expire_s: float | None = None, timeout_s: float = TIMEOUT_S) -> Store:
    """Open a store: `redis://[user:password@]host[:port][/db]`, `rediss://` or a folder.

    Redis is not contacted before the first call; a missing folder is created. A user is forgotten `expire_s` seconds
    after the last `put_many` or `append`, None = never. UserError for another URL or a folder that cannot be opened.
    """
    if is_folder(url):
        return LmdbStore(url, expire_s=expire_s)
    if url.split("://")[0] in ("redis", "rediss"):
        from mtrec_ray.serving.redis_store import RedisStore

        return RedisStore(url, expire_s=expire_s, timeout_s=timeout_s)
    raise UserError(f"store {without_password(url)!r}: give redis://host:port/db, rediss://... or a local folder")


def is_folder(url: str) -> bool:
    """Whether `url` is a folder of this machine, which other machines do not see."""
    return bool(url) and "://" not in url


def without_password(url: str) -> str:
    """`url` without user, password and options, for messages."""
    return re.sub(r"(?<=://).*@", "", url).partition("?")[0]


class LmdbStore:
    """The store in a folder, shared by its machine's processes.

    A process opens it once, a forked one again. A read takes a few microseconds, so it runs in the event loop; `append`
    waits for the disk and for other writers, so it writes in a thread.
    """

    def __init__(self, folder: str, *, expire_s: float | None = None) -> None:
        self._expire_s = expire_s
        self._writing = Lock()  # close() waits for an append that still runs in its thread
        path = os.path.abspath(os.path.expanduser(folder))
        try:
            os.makedirs(path, exist_ok=True)
            # without metasync a write syncs once: a crash of the machine may lose the last append, never the store
            self._env = lmdb.open(path, map_size=MAP_BYTES, max_readers=MAX_READERS, metasync=False)
            self._env.reader_check()  # frees the slots of killed readers
        except (OSError, lmdb.Error) as error:
            raise UserError(f"store {folder!r} cannot be opened: {error}") from error

    async def get(self, user_ids: Sequence[str]) -> list[UserState | None]:
        with self._transaction() as transaction:
            records = [_decode(transaction.get(_key(user_id))) for user_id in user_ids]
        return [record.state if record else None for record in records]

    async def append(self, user_id: str, title_ids: Sequence[str], key: str | None = None) -> int:
        return await asyncio.to_thread(self._append, user_id, title_ids, key)

    def put_many(self, states: Iterable[tuple[str, UserState]]) -> int:
        stored, remaining = 0, iter(states)
        while batch := list(islice(remaining, BATCH_USERS)):
            expires_at = time.time() + self._expire_s if self._expire_s else None
            with self._writing, self._transaction(write=True) as transaction:
                for user_id, state in batch:
                    _put(transaction, _Record(user_id, state, expires_at))
            stored += len(batch)
        return stored

    async def ping(self) -> None:
        with self._transaction():
            pass

    async def sample(self, count: int) -> list[str]:
        with self._transaction() as transaction:
            records = map(_decode, islice(transaction.cursor().iternext(keys=False), MAX_SAMPLED * count))
            return list(islice((record.user_id for record in records if record and record.state.history), count))

    async def close(self) -> None:
        with self._writing:
            self._env.close()

    def _append(self, user_id: str, title_ids: Sequence[str], key: str | None) -> int:
        with self._writing, self._transaction(write=True) as transaction:
            record = _decode(transaction.get(_key(user_id))) or _Record(user_id, UserState())
            if not title_ids or key in record.append_keys:
                return len(record.state.history)
            state = replace(record.state, history=(*record.state.history, *title_ids)[-MAX_STORED_EVENTS:])
            expires_at = time.time() + self._expire_s if self._expire_s else record.expires_at
            keys = [*record.append_keys, *([] if key is None else [key])][-MAX_APPEND_KEYS:]
            _put(transaction, _Record(user_id, state, expires_at, keys))
            return len(state.history)

    @contextmanager
    def _transaction(self, write: bool = False) -> "Iterator[lmdb.Transaction[bytes]]":
        """Never held across an `await`; LMDB's errors become StoreUnavailable."""
        try:
            with self._env.begin(write=write) as transaction:
                yield transaction
        except lmdb.Error as error:
            raise StoreUnavailable(f"LMDB: {error}") from error


class _Record(NamedTuple):
    """A stored value."""

    user_id: str  # the key may be only its hash
    state: UserState
    expires_at: float | None = None  # seconds since 1970; None = never
    append_keys: Sequence[str] = ()


def _put(transaction: Any, record: _Record) -> None:
    user_id, state, expires_at, keys = record
    history, profile = state.history[-MAX_STORED_EVENTS:], (state.attributes, state.territory, state.embedding)
    transaction.put(_key(user_id), msgpack.packb((user_id, expires_at, history, *profile, *keys)))


def _decode(value: bytes | None) -> _Record | None:
    """None if there is no record or it has expired (it stays on disk until overwritten)."""
    if value is None:
        return None
    user_id, expires_at, history, attributes, territory, embedding, *keys = msgpack.unpackb(value)
    if expires_at is not None and expires_at <= time.time():
        return None
    return _Record(user_id, UserState(tuple(history), attributes, territory, embedding), expires_at, keys)


def _key(user_id: str) -> bytes:
    """The id itself, or its hash if LMDB does not accept it (empty or too long)."""
    key = user_id.encode()
    return key if 0 < len(key) <= MAX_KEY_BYTES else HASHED + hashlib.blake2b(key, digest_size=32).digest()

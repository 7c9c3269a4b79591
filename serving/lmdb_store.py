"""The online store in a folder: LMDB, shared by the machine's processes.

A read takes a few microseconds, so it runs in the event loop. `append` waits for the disk and for other writers, so it
writes in a thread.
"""

import asyncio
import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from threading import Lock
from typing import Any, NamedTuple

import lmdb
import msgpack

from mtrec_ray.errors import UserError
from mtrec_ray.serving.store import MAX_APPEND_KEYS, MAX_STORED_EVENTS, StoreUnavailable, UserState

MAP_BYTES = 1 << 38  # upper limit of the store: address space, which costs nothing; the file is as large as its content
BATCH_USERS = 2000  # users per transaction of `put_many`; appends of other processes wait until it ends
MAX_SAMPLED = 100  # maximum records read per user of a sample
MAX_READERS, MAX_KEY_BYTES = 1024, 511
HASHED = b"\xff"  # first byte of the keys of longer ids, which are hashed; no UTF-8 text contains it


class LmdbStore:
    """See `serving.store.Store`; a process opens a folder once, a forked one again."""

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

"""The online store in a folder: LMDB, shared by the machine's processes.

A read takes a few microseconds (a memory map, no lock between processes), so it runs in the event loop. A write waits
for the disk and for other writers, so `append` writes in a thread.
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
from typing import NamedTuple, cast

import lmdb
import msgpack

from mtrec_ray.errors import UserError
from mtrec_ray.serving.store import MAX_APPEND_KEYS, MAX_STORED_EVENTS, StoreUnavailable, UserState

MAP_BYTES = 1 << 38
"""Upper limit of the store: address space, which costs nothing; the file is as large as its content."""
BATCH_USERS = 2000
"""Users per transaction of `put_many`; appends of other processes wait until it ends."""
MAX_READERS = 1024
MAX_KEY_BYTES = 511
"""Limit of LMDB."""
HASHED = b"\xff"
"""First byte of hashed keys; UTF-8 never contains it, so no user id starts with it."""
SAMPLE_TRIES = 100
"""Maximum records read per user of a sample."""


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
        now = time.time()
        with self._transaction() as transaction:
            records = [_Record.live(transaction.get(_key(user_id)), now) for user_id in user_ids]
        return [record.state if record else None for record in records]

    async def append(self, user_id: str, title_ids: Sequence[str], key: str | None = None) -> int:
        return await asyncio.to_thread(self._append, user_id, title_ids, key)

    def put_many(self, states: Iterable[tuple[str, UserState]]) -> int:
        stored, remaining = 0, iter(states)
        while batch := list(islice(remaining, BATCH_USERS)):
            expires_at = time.time() + self._expire_s if self._expire_s else None
            with self._writing, self._transaction(write=True) as transaction:
                for user_id, state in batch:
                    transaction.put(_key(user_id), _Record(user_id, expires_at, state).encode())
            stored += len(batch)
        return stored

    async def ping(self) -> None:
        with self._transaction():
            pass

    async def sample(self, count: int) -> list[str]:
        now = time.time()
        with self._transaction() as transaction:
            values = islice(transaction.cursor().iternext(keys=False), SAMPLE_TRIES * count)
            records = (_Record.live(value, now) for value in values)
            return list(islice((record.user_id for record in records if record and record.state.history), count))

    async def close(self) -> None:
        with self._writing:
            self._env.close()

    def _append(self, user_id: str, title_ids: Sequence[str], key: str | None) -> int:
        now, user_key = time.time(), _key(user_id)
        with self._writing, self._transaction(write=True) as transaction:
            record = _Record.live(transaction.get(user_key), now) or _Record(user_id, None, UserState())
            if not title_ids or key in record.append_keys:
                return len(record.state.history)
            history = (*record.state.history, *title_ids)[-MAX_STORED_EVENTS:]
            expires_at = now + self._expire_s if self._expire_s else record.expires_at
            keys = record.append_keys if key is None else [*record.append_keys, key][-MAX_APPEND_KEYS:]
            transaction.put(
                user_key, _Record(user_id, expires_at, replace(record.state, history=history), keys).encode()
            )
            return len(history)

    @contextmanager
    def _transaction(self, write: bool = False) -> "Iterator[lmdb.Transaction[bytes]]":
        """Never held across an `await`; LMDB's errors become StoreUnavailable."""
        try:
            with self._env.begin(write=write) as transaction:
                yield transaction
        except lmdb.Error as error:
            raise StoreUnavailable(f"LMDB: {error}") from error


class _Record(NamedTuple):
    """One stored value: a msgpack list of the fields, the keys of appends last."""

    user_id: str
    """Stored too, because the key may be only its hash."""
    expires_at: float | None
    """Seconds since 1970; None = never."""
    state: UserState
    append_keys: Sequence[str] = ()

    @staticmethod
    def live(value: bytes | None, now: float) -> "_Record | None":
        """Decode a record; None if it has expired (it stays on disk until overwritten)."""
        if value is None:
            return None
        user_id, expires_at, history, attributes, territory, embedding, *keys = msgpack.unpackb(value)
        if expires_at is not None and expires_at <= now:
            return None
        return _Record(user_id, expires_at, UserState(tuple(history), attributes, territory, embedding), keys)

    def encode(self) -> bytes:
        history = self.state.history[-MAX_STORED_EVENTS:]
        state = (history, self.state.attributes, self.state.territory, self.state.embedding)
        return cast(bytes, msgpack.packb((self.user_id, self.expires_at, *state, *self.append_keys)))


def _key(user_id: str) -> bytes:
    """The id itself, or its hash if LMDB does not accept it (empty or too long)."""
    key = user_id.encode()
    return key if 0 < len(key) <= MAX_KEY_BYTES else HASHED + hashlib.blake2b(key, digest_size=32).digest()

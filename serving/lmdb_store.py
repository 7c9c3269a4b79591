"""The online store in a folder of one machine: LMDB, shared by all of its processes, one value per user.

A read takes a few microseconds (a memory map, no lock between processes), so it runs in the event loop. A write waits
for the disk and for other writers, so `append` writes in a thread.
"""

import asyncio
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from threading import Lock
from typing import TypeVar

import lmdb
import msgpack

from mtrec_ray.errors import UserError
from mtrec_ray.serving.store import MAX_APPEND_KEYS, MAX_STORED_EVENTS, StoreUnavailable, UserState

MAP_BYTES = 1 << 30
"""Size of a new map: address space, not disk. It doubles when full."""
BATCH_USERS = 2000
"""Users per transaction of a bulk load; appends of other processes wait until it ends."""
MAX_READERS = 1024
MAX_KEY_BYTES = 511
"""LMDB's own bound."""
HASHED = b"\xff"
"""First byte of hashed keys; UTF-8 has no such byte, so no user id looks like one."""
SAMPLE_TRIES = 100
"""Users looked at, at most, for each user of a sample."""

Result = TypeVar("Result")


class LmdbStore:
    """See `serving.store.Store`. A process can open a folder once; a forked process must open it anew."""

    def __init__(self, folder: str, *, expire_s: float | None = None, map_bytes: int = MAP_BYTES) -> None:
        self._expire_s = expire_s
        self._writing = Lock()  # one writer per process, which may enlarge the map
        self._mapping = Lock()  # held while reading and while resizing the map: LMDB forbids both at once
        path = os.path.abspath(os.path.expanduser(folder))
        try:
            os.makedirs(path, exist_ok=True)
            # without metasync a write syncs once; a crash of the machine may lose the last append, never the store
            self._env = lmdb.open(path, map_size=map_bytes, max_readers=MAX_READERS, metasync=False)
            self._env.reader_check()  # frees the slots of readers that were killed
        except (OSError, lmdb.Error) as error:
            raise UserError(f"store {folder!r} cannot be opened: {error}") from error

    async def get(self, user_ids: Sequence[str]) -> list[UserState | None]:
        now = time.time()
        with self._reading() as transaction:
            found = [_Record.live(transaction.get(_key(user_id)), now) for user_id in user_ids]
        return [record.state if record else None for record in found]

    async def append(self, user_id: str, title_ids: Sequence[str], key: str | None = None) -> int:
        return await asyncio.to_thread(self._write, lambda writing: self._append(writing, user_id, title_ids, key))

    def put_many(self, states: Iterable[tuple[str, UserState]]) -> int:
        stored, remaining = 0, iter(states)
        while batch := list(islice(remaining, BATCH_USERS)):
            expires_at = time.time() + self._expire_s if self._expire_s else None
            records = [(_key(user_id), _Record(user_id, expires_at, state).encode()) for user_id, state in batch]
            self._write(lambda transaction, records=records: [transaction.put(*record) for record in records])
            stored += len(batch)
        return stored

    async def ping(self) -> None:
        with self._reading():
            pass

    async def sample(self, count: int) -> list[str]:
        now = time.time()
        with self._reading() as transaction:
            values = islice(transaction.cursor().iternext(keys=False), SAMPLE_TRIES * count)
            records = (_Record.live(value, now) for value in values)
            return list(islice((record.user_id for record in records if record and record.state.history), count))

    async def close(self) -> None:
        with self._writing, self._mapping:
            self._env.close()

    def _append(
        self, transaction: "lmdb.Transaction[bytes]", user_id: str, title_ids: Sequence[str], key: str | None
    ) -> int:
        now, place = time.time(), _key(user_id)
        record = _Record.live(transaction.get(place), now) or _Record(user_id, None, UserState())
        if not title_ids or key in record.append_keys:
            return len(record.state.history)
        history = (*record.state.history, *title_ids)[-MAX_STORED_EVENTS:]
        expires_at = now + self._expire_s if self._expire_s else record.expires_at
        keys = record.append_keys if key is None else (*record.append_keys, key)[-MAX_APPEND_KEYS:]
        transaction.put(place, _Record(user_id, expires_at, replace(record.state, history=history), keys).encode())
        return len(history)

    @contextmanager
    def _reading(self) -> "Iterator[lmdb.Transaction[bytes]]":
        """A view of one moment. Never held across an `await`."""
        with _unavailable(), self._mapping:
            try:
                transaction = self._env.begin()
            except lmdb.MapResizedError:  # another process wrote beyond our map
                self._env.set_mapsize(0)
                transaction = self._env.begin()
            with transaction:
                yield transaction

    def _write(self, work: "Callable[[lmdb.Transaction[bytes]], Result]") -> Result:
        """Do `work` in one transaction, all or nothing; where the map is full, again in a larger one."""
        with _unavailable(), self._writing:
            while True:
                try:
                    with self._env.begin(write=True) as transaction:
                        return work(transaction)
                except lmdb.MapFullError:
                    self._resize(2 * self._env.info()["map_size"])
                except lmdb.MapResizedError:
                    self._resize(0)  # 0 = as large as another process made it

    def _resize(self, map_bytes: int) -> None:
        with self._mapping:
            self._env.set_mapsize(map_bytes)


@dataclass(frozen=True)
class _Record:
    """One stored value."""

    user_id: str
    """Stored as well, as the key may be only its hash."""
    expires_at: float | None
    """Seconds since 1970; None = never."""
    state: UserState
    append_keys: tuple[str, ...] = ()
    """Keys of the last appends that had one, at most `MAX_APPEND_KEYS`."""

    @staticmethod
    def live(value: bytes | None, now: float) -> "_Record | None":
        """The stored record, None if it has expired; such a record stays on disk until it is overwritten."""
        if value is None:
            return None
        user_id, expires_at, history, attributes, territory, embedding, *keys = msgpack.unpackb(value)
        if expires_at is not None and expires_at <= now:
            return None
        return _Record(user_id, expires_at, UserState(tuple(history), attributes, territory, embedding), tuple(keys))

    def encode(self) -> bytes:
        state = self.state
        history = state.history[-MAX_STORED_EVENTS:]
        fields = (self.user_id, self.expires_at, history, state.attributes, state.territory, state.embedding)
        return msgpack.packb(fields + self.append_keys)  # pyright: ignore[reportReturnType]


def _key(user_id: str) -> bytes:
    """The id itself, or its hash where LMDB does not take it (empty or too long)."""
    key = user_id.encode()
    return key if 0 < len(key) <= MAX_KEY_BYTES else HASHED + hashlib.blake2b(key, digest_size=32).digest()


@contextmanager
def _unavailable() -> Iterator[None]:
    """Raise LMDB's errors (disk, readers, closed) as StoreUnavailable."""
    try:
        yield
    except lmdb.Error as error:
        raise StoreUnavailable(f"LMDB: {error}") from error

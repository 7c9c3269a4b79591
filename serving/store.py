"""The online store of user states, in a folder of one machine or in Redis."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mtrec_ray.errors import UserError

MAX_STORED_EVENTS = 1000  # maximum stored history; the oldest titles are dropped
MAX_APPEND_KEYS = 16  # stored idempotency keys of a user's last appends
TIMEOUT_S = 0.25  # maximum wait for a connection and for each reply: an answer without states comes within a second


class StoreUnavailable(UserError):
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
        from mtrec_ray.serving.lmdb_store import LmdbStore

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

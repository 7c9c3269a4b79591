"""The online store: what serving knows of each user. One contract, in a folder of one machine (LMDB) or in Redis.

| url | store |
|---|---|
| `redis://[user:password@]host[:port][/db]`, `rediss://...` (TLS) | `serving.redis_store` |
| a local path | `serving.lmdb_store`, shared by all processes of the machine |
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mtrec_ray.errors import UserError

MAX_STORED_EVENTS = 1000
"""Longest history kept; older titles fall off at its front."""
MAX_APPEND_KEYS = 16
"""Appends of a user that are known again by their key, the last ones."""
TIMEOUT_S = 0.25
"""Longest wait for a connection and for each answer: an endpoint without user state still answers within a second."""


class StoreUnavailable(Exception):
    """The store cannot be reached now; it may be later, without anything to do here."""


@dataclass(frozen=True)
class UserState:
    """What is stored of one user."""

    history: tuple[str, ...] = ()
    """Title ids, oldest first, the most recent `MAX_STORED_EVENTS`."""
    attributes: dict[str, str] = field(default_factory=dict)
    """Values of the sensitive attributes, known ones only."""
    territory: str | None = None
    embedding: bytes = b""
    """float16, little-endian; empty where there is none."""


class Store(Protocol):
    """User states by user id; `get`, `append`, `ping` and `sample` are called in an event loop and do not block it."""

    async def get(self, user_ids: Sequence[str]) -> list[UserState | None]:
        """States in the order asked for, in one round trip; None = never stored, or expired.

        Raises:
            StoreUnavailable: the store cannot be reached; so do `append`, `ping` and `sample`.
        """
        ...

    async def append(self, user_id: str, title_ids: Sequence[str], key: str | None = None) -> int:
        """Put titles, oldest first, behind a user's history and return its new length; a missing user is created.

        Atomic: of two appends at once, in any two processes, none is lost. Where users expire, this one's time starts
        again. It is not repeated by itself when its answer is lost. Repeated with its `key` it changes nothing more, as
        long as that is among the user's last `MAX_APPEND_KEYS`.
        """
        ...

    def put_many(self, states: Iterable[tuple[str, UserState]]) -> int:
        """Store many users, replacing what was stored of them, and return how many. Blocks: for loading, in batches.

        Raises:
            StoreUnavailable: the store cannot be reached; the batches before are stored.
        """
        ...

    async def ping(self) -> None:
        """Nothing, when the store can be reached."""
        ...

    async def sample(self, count: int) -> list[str]:
        """Ids of up to `count` users who have a history, any: to show, not to compute from."""
        ...

    async def close(self) -> None:
        """Give back files and connections; the store is of no use afterwards."""
        ...


def open_store(url: str, *, expire_s: float | None = None, timeout_s: float = TIMEOUT_S) -> Store:
    """The store at `url`, see above. Redis is not contacted before the first call; a missing folder is created.

    Args:
        expire_s: users are forgotten so long after their last `put_many` or `append`; None = never.
        timeout_s: for Redis; see TIMEOUT_S.

    Raises:
        UserError: an url that is neither, or a folder that cannot be opened.
    """
    if is_folder(url):
        from serving.lmdb_store import LmdbStore

        return LmdbStore(url, expire_s=expire_s)
    if url.split("://")[0] in ("redis", "rediss"):
        from serving.redis_store import RedisStore

        return RedisStore(url, expire_s=expire_s, timeout_s=timeout_s)
    raise UserError(f"store {without_password(url)!r}: give redis://host:port/db, rediss://... or a local folder")


def is_folder(url: str) -> bool:
    """True where `url` names a folder of this machine, which other machines do not see."""
    return bool(url) and "://" not in url


def without_password(url: str) -> str:
    """`url` as it may be shown: no user, no password, no options."""
    return re.sub(r"(?<=://).*@", "", url).partition("?")[0]

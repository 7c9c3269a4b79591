"""The online store's contract: what serving knows of each user, and how it asks for it."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

MAX_STORED_EVENTS = 1000
"""Longest history kept; the oldest titles are dropped."""
MAX_APPEND_KEYS = 16
"""Last appends of a user whose keys are kept, so that repeating one does not store it twice."""
TIMEOUT_S = 0.25
"""Longest wait for a connection and for each answer: an endpoint without user state still answers within a second."""


class StoreUnavailable(Exception):
    """The store cannot be reached now, but may be later without any action here."""


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

        Atomic: of two appends at once, in any two processes, none is lost. If users expire, this one's time starts
        anew. The store never retries an append whose answer was lost. The caller may repeat it with the same `key`,
        which then changes nothing, as long as it is among the user's last `MAX_APPEND_KEYS`.
        """
        ...

    def put_many(self, states: Iterable[tuple[str, UserState]]) -> int:
        """Store many users, replacing what was stored of them, and return how many. Blocks: for loading, in batches.

        Raises:
            StoreUnavailable: the store cannot be reached; the batches before are stored.
        """
        ...

    async def ping(self) -> None:
        """Returns if the store can be reached."""
        ...

    async def sample(self, count: int) -> list[str]:
        """Ids of up to `count` users with a history: arbitrary ones, to show as examples."""
        ...

    async def close(self) -> None:
        """Close files and connections; the store cannot be used afterwards."""
        ...


def is_folder(url: str) -> bool:
    """True where `url` names a folder of this machine, which other machines do not see."""
    return bool(url) and "://" not in url


def without_password(url: str) -> str:
    """`url` as it may be shown: no user, no password, no options."""
    return re.sub(r"(?<=://).*@", "", url).partition("?")[0]

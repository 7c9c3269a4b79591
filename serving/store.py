"""The online store's contract: what serving knows of each user, and how it asks for it."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

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


def is_folder(url: str) -> bool:
    """True where `url` names a folder of this machine, which other machines do not see."""
    return bool(url) and "://" not in url


def without_password(url: str) -> str:
    """`url` as it may be shown: no user, no password, no options."""
    return re.sub(r"(?<=://).*@", "", url).partition("?")[0]

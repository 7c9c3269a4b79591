"""A client that sends requests over keep-alive connections and records the answers."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import numpy as np

from tests.serving.bundles import COMBINATIONS, TITLE_IDS, USER_WIDTH

TIMEOUT_S, RETRY_S = 60.0, 1.0
Asked = tuple[str, str, dict[str, Any]]
"""Method, path, body."""


@dataclass
class Seen:
    """One request, as its client saw it."""

    asked: Asked
    at: float
    """When it was due, monotonic seconds."""
    ms: float = 0.0
    """From when it was due, so that a stalled endpoint does not seem faster."""
    status: int | str = ""
    """Or the name of the error that no answer came with."""
    retryable: bool = False
    source: str = ""
    reason: str = ""
    version: str = ""

    @property
    def failed(self) -> bool:
        return self.status != 200


def mixed(users: list[str]) -> Iterator[Asked]:
    """Of 20 requests: 11 for users of the store, 6 with histories, 2 propensities, 1 event to store."""
    ignored = itertools.cycle([[], *map(list, COMBINATIONS)])
    for number in itertools.count():
        user, ignore = users[number % len(users)], next(ignored)
        titles = [TITLE_IDS[(number + step) % len(TITLE_IDS)] for step in range(5)]
        if number % 20 == 19:
            yield "PUT", f"/v1/users/{user}/events", {"events": [{"title_id": titles[0]}]}
        elif number % 20 in (5, 15):
            yield "POST", "/v1/propensity", {"embedding": [0.1] * USER_WIDTH, "territory": "north"}
        elif number % 3 == 0:
            yield "POST", "/v1/recommend", {"history": titles, "territory": "south", "ignore": ignore}
        else:
            yield "POST", "/v1/recommend", {"user_id": user, "territory": "north", "ignore": ignore}


def of_users(users: list[str]) -> Iterator[Asked]:
    """Recommendations that need the store."""
    for user in itertools.cycle(users):
        yield "POST", "/v1/recommend", {"user_id": user, "territory": "north", "ignore": ["gender"]}


@asynccontextmanager
async def open_loop(url: str, requests: Iterator[Asked], rate: float) -> AsyncIterator[list[Seen]]:
    """`rate` requests per second inside the context; the list is complete after it."""

    async def send(session: aiohttp.ClientSession, seen: list[Seen], done: asyncio.Event) -> None:
        start = time.monotonic()
        async with asyncio.TaskGroup() as asking:
            for number in itertools.count():
                due = start + number / rate
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                if done.is_set():
                    return
                asking.create_task(ask(session, next(requests), seen, due))

    async with _callers(url, send, 1, connections=256) as seen:
        yield seen


@asynccontextmanager
async def closed_loop(url: str, requests: Iterator[Asked], connections: int) -> AsyncIterator[list[Seen]]:
    """Callers with one request at a time each inside the context; they wait after a refusal."""

    async def call(session: aiohttp.ClientSession, seen: list[Seen], done: asyncio.Event) -> None:
        while not done.is_set():
            wait_s = await ask(session, next(requests), seen, time.monotonic())
            await asyncio.sleep(wait_s)

    async with _callers(url, call, connections, connections) as seen:
        yield seen


@asynccontextmanager
async def _callers(
    url: str, work: Callable[..., Coroutine[Any, Any, None]], count: int, connections: int
) -> AsyncIterator[list[Seen]]:
    """`work(session, seen, done)` so many times at once, until it is done."""
    seen, done = list[Seen](), asyncio.Event()
    connector = aiohttp.TCPConnector(limit=connections, keepalive_timeout=60)
    session = aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(total=TIMEOUT_S), connector=connector)
    async with session, asyncio.TaskGroup() as tasks:
        for _ in range(count):
            tasks.create_task(work(session, seen, done))
        try:
            yield seen
        finally:
            done.set()


async def ask(session: aiohttp.ClientSession, asked: Asked, seen: list[Seen], due: float) -> float:
    """One request; returns the seconds to wait before the next, 0 after a success."""
    one, (method, path, body), wait_s = Seen(asked, due), asked, RETRY_S
    try:
        async with session.request(method, path, json=body) as answer:
            content = await answer.json() if answer.status == 200 else {}
            one.status, wait_s = answer.status, float(answer.headers.get("retry-after", 0.0))
            one.retryable = answer.status == 503 and "retry-after" in answer.headers
            one.source, one.reason = content.get("source", ""), content.get("reason") or ""
            one.version = content.get("bundle_version", "")
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        one.status, one.retryable = type(error).__name__, method == "POST"  # no POST of this API changes anything
    one.ms = 1e3 * (time.monotonic() - due)
    seen.append(one)
    return wait_s


def figures(seen: list[Seen]) -> dict[str, Any]:
    """Counts, and latencies of the successes."""
    failed = [one for one in seen if one.failed]
    statuses = sorted({str(one.status) for one in failed})
    return {
        "requests": len(seen),
        "failed": len(failed),
        "failed_percent": round(100 * len(failed) / max(1, len(seen)), 3),
        "failed_by": {status: sum(str(one.status) == status for one in failed) for status in statuses},
        "not_retryable": sum(not one.retryable for one in failed),
        **latencies([one for one in seen if not one.failed]),
    }


def latencies(seen: list[Seen], name: str = "") -> dict[str, float]:
    """Milliseconds, empty where nothing was seen."""
    if not seen:
        return {}
    ms = np.array([one.ms for one in seen])
    found = {"p50_ms": np.percentile(ms, 50), "p99_ms": np.percentile(ms, 99), "worst_ms": ms.max()}
    return {f"{name}{key}": round(float(value), 1) for key, value in found.items()}

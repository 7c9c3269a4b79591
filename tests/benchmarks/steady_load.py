"""A client that sends requests over keep-alive connections, repeats failed ones once, and records the answers."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator
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
    again: int | str = ""
    """Status of the one repetition, where it failed."""
    source: str = ""
    reason: str = ""
    version: str = ""

    @property
    def failed(self) -> bool:
        return self.status != 200


def mixed(users: list[str]) -> Iterator[Asked]:
    """Of 20 requests: 11 for users of the store, 6 with histories, 2 propensities, 1 event to remember."""
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
async def session_to(url: str, connections: int) -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    connector = aiohttp.TCPConnector(limit=connections, keepalive_timeout=60)
    async with aiohttp.ClientSession(url, timeout=timeout, connector=connector) as session:
        yield session


@asynccontextmanager
async def open_loop(url: str, requests: Iterator[Asked], rate: float) -> AsyncIterator[list[Seen]]:
    """`rate` requests per second inside the context; the list is complete after it."""
    seen: list[Seen] = []
    done = asyncio.Event()

    async def send(session: aiohttp.ClientSession) -> None:
        start, asking = time.monotonic(), set[asyncio.Task[None]]()
        for number in itertools.count():
            due = start + number / rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if done.is_set():
                break
            task = asyncio.create_task(ask(session, next(requests), seen, due))
            asking.add(task)
            task.add_done_callback(asking.discard)
        await asyncio.gather(*asking)

    async with session_to(url, 256) as session:
        sending = asyncio.create_task(send(session))
        try:
            yield seen
        finally:
            done.set()
            await sending


@asynccontextmanager
async def closed_loop(url: str, requests: Iterator[Asked], connections: int) -> AsyncIterator[list[Seen]]:
    """Callers with one request at a time each inside the context; they wait after a refusal."""
    seen: list[Seen] = []
    done = asyncio.Event()

    async def caller(session: aiohttp.ClientSession) -> None:
        while not done.is_set():
            await ask(session, next(requests), seen, time.monotonic())

    async with session_to(url, connections) as session:
        callers = [asyncio.create_task(caller(session)) for _ in range(connections)]
        try:
            yield seen
        finally:
            done.set()
            await asyncio.gather(*callers)


async def ask(session: aiohttp.ClientSession, asked: Asked, seen: list[Seen], due: float) -> None:
    """One request and, after the time that a refusal names, its one repetition."""
    one = Seen(asked, due)
    wait_s = await _send(session, one)
    one.ms = 1e3 * (time.monotonic() - due)
    seen.append(one)
    if one.failed:
        await asyncio.sleep(wait_s)
        second = Seen(asked, time.monotonic())
        await _send(session, second)
        one.again = second.status


async def _send(session: aiohttp.ClientSession, one: Seen) -> float:
    method, path, body = one.asked
    try:
        async with session.request(method, path, json=body) as answer:
            one.status = answer.status
            after = answer.headers.get("retry-after")
            one.retryable = answer.status == 503 and after is not None
            if answer.status == 200:
                content = await answer.json()
                one.source, one.reason = content.get("source", ""), content.get("reason") or ""
                one.version = content.get("bundle_version", "")
            else:
                await answer.read()
            return float(after or RETRY_S)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        one.status, one.retryable = type(error).__name__, method == "POST"  # no POST of this API changes anything
        return RETRY_S


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
        "failed_again": sum(one.again != 200 for one in failed),
        **latencies([one for one in seen if not one.failed]),
    }


def latencies(seen: list[Seen], name: str = "") -> dict[str, float]:
    """Milliseconds, empty where nothing was seen."""
    if not seen:
        return {}
    ms = np.array([one.ms for one in seen])
    return {
        f"{name}p50_ms": round(float(np.percentile(ms, 50)), 1),
        f"{name}p99_ms": round(float(np.percentile(ms, 99)), 1),
        f"{name}worst_ms": round(float(ms.max()), 1),
    }

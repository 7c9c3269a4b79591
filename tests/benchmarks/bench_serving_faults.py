"""Faults under load: replicas killed, a promotion, too many requests, autoscaling, a Redis that stops and restarts.

    python -m tests.benchmarks.bench_serving_faults [--only kills,promotion,...] [--minutes 10] [--rate 30]

Each section starts `mtrec serve` with a small bundle; its client is this process. `redis` needs redis-server.
"""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from mtrec_ray.bundle.manifest import Bundle
from mtrec_ray.serving.pointer import move_pointer
from mtrec_ray.serving.store import UserState, open_store
from tests.benchmarks.endpoint_process import EndpointProcess, wait_for
from tests.benchmarks.steady_load import Seen, closed_loop, figures, latencies, mixed, of_users, open_loop
from tests.serving.bundles import TITLE_IDS, write_bundle
from tests.serving.redis_server import RedisServer

WARM_UP_S, MINUTE_S = 8.0, 60.0
POINTER = "live.json"
VALUES = {"gender": "F", "age": "old"}
USERS = [f"user{number}" for number in range(200)]
TWO = ["scale.min_replicas=2", "scale.max_replicas=2"]
Figures = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """Of all sections, which write in `folder`."""

    folder: Path
    minutes: float
    rate: float


async def kills(options: Options) -> Figures:
    """One of two replicas killed with kill -9 every minute, the older one each time."""
    back_s, kill_times = [], []
    async with _endpoint(options, *TWO) as endpoint:
        async with open_loop(endpoint.url, mixed(USERS), options.rate) as seen:
            await asyncio.sleep(WARM_UP_S)
            start = time.monotonic()
            for number in range(max(1, round(options.minutes))):
                await _sleep_until(start + number * MINUTE_S + 10)
                before = endpoint.replicas()
                kill_times.append(time.monotonic())
                os.kill(before[0].pid, signal.SIGKILL)
                back_s.append(await _until(lambda: _replaced(endpoint, before)))  # noqa: B023
                await _sleep_until(start + (number + 1) * MINUTE_S)
        counters = _interventions(endpoint)
    measured = [one for one in seen if one.at >= start]
    after = [one for one in measured if any(0 <= one.at - at < 10 for at in kill_times) and not one.failed]
    return {
        "kills": len(kill_times),
        **figures(measured),
        **latencies(after, "10_s_after_"),
        "second_replica_back_s": [round(seconds, 1) for seconds in back_s],
        **counters,
    }


async def promotion(options: Options) -> Figures:
    """Another bundle promoted during the load, on two replicas."""
    second = write_bundle(options.folder / "second", 1)
    async with _endpoint(options, *TWO) as endpoint, open_loop(endpoint.url, of_users(USERS), options.rate) as seen:
        await asyncio.sleep(WARM_UP_S + 10)
        pointer = options.folder / POINTER
        command = [sys.executable, "-m", "mtrec_ray", "promote", str(second), "--pointer", str(pointer)]
        await asyncio.to_thread(subprocess.run, command, check=True, stdout=subprocess.DEVNULL)
        moved = time.monotonic() - (time.time() - pointer.stat().st_mtime)
        await asyncio.sleep(20)
    measured = [one for one in seen if one.at >= seen[0].at + WARM_UP_S]
    old, new = ([one for one in measured if one.version == version] for version in ("v0", "v1"))
    return {
        **figures(measured),
        "old": len(old),
        "new": len(new),
        "first_new_s": round(min(map(_answered, new)) - moved, 2),
        "last_old_s": round(max(map(_answered, old)) - moved, 2),
    }


async def overload(options: Options) -> Figures:
    """Ten times as many callers as the proxy admits."""
    let_in = 24
    callers = 10 * let_in
    async with _endpoint(options, *TWO, MTREC_MAX_AT_PROXY=str(let_in)) as endpoint:
        async with open_loop(endpoint.url, of_users(USERS), options.rate) as before:
            await asyncio.sleep(WARM_UP_S + 15)
        async with closed_loop(endpoint.url, of_users(USERS), callers) as seen:
            await asyncio.sleep(WARM_UP_S + 30)
        async with open_loop(endpoint.url, of_users(USERS), options.rate) as after:
            await asyncio.sleep(15)
    calm, loud = (_after_warm_up(part) for part in (before, seen))
    refused = [one for one in loud if one.status == 503]
    return {
        "callers": callers,
        "let_in": let_in,
        "accepted_per_s": round(sum(not one.failed for one in loud) / 30, 1),
        **figures(loud),
        **latencies(refused, "refused_"),
        **latencies([one for one in calm if not one.failed], "calm_"),
        "calm_failed": sum(one.failed for one in calm),
        "afterwards_failed": sum(one.failed for one in after),
    }


async def autoscale(options: Options) -> Figures:
    """One replica, many callers until there are three, then few until there is one; nothing may fail."""
    settings = ["scale.min_replicas=1", "scale.max_replicas=3", "scale.target_ongoing_requests=2"]
    settings += ["scale.num_cpus=0.5"]
    async with _endpoint(options, *settings) as endpoint:
        one_at_first = endpoint.running()
        async with closed_loop(endpoint.url, mixed(USERS), 16) as many:
            up_s = await _until(lambda: endpoint.running() == 3)
            await asyncio.sleep(5)
        async with open_loop(endpoint.url, mixed(USERS), 5) as few:
            down_s = await _until(lambda: endpoint.running() == 1)
            await asyncio.sleep(5)
    return {
        "replicas": [one_at_first, 3, 1],
        "1_to_3_s": round(up_s, 1),
        "3_to_1_s": round(down_s, 1),
        **figures([*many, *few]),
        **latencies(few, "few_callers_"),
    }


async def redis(options: Options) -> Figures:
    """Redis killed under load, restarted empty after 20 seconds, users loaded again."""
    program = shutil.which("redis-server")
    if program is None:
        raise SystemExit("redis-server is not installed")
    server = RedisServer(program, options.folder)
    server.start()
    try:
        async with (
            _endpoint(options, *TWO, store=server.url) as endpoint,
            open_loop(endpoint.url, of_users(USERS), options.rate) as seen,
        ):
            await asyncio.sleep(WARM_UP_S + 10)
            stopped = time.monotonic()
            await asyncio.to_thread(server.stop)
            await asyncio.sleep(20)
            await asyncio.to_thread(server.start)
            await _fill(server.url)
            started = time.monotonic()
            await asyncio.sleep(20)
    finally:
        server.stop()
    measured = _after_warm_up(seen)
    away = [one for one in measured if stopped <= one.at < started]
    degraded = [one for one in measured if one.source == "popularity"]
    return {
        **figures(measured),
        "before_by_model": sum(one.source == "model" for one in measured if one.at < stopped),
        "away_by_popularity": sum(one.reason == "store unavailable" for one in away),
        "away_by_model": sum(one.source == "model" for one in away),
        "first_popular_s": round(min(map(_answered, degraded)) - stopped, 2),
        "last_popular_after_start_s": round(max(map(_answered, degraded)) - started, 2),
        "after_by_model": sum(one.source == "model" for one in measured if one.at >= started),
        **latencies([one for one in away if not one.failed], "away_"),
    }


SECTIONS: dict[str, Callable[[Options], Coroutine[Any, Any, Figures]]] = {
    section.__name__: section for section in (kills, promotion, overload, autoscale, redis)
}


def main(
    only: Annotated[str, typer.Option(help="Sections, commas between them.")] = ",".join(SECTIONS),
    minutes: Annotated[float, typer.Option(help="Length of the kills, one a minute.")] = 10.0,
    rate: Annotated[float, typer.Option(help="Requests a second of the steady load.")] = 30.0,
) -> None:
    first, *others = only.split(",")
    if first not in SECTIONS:
        raise typer.BadParameter(f"no section {first!r}; there are {', '.join(SECTIONS)}")
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(SECTIONS[first](Options(Path(folder), minutes, rate)))
    print(json.dumps({"section": first, "rate": rate} | found), flush=True)
    if others:  # a process is a driver of one Ray alone
        command = [sys.executable, "-m", "tests.benchmarks.bench_serving_faults", "--only", ",".join(others)]
        raise typer.Exit(subprocess.call([*command, "--minutes", str(minutes), "--rate", str(rate)]))


@asynccontextmanager
async def _endpoint(
    options: Options, *settings: str, store: str | None = None, **environment: str
) -> AsyncIterator[EndpointProcess]:
    """An endpoint that follows a pointer to a first bundle and has all its replicas; `store` None: a folder."""
    pointer, store = options.folder / POINTER, store or str(options.folder / "store")
    move_pointer(str(pointer), Bundle.open(str(write_bundle(options.folder / "first"))))
    await _fill(store)
    with EndpointProcess(pointer, [*settings, f"store={store}"], options.folder / "log", environment) as endpoint:
        await _until(lambda: endpoint.running() == (2 if set(TWO) <= set(settings) else 1))
        yield endpoint


async def _fill(url: str) -> None:
    states = [
        (user, UserState(tuple(TITLE_IDS[(number + step) % 40] for step in range(6)), VALUES, "north"))
        for number, user in enumerate(USERS)
    ]
    store = open_store(url)
    await asyncio.to_thread(store.put_many, states)
    await store.close()


def _answered(one: Seen) -> float:
    return one.at + one.ms / 1e3


def _after_warm_up(seen: list[Seen]) -> list[Seen]:
    start = min(one.at for one in seen)
    return [one for one in seen if one.at >= start + WARM_UP_S]


def _replaced(endpoint: EndpointProcess, before: list[Any]) -> bool:
    """A new replica process runs, and Serve sends requests to two."""
    return bool({one.pid for one in endpoint.replicas()} - {one.pid for one in before}) and endpoint.running() == 2


def _interventions(endpoint: EndpointProcess) -> Figures:
    """What the proxy did by itself, by outcome."""
    lines = [line for line in endpoint.metrics().splitlines() if line.startswith("ray_mtrec_proxy_interventions")]
    outcomes = [re.findall(r'outcome="([^"]*)"', line)[0] for line in lines]
    return {outcome: float(line.split()[-1]) for outcome, line in zip(outcomes, lines, strict=True)}


async def _until(holds: Callable[[], bool]) -> float:
    return await asyncio.to_thread(wait_for, holds, 400.0)


async def _sleep_until(deadline: float) -> None:
    await asyncio.sleep(max(0.0, deadline - time.monotonic()))


if __name__ == "__main__":
    typer.run(main)

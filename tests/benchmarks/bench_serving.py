"""Serving: mixed against split batches, a large catalogue, and HTTP against an empty app in the same run.

    python tests/benchmarks/bench_serving.py BUNDLE [--seconds 10] [--haproxy | --no-middleware]

Ratios are of medians (engine) and of requests per second (HTTP, 32 keep-alive connections, one client process).
"""

import asyncio
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import numpy as np
import typer

ROWS, REPEATS, CONNECTIONS = 64, 60, 32


def main(
    bundle: str,
    seconds: Annotated[float, typer.Option(help="Length of each HTTP measurement.")] = 10.0,
    haproxy: Annotated[bool, typer.Option(help="Ray Serve's HAProxy ingress.")] = False,
    middleware: Annotated[
        bool, typer.Option(help="`serving.proxy` in front of both apps, as in `mtrec serve`.")
    ] = True,
) -> None:
    os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = "1" if haproxy else "0"
    if middleware:
        from mtrec_ray.serving import proxy

        proxy.configure_proxy_env()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    from mtrec_ray.bundle.manifest import Bundle
    from mtrec_ray.process import prepare_process
    from mtrec_ray.serving.engine import Engine

    prepare_process(cpus=1)  # as a replica does
    engine = Engine(Bundle.open(bundle))
    bench_batches(engine)
    bench_large_catalogue(engine)
    bench_http(engine, bundle, seconds)


def queries(engine: Any, combinations: list[int], count: int = ROWS) -> list[Any]:
    from mtrec_ray.serving.engine import Query

    rng, sizes = np.random.default_rng(0), [len(values) for values in engine.manifest.attributes.values()]
    titles = len(engine.ids)
    return [
        Query(
            tuple(rng.integers(0, titles, 20).tolist()),
            tuple(int(rng.integers(0, size)) for size in sizes),
            combination,
            0,
            10,
            tuple(rng.integers(0, titles, 20).tolist()),
        )
        for combination in itertools.islice(itertools.cycle(combinations), count)
    ]


def median_ms(*runs: Callable[[], object]) -> list[float]:
    from tests.benchmarks.measure import medians, seconds_of

    wall_seconds = partial(seconds_of, clock=time.perf_counter)
    return [1e3 * found for found in medians(dict(enumerate(runs)), REPEATS, wall_seconds, warm_ups=5).values()]


def bench_batches(engine: Any) -> None:
    every = list(engine.combinations.values())
    mixed, one = queries(engine, every), queries(engine, [0])
    by_combination = [[query for query in mixed if query.combination == c] for c in every]
    ms_mixed, ms_one, ms_split = median_ms(
        lambda: engine.recommend(mixed),
        lambda: engine.recommend(one),
        lambda: [engine.recommend(part) for part in by_combination],
    )
    print(
        f"batch of {ROWS}: one combination {ms_one:.2f} ms, all {len(every)} mixed {ms_mixed:.2f} ms, "
        f"split {ms_split:.2f} ms"
    )
    print(f"  mixed / one = {ms_mixed / ms_one:.2f}, split / mixed = {ms_split / ms_mixed:.2f}")
    vectors = median_ms(
        lambda: engine.user_vectors(mixed),
        lambda: [engine.user_vectors(part) for part in by_combination],
    )
    print(f"  user vectors alone: mixed {vectors[0]:.2f} ms, split / mixed = {vectors[1] / vectors[0]:.2f}")


def bench_large_catalogue(engine: Any, titles: int = 100_000) -> None:
    import torch

    asked, before = queries(engine, [0], 1), (engine.title_vectors, engine.unavailable, engine.all_offered)
    engine.title_vectors = torch.randn(before[0].shape[0], titles)
    engine.unavailable, engine.all_offered = torch.zeros(1, titles, dtype=torch.bool), False
    (ms,) = median_ms(lambda: engine.recommend(asked))
    print(f"{titles:,} titles: {ms:.2f} ms a user")
    engine.title_vectors, engine.unavailable, engine.all_offered = before


def bench_http(engine: Any, bundle: str, seconds: float) -> None:
    import ray
    from fastapi import FastAPI
    from ray import serve

    from mtrec_ray.serving.config import ServeConfig
    from mtrec_ray.serving.endpoint import QUIET, build

    ray.init("local", num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level=40)
    serve.start(http_options={"host": "127.0.0.1", "port": 8400}, logging_config=QUIET)
    empty = FastAPI()

    @empty.post("/v1/recommend")
    async def nothing() -> dict[str, int]:
        return {"nothing": 0}

    deployment = serve.deployment(serve.ingress(empty)()).options(max_ongoing_requests=256, logging_config=QUIET)
    config = ServeConfig(bundle=bundle)
    single = body_of(engine, 1)[0]
    found: dict[str, list[tuple[float, float]]] = {"empty": [], "recommend": []}
    for _ in range(2):
        ours = build(config.model_dump(mode="json", exclude={"port"}))
        for name, application in (("empty", deployment.bind()), ("recommend", ours)):
            serve.run(application, name="bench", route_prefix="/", logging_config=QUIET)
            found[name].append(asyncio.run(load("/v1/recommend", single, seconds)))
    rates = {name: statistics.mean(rate for rate, _ in runs) for name, runs in found.items()}
    p99 = {name: statistics.mean(p for _, p in runs) for name, runs in found.items()}
    for name in found:
        print(f"{name:10s} {rates[name]:7.0f} requests/s, p99 {p99[name]:.0f} ms")
    in_rate, in_p99 = (figures["recommend"] / figures["empty"] for figures in (rates, p99))
    print(f"  recommend / empty = {in_rate:.2f} in rate, {in_p99:.2f} in p99")
    batch = {"requests": body_of(engine, 1000)}
    rate, p = asyncio.run(load("/v1/recommend:batch", batch, seconds, connections=2))
    print(f"batch of 1,000: {rate * 1000:.0f} users/s, p99 {p:.0f} ms")
    serve.shutdown()
    ray.shutdown()


def body_of(engine: Any, count: int) -> list[dict[str, Any]]:
    names, ids = list(engine.combinations), engine.ids
    return [
        {
            "history": [ids[title] for title in query.history],
            "attributes": {
                name: values[value]
                for (name, values), value in zip(engine.manifest.attributes.items(), query.values, strict=True)
            },
            "territory": engine.manifest.territories[0],
            "ignore": list(names[query.combination]),
        }
        for query in queries(engine, list(range(len(names))), count)
    ]


async def load(path: str, body: Any, seconds: float, connections: int = CONNECTIONS) -> tuple[float, float]:
    """Requests per second and p99 in ms; every answer must be a success."""
    import aiohttp

    times: list[float] = []
    url, until = f"http://127.0.0.1:8400{path}", 0.0

    async def ask(session: aiohttp.ClientSession, measured: bool) -> None:
        while time.perf_counter() < until:
            start = time.perf_counter()
            async with session.post(url, json=body) as answer:
                assert answer.status == 200, await answer.text()
                await answer.read()
            if measured:
                times.append((time.perf_counter() - start) * 1e3)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=connections)) as session:
        until = time.perf_counter() + 2.0
        await asyncio.gather(*(ask(session, False) for _ in range(connections)))
        until = time.perf_counter() + seconds
        await asyncio.gather(*(ask(session, True) for _ in range(connections)))
    return len(times) / seconds, float(np.percentile(times, 99))


if __name__ == "__main__":
    sys.path.insert(0, ".")
    typer.run(main)

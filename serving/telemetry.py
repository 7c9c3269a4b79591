"""Figures of the endpoint for Prometheus, through Ray: no value of a request is ever a label."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from ray.util.metrics import Counter, Gauge, Histogram

from serving.engine import Query

LATENCY_MS: list[float] = [0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000]
SIZES: list[float] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000]


class Telemetry:
    """Counters and histograms of one replica."""

    def __init__(self) -> None:
        self.latency = Histogram("mtrec_stage_latency_ms", "Time in a stage.", LATENCY_MS, tag_keys=("stage",))
        self.batch_size = Histogram("mtrec_batch_size", "Users of a forward.", boundaries=SIZES)
        self.mixture = Histogram("mtrec_batch_combinations", "Combinations of a forward.", boundaries=SIZES)
        self.errors = Counter("mtrec_errors", "Answers that are no success, by kind.", tag_keys=("kind",))
        self.degraded = Counter("mtrec_popularity_answers", "Answers by popularity, by reason.", tag_keys=("reason",))
        self.live = Gauge("mtrec_live_bundle", "1 for the bundle in use.", tag_keys=("version",))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.latency.observe((time.perf_counter() - start) * 1e3, {"stage": name})

    def batch(self, queries: list[Query]) -> None:
        self.batch_size.observe(len(queries))
        self.mixture.observe(len({query.combination for query in queries}))

    def error(self, kind: str) -> None:
        self.errors.inc(1, {"kind": kind})

    def popularity(self, reason: str) -> None:
        self.degraded.inc(1, {"reason": reason})

    def serving(self, version: str, before: str | None) -> None:
        if before is not None:
            self.live.set(0, {"version": before})
        self.live.set(1, {"version": version})

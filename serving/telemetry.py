"""Prometheus metrics of the endpoint, through Ray; no value of a request is ever a label.

Histograms are counted here and reported once a second, as counters with a histogram's labels, because Ray's own took
16% of a replica's event loop. Ray appends `_total` to a counter's name, so this is a quantile:

    histogram_quantile(0.99, sum by (stage, le) (rate(ray_mtrec_stage_latency_ms_bucket_total[5m])))
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from ray.util.metrics import Counter, Gauge

from mtrec_ray.serving.engine import Query

LATENCY_MS = (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
REPORT_EVERY_S = 1.0


class BufferedHistogram:
    """A histogram per stage; `bounds` are ascending upper limits of all buckets but the last."""

    def __init__(self, name: str, description: str, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.buckets = Counter(f"{name}_bucket", description, ("stage", "le"))
        self.sum = Counter(f"{name}_sum", description, ("stage",))
        self.count = Counter(f"{name}_count", description, ("stage",))
        self.pending = defaultdict[str, list[float]](list)  # stage -> values since the last report

    def observe(self, value: float, stage: str) -> None:
        self.pending[stage].append(value)

    def report(self) -> None:
        """Report to Ray what was observed since the last report."""
        pending, self.pending = self.pending, defaultdict(list)
        for stage, values in pending.items():
            below = np.searchsorted(np.sort(values), self.bounds, "right").tolist()
            for bound, count in zip((*self.bounds, np.inf), (*below, len(values)), strict=True):
                if count:  # Ray rejects 0
                    self.buckets.inc(count, {"stage": stage, "le": "+Inf" if bound == np.inf else f"{bound:g}"})
            self.count.inc(len(values), {"stage": stage})
            if (total := sum(values)) > 0:
                self.sum.inc(total, {"stage": stage})


class Telemetry:
    """Counters and histograms of one replica."""

    def __init__(self) -> None:
        self.latency = BufferedHistogram("mtrec_stage_latency_ms", "Time in a stage.", LATENCY_MS)
        self.batch_size = BufferedHistogram("mtrec_batch_size", "Users of a forward.", SIZES)
        self.mixture = BufferedHistogram("mtrec_batch_combinations", "Combinations of a forward.", SIZES)
        self.errors = Counter("mtrec_errors", "Answers other than success, by kind.", ("kind",))
        self.degraded = Counter("mtrec_popularity_answers", "Answers by popularity, by reason.", ("reason",))
        self.live = Gauge("mtrec_live_bundle", "1 for the bundle in use.", ("version",))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.latency.observe((time.perf_counter() - start) * 1e3, name)

    def batch(self, queries: list[Query]) -> None:
        self.batch_size.observe(len(queries), "model")
        self.mixture.observe(len({query.combination for query in queries}), "model")

    def error(self, kind: str) -> None:
        self.errors.inc(1, {"kind": kind})

    def bundle(self, version: str, before: str | None) -> None:
        if before is not None:
            self.live.set(0, {"version": before})
        self.live.set(1, {"version": version})

    async def keep_reporting(self) -> None:
        """Report the histograms to Ray every second until cancelled, and once more."""
        while True:
            try:
                await asyncio.sleep(REPORT_EVERY_S)
            finally:
                for histogram in (self.latency, self.batch_size, self.mixture):
                    histogram.report()

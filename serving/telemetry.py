"""Figures of the endpoint for Prometheus, through Ray: no value of a request is ever a label.

Histograms are counted here and reported to Ray once a second, as counters with a histogram's labels. Ray adds `_total`
to a counter's name, so the query for a quantile is

    histogram_quantile(0.99, sum by (stage, le) (rate(ray_mtrec_stage_latency_ms_bucket_total[5m])))

and `_sum_total` over `_count_total` is the mean. A bucket appears with its first value. Ray's own histogram, updated at
each request, took 16% of a replica's event loop behind HAProxy, and it sums the buckets' middles, not the values.
"""

import asyncio
import time
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate

from ray.util.metrics import Counter, Gauge

from mtrec_ray.serving.engine import Query

LATENCY_MS = (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
TELL_EVERY_S = 1.0


@dataclass
class Counts:
    """Observations of one stage since the last report."""

    buckets: list[int]
    total: float = 0.0


class Tally:
    """A histogram for each stage.

    Args:
        name: of the histogram.
        description: of what is observed.
        bounds: upper bounds of the buckets but the last, ascending.
    """

    def __init__(self, name: str, description: str, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.labels = [*(f"{bound:g}" for bound in bounds), "+Inf"]
        self.buckets = Counter(f"{name}_bucket", description, ("stage", "le"))
        self.sum = Counter(f"{name}_sum", description, ("stage",))
        self.count = Counter(f"{name}_count", description, ("stage",))
        self.waiting: dict[str, Counts] = {}

    def observe(self, value: float, stage: str) -> None:
        """Count a value; Ray is told later."""
        if stage not in self.waiting:
            self.waiting[stage] = Counts([0] * len(self.labels))
        counts = self.waiting[stage]
        counts.buckets[bisect_left(self.bounds, value)] += 1
        counts.total += value

    def tell(self) -> None:
        """Report to Ray all that was observed since the last report."""
        waiting, self.waiting = self.waiting, {}
        for stage, counts in waiting.items():
            for label, below in zip(self.labels, accumulate(counts.buckets), strict=True):
                if below:  # Ray refuses to add 0
                    self.buckets.inc(below, {"stage": stage, "le": label})
            self.count.inc(sum(counts.buckets), {"stage": stage})
            if counts.total > 0:
                self.sum.inc(counts.total, {"stage": stage})


class Telemetry:
    """Counters and histograms of one replica."""

    def __init__(self) -> None:
        self.latency = Tally("mtrec_stage_latency_ms", "Time in a stage.", LATENCY_MS)
        self.batch_size = Tally("mtrec_batch_size", "Users of a forward.", SIZES)
        self.mixture = Tally("mtrec_batch_combinations", "Combinations of a forward.", SIZES)
        self.errors = Counter("mtrec_errors", "Answers other than success, by kind.", tag_keys=("kind",))
        self.degraded = Counter("mtrec_popularity_answers", "Answers by popularity, by reason.", tag_keys=("reason",))
        self.live = Gauge("mtrec_live_bundle", "1 for the bundle in use.", tag_keys=("version",))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times a stage."""
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

    def popularity(self, reason: str) -> None:
        self.degraded.inc(1, {"reason": reason})

    def serving(self, version: str, before: str | None) -> None:
        if before is not None:
            self.live.set(0, {"version": before})
        self.live.set(1, {"version": version})

    async def keep_telling(self) -> None:
        """Tell Ray what the histograms hold, each second until cancelled and once more."""
        try:
            while True:
                await asyncio.sleep(TELL_EVERY_S)
                self.tell()
        finally:
            self.tell()

    def tell(self) -> None:
        for tally in (self.latency, self.batch_size, self.mixture):
            tally.tell()

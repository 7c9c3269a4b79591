"""What Prometheus sees of a histogram that is reported to Ray later."""

import asyncio
from collections import defaultdict

import pytest

from mtrec_ray.serving import telemetry
from mtrec_ray.serving.telemetry import BufferedHistogram, Telemetry

VALUES = [0.4, 0.5, 0.6, 3.0, 3.0, 70.0]


@pytest.fixture
def reported(monkeypatch) -> dict[tuple[str, ...], float]:
    """(name, stage, le) -> sum of what Ray's counter was raised by."""
    sums: dict[tuple[str, ...], float] = defaultdict(float)

    class Recorded:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            self.name, self.tag_keys = name, tag_keys

        def inc(self, by: float, tags: dict[str, str]) -> None:
            assert by > 0  # Ray rejects 0
            assert set(tags) == set(self.tag_keys)
            sums[(self.name, *tags.values())] += by

    monkeypatch.setattr(telemetry, "Counter", Recorded)
    return sums


def test_buckets_are_cumulative_sums_exact_and_stages_apart(reported):
    histogram = BufferedHistogram("t", "Some.", (0.5, 1, 5))
    for value in VALUES:
        histogram.observe(value, "model")
    histogram.observe(0.0, "store")
    assert not reported
    for _ in range(2):  # reported once
        histogram.report()
    buckets = {"0.5": 2, "1": 3, "5": 5, "+Inf": 6}
    assert {key[2]: by for key, by in reported.items() if key[:2] == ("t_bucket", "model")} == buckets
    assert (reported["t_count", "model"], reported["t_count", "store"]) == (6, 1)
    assert reported["t_sum", "model"] == pytest.approx(sum(VALUES))


def test_replica_reports_repeatedly_and_at_its_end(reported, monkeypatch):
    monkeypatch.setattr(telemetry, "REPORT_EVERY_S", 0.01)

    async def run() -> None:
        metrics = Telemetry()
        reporting = asyncio.create_task(metrics.keep_reporting())
        for count in (1, 2, 3):
            with metrics.stage("recommend"):
                pass
            if count < 3:
                await asyncio.sleep(0.1)
                assert reported["mtrec_stage_latency_ms_count", "recommend"] == count
        reporting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reporting

    asyncio.run(run())
    assert reported["mtrec_stage_latency_ms_count", "recommend"] == 3

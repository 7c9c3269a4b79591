"""What Prometheus sees of a histogram that is reported to Ray later."""

import asyncio
from collections import defaultdict

import pytest
from starlette.testclient import TestClient

from mtrec_ray.serving import telemetry
from mtrec_ray.serving.api import build_api
from mtrec_ray.serving.config import LimitsConfig
from mtrec_ray.serving.live import LiveEngine
from mtrec_ray.serving.service import Service
from mtrec_ray.serving.telemetry import BufferedHistogram, Telemetry
from tests.benchmarks.endpoint_process import wait_for

VALUES = [0.4, 0.5, 0.6, 3.0, 3.0, 70.0]


@pytest.fixture
def reported(monkeypatch) -> dict[tuple[str, ...], float]:
    """(name, stage, le) -> sum of what Ray's counter was raised by."""
    sums: dict[tuple[str, ...], float] = defaultdict(float)

    class Recorded:
        def __init__(self, name: str, description: str = "", tag_keys: tuple[str, ...] = ()) -> None:
            self.name, self.tag_keys = name, tag_keys

        def inc(self, by: float, tags: dict[str, str]) -> None:
            assert by > 0  # Ray rejects 0
            assert set(tags) == set(self.tag_keys)
            sums[(self.name, *tags.values())] += by

    monkeypatch.setattr(telemetry, "Counter", Recorded)
    return sums


def test_buckets_are_cumulative_and_sums_exact(reported):
    histogram = BufferedHistogram("t", "Some.", (0.5, 1, 5))
    for value in VALUES:
        histogram.observe(value, "model")
    assert not reported
    histogram.report()
    buckets = {"0.5": 2, "1": 3, "5": 5, "+Inf": 6}
    assert {key[2]: by for key, by in reported.items() if key[0] == "t_bucket"} == buckets
    assert reported["t_count", "model"] == 6
    assert reported["t_sum", "model"] == pytest.approx(sum(VALUES))


def test_observations_are_reported_once_and_stages_apart(reported):
    histogram = BufferedHistogram("t", "Some.", (0.5, 1, 5))
    for value in VALUES:
        histogram.observe(value, "store")
        histogram.report()
    histogram.observe(0.0, "model")
    histogram.report()
    histogram.report()
    assert (reported["t_count", "store"], reported["t_count", "model"]) == (6, 1)
    assert (reported["t_bucket", "store", "+Inf"], reported["t_bucket", "store", "0.5"]) == (6, 2)


def test_endpoint_reports_repeatedly(reported, monkeypatch, bundle_uri):
    monkeypatch.setattr(telemetry, "REPORT_EVERY_S", 0.01)
    service = Service(LiveEngine(bundle_uri, 1.0), None, Telemetry(), batch_rows=8)
    with TestClient(build_api(service, (), LimitsConfig())) as client:
        for count in (1, 2):
            assert client.post("/v1/recommend", json={"history": ["t01"], "territory": "north"}).status_code == 200
            wait_for(lambda count=count: reported["mtrec_stage_latency_ms_count", "recommend"] == count, 10.0)


def test_last_second_is_reported_at_the_end(reported):
    async def run() -> None:
        metrics = Telemetry()
        reporting = asyncio.create_task(metrics.keep_reporting())
        await asyncio.sleep(0)
        with metrics.stage("recommend"):
            pass
        reporting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reporting

    asyncio.run(run())
    assert reported["mtrec_stage_latency_ms_count", "recommend"] == 1

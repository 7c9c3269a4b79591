"""What Prometheus would see of a histogram that is told at once."""

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
from tests.serving.bundles import write_bundle

VALUES = [0.4, 0.5, 0.6, 3.0, 3.0, 70.0]


@pytest.fixture
def told(monkeypatch) -> dict[tuple[str, ...], float]:
    """(name, stage, le) -> the sum of what Ray's counter was raised by."""
    found: dict[tuple[str, ...], float] = defaultdict(float)

    class Recorded:
        def __init__(self, name: str, description: str = "", tag_keys: tuple[str, ...] = ()) -> None:
            self.name, self.tag_keys = name, tag_keys

        def inc(self, by: float, tags: dict[str, str]) -> None:
            assert by > 0  # as Ray's has it
            assert set(tags) == set(self.tag_keys)
            found[(self.name, *tags.values())] += by

    monkeypatch.setattr(telemetry, "Counter", Recorded)
    return found


def test_buckets_are_cumulative_and_sums_exact(told):
    tally = BufferedHistogram("t", "Some.", (0.5, 1, 5))
    for value in VALUES:
        tally.observe(value, "model")
    assert not told
    tally.report()
    buckets = {"0.5": 2, "1": 3, "5": 5, "+Inf": 6}
    assert {key[2]: by for key, by in told.items() if key[0] == "t_bucket"} == buckets
    assert told["t_count", "model"] == 6
    assert told["t_sum", "model"] == pytest.approx(sum(VALUES))


def test_nothing_is_told_twice_and_stages_apart(told):
    tally = BufferedHistogram("t", "Some.", (0.5, 1, 5))
    for value in VALUES:
        tally.observe(value, "store")
        tally.report()
    tally.observe(0.0, "model")
    tally.report()
    tally.report()
    assert (told["t_count", "store"], told["t_count", "model"]) == (6, 1)
    assert told["t_bucket", "store", "+Inf"] == 6
    assert told["t_bucket", "store", "0.5"] == 2


def test_an_endpoint_tells_again_and_again(told, monkeypatch, tmp_path):
    monkeypatch.setattr(telemetry, "REPORT_EVERY_S", 0.01)
    service = Service(LiveEngine(str(write_bundle(tmp_path / "bundle")), 1.0), None, Telemetry(), batch_rows=8)
    with TestClient(build_api(service, (), LimitsConfig())) as client:
        for asked in (1, 2):
            assert client.post("/v1/recommend", json={"history": ["t01"], "territory": "north"}).status_code == 200
            wait_for(lambda asked=asked: told["mtrec_stage_latency_ms_count", "recommend"] == asked, 10.0)


def test_the_last_second_is_told_too(told):
    async def run() -> None:
        figures = Telemetry()
        telling = asyncio.create_task(figures.keep_reporting())
        await asyncio.sleep(0)
        with figures.stage("recommend"):
            pass
        telling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await telling

    asyncio.run(run())
    assert told["mtrec_stage_latency_ms_count", "recommend"] == 1

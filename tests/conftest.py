"""Fixtures for the whole suite: one quiet local Ray for all tests that need it, and the folder of real data."""

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machine")

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small matrices: threads of one test would only wait for each other

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and so do its children


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray with three logical CPUs, started once; tests that use it carry `pytest.mark.ray`."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # both as `ray_session` has them
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    import ray

    from mtrec_ray.lake.cluster import workers_heed_interrupts

    with workers_heed_interrupts():
        ray.init(
            "local",  # never a cluster that happens to run on this machine
            num_cpus=3,
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
            object_store_memory=300_000_000,
        )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the public data sets; the test is skipped where there is none."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("MTREC_TEST_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no real data: set MTREC_TEST_DATA to its folder, or put it at {beside}")
    return folder


@pytest.fixture(params=["sasrec", "bert4rec"])
def kind(request: pytest.FixtureRequest) -> str:
    """Of a sequential backbone."""
    return request.param


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Any]:
    """The command line in this process: (exit code, stdout, stderr), in an empty folder."""
    from mtrec_ray.__main__ import main

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mtrec", *arguments])
        monkeypatch.chdir(tmp_path)
        capsys.readouterr()
        try:
            main()
            code: object = 0
        except SystemExit as stop:
            code = stop.code
        printed = capsys.readouterr()
        return int(str(code or 0)), printed.out, printed.err

    return run


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out long tests unless `-m` names them; start files with Ray first, so that no process ends with them."""
    if "long" not in config.option.markexpr:
        long = [item for item in items if item.get_closest_marker("long")]
        items[:] = [item for item in items if not item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)
    with_ray = {item.path for item in items if item.get_closest_marker("ray")}
    items.sort(key=lambda item: (item.path not in with_ray, "training" not in item.path.parts))

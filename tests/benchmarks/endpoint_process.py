"""`mtrec serve` in a process of its own, as a user starts it."""

import logging
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.serving.redis_server import free_port

READY_S, END_S, POLL_S = 300.0, 90.0, 0.25
REPLICA = "ray::ServeReplica:mtrec:Endpoint"
ROOT = str(Path(__file__).resolve().parents[2])


class EndpointProcess:
    """An endpoint on its own port; leaving the context ends it and all that it started, by their pids.

    Args:
        bundle: a bundle or a pointer.
        settings: `dotted.key=value` of `mtrec serve`.
        log: file for its output.
        environment: variables in addition to those of this process.
    """

    def __init__(self, bundle: Path, settings: list[str], log: Path, environment: dict[str, str]) -> None:
        port = free_port()
        self.url, self.log, self.environment = f"http://127.0.0.1:{port}", log, environment
        options = [word for setting in settings for word in ("--set", setting)]
        self.command = [sys.executable, "-m", "mtrec_ray", "serve", str(bundle), "--port", str(port), *options]
        self.joined = False

    def __enter__(self) -> "EndpointProcess":
        env = os.environ | {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": ROOT} | self.environment
        env.pop("RAY_ADDRESS", None)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, env=env, cwd=ROOT)
        try:
            wait_for(self._is_ready, READY_S)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.joined:
            import ray

            ray.shutdown()
        started = self._children() if self.process.poll() is None else []
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(timeout=END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for process in psutil.wait_procs(started, timeout=10)[1]:
            process.kill()

    def replicas(self) -> list[psutil.Process]:
        """Processes of the replicas, the oldest first."""
        found = [process for process in self._children() if _title(process).startswith(REPLICA)]
        return sorted(found, key=lambda process: process.create_time())

    def running(self) -> int:
        """Replicas that Serve sends requests to."""
        from ray import serve

        self._join()
        states = serve.status().applications["mtrec"].deployments["Endpoint"].replica_states
        return sum(count for state, count in states.items() if state == "RUNNING")

    def metrics(self) -> str:
        """What Prometheus reads at the address in the log."""
        (address,) = re.findall(r"http://\S+/metrics", self.log.read_text())
        with urllib.request.urlopen(address) as page:
            return page.read().decode()

    def _children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def _is_ready(self) -> bool:
        if self.process.poll() is not None:
            raise RuntimeError(self.log.read_text())
        return "/metrics" in self.log.read_text()  # the last line of its start

    def _join(self) -> None:
        """Become a second driver of the endpoint's Ray."""
        if self.joined:
            return
        import ray

        lines = (" ".join(process.cmdline()) for process in self._children() if "raylet" in process.name())
        (address,) = {found[1] for line in lines if (found := re.search(r"--gcs-address=(\S+)", line))}
        os.environ["RAY_AUTH_MODE"] = "disabled"
        ray.init(address, namespace="serve", logging_level=logging.ERROR, log_to_driver=False)
        self.joined = True


def wait_for(condition: Callable[[], bool], timeout_s: float) -> float:
    """Seconds until the condition holds; TimeoutError if it does not."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > timeout_s:
            raise TimeoutError(f"waited {timeout_s} s")
        time.sleep(POLL_S)
    return time.monotonic() - start


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return ""  # it ended between two lines

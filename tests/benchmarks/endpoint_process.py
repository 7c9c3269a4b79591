"""`mtrec serve` as a user starts it, in a process of its own, and what can be done to it from outside."""

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psutil

READY_S, END_S, LOOK_S = 300.0, 90.0, 0.25
REPLICA = "ray::ServeReplica:mtrec:Endpoint"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class EndpointProcess:
    """An endpoint on a port of its own; leaving the context ends it and all that it started, by their pids.

    Args:
        bundle: a bundle or a pointer.
        settings: `dotted.key=value` of `mtrec serve`.
        log: file for its output.
        environment: variables beside those of this process.
    """

    def __init__(self, bundle: Path, settings: list[str], log: Path, environment: dict[str, str]) -> None:
        port = free_port()
        self.environment = environment
        self.url, self.log = f"http://127.0.0.1:{port}", log
        sets = [word for setting in settings for word in ("--set", setting)]
        self.command = [sys.executable, "-m", "mtrec_ray", "serve", str(bundle), "--port", str(port), *sets]

    def __enter__(self) -> "EndpointProcess":
        root = str(Path(__file__).resolve().parents[2])
        env = os.environ | {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": root} | self.environment
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, env=env, cwd=root)
        try:
            self._wait_until_ready()
            self._join()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        ray.shutdown()
        started = psutil.Process(self.process.pid).children(recursive=True) if self.process.poll() is None else []
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

        states = serve.status().applications["mtrec"].deployments["Endpoint"].replica_states
        return sum(count for state, count in states.items() if state == "RUNNING")

    def metrics(self) -> str:
        """What Prometheus reads where the endpoint says it should."""
        wait_for(lambda: "/metrics" in self.log.read_text(), READY_S)
        with urllib.request.urlopen(self.log.read_text().split("ray_mtrec_*, at ")[1].split()[0]) as page:
            return page.read().decode()

    def _children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def _wait_until_ready(self) -> None:
        def ready() -> bool:
            if self.process.poll() is not None:
                raise RuntimeError(self.log.read_text())
            try:
                with urllib.request.urlopen(f"{self.url}/healthz", timeout=5) as answer:
                    return answer.status == 200
            except (urllib.error.URLError, OSError):
                return False  # not listening yet

        wait_for(ready, READY_S)

    def _join(self) -> None:
        """Become a second driver of the endpoint's own Ray, to look at it."""
        import ray

        lines = (" ".join(process.cmdline()) for process in self._children() if "raylet" in process.name())
        (address,) = {found[1] for line in lines if (found := re.search(r"--gcs-address=(\S+)", line))}
        os.environ["RAY_AUTH_MODE"] = "disabled"
        ray.init(address, namespace="serve", logging_level=logging.ERROR, log_to_driver=False)


def wait_for(holds: Callable[[], bool], timeout_s: float) -> float:
    """Seconds until it holds; TimeoutError where it does not."""
    start = time.monotonic()
    while not holds():
        if time.monotonic() - start > timeout_s:
            raise TimeoutError(f"waited {timeout_s} s")
        time.sleep(LOOK_S)
    return time.monotonic() - start


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return ""  # it ended between two lines

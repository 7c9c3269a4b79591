"""What is wrong with the environment is said in seconds and in one line, before Ray starts."""

import os
import socket
from collections.abc import Iterator

import pytest
from ray.exceptions import ActorDiedError, OutOfDiskError, OutOfMemoryError, WorkerCrashedError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError

from mtrec_ray.errors import TryAgain, UserError
from mtrec_ray.lake import environment
from mtrec_ray.lake.environment import check_cluster_address, check_ray_folder, ray_failure, use_own_token


@pytest.fixture
def listener(monkeypatch) -> Iterator[str]:
    """Address of a port that accepts connections but never answers."""
    monkeypatch.setattr(environment, "ANSWER_TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("/tmp/" + "long" * 12, r"paths of 1\d\d bytes, and the system allows 107"),
        ("here", "no absolute path"),
        ("", "no absolute path"),
        ("/etc/passwd", r"cannot be written to \(Not a directory\)"),
        ("/proc", r"cannot be written to \(No such file or directory\)"),
    ],
)
@pytest.mark.parametrize("name", ["RAY_TMPDIR", "TMPDIR"])
def test_folder_that_cannot_hold_rays_files_is_named_with_its_variable(monkeypatch, folder, reason, name):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(name, folder)
    with pytest.raises(
        UserError, match=rf"^{name} = '{folder}'.*{reason}.*: set RAY_TMPDIR to a short, writable folder"
    ):
        check_ray_folder()
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    check_ray_folder()


@pytest.mark.parametrize("address", ["foo", "http://x:1", "localhost", "ray://", " ", "head:99999", "head:x", "a:1:2"])
def test_what_is_no_address_of_a_cluster_is_refused(monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=f"^RAY_ADDRESS = '{address}' is no address: write host:port") as found:
        check_cluster_address()
    assert not isinstance(found.value, TryAgain)


@pytest.mark.parametrize("prefix", ["", "ray://"])
def test_address_where_no_ray_answers_is_refused_at_once(monkeypatch, closed_port, listener, prefix):
    for address, reason in ((closed_port, r"\(Connection refused\)"), (listener, "within 0.5 s")):
        monkeypatch.setenv("RAY_ADDRESS", prefix + address)
        with pytest.raises(TryAgain, match=f"{reason}: start the cluster, or unset RAY_ADDRESS"):
            check_cluster_address()


def test_ray_gets_a_token_where_the_home_folder_cannot_keep_one(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("RAY_AUTH_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    use_own_token()
    assert "RAY_AUTH_TOKEN" not in os.environ
    monkeypatch.setenv("HOME", "/proc/none")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    use_own_token()
    assert "RAY_AUTH_TOKEN" not in os.environ
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")  # restored at the end
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    use_own_token()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


OUT_OF_MEMORY = "Memory on the node was 2.57GB used / 23.54GB limit (0.1)\nRay killed 1 worker(s)"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OutOfMemoryError(OUT_OF_MEMORY), r"memory is short \(2.57GB used / 23.54GB limit, RAY_memory_usage_threshold"),
        (WorkerGroupError("lost", {0: OutOfMemoryError(OUT_OF_MEMORY)}), "memory is short"),
        (WorkerCrashedError(), "a process of Ray was killed or crashed"),
        (ControllerError(ActorDiedError()), "a process of Ray was killed or crashed"),
        (ControllerError(WorkerGroupStartupFailedError("its worker process has died")), "a process of Ray was killed"),
        (OutOfDiskError(), "is full: free some room"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_ray_lost_or_ended_is_one_line(error, message):
    failure = ray_failure(error)
    assert failure
    with pytest.raises(UserError, match=message):
        raise failure
    assert isinstance(failure, TryAgain) == ("full" not in message)
    assert len(str(failure).splitlines()) == 1


def test_errors_of_code_are_no_failures_of_ray():
    assert ray_failure(KeyError("x")) is None
    assert ray_failure(WorkerGroupError("failed", {0: KeyError("x")})) is None
    constructor = "The actor died because of an error raised in its creation task"
    assert ray_failure(ControllerError(WorkerGroupStartupFailedError(constructor))) is None

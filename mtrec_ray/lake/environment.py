"""The environment in which Ray starts, and its failures, checked and named in one line.

Ray itself waits minutes for an address where nothing answers, and its errors fill a screen.
"""

import logging
import os
import re
import secrets
import socket
import sys
import tempfile

from mtrec_ray.errors import TryAgain, UserError, causes

ANSWER_TIMEOUT_S = 10.0
MAX_SOCKET_BYTES = 107  # of a Unix socket's path
LONGEST_SOCKET = (
    "/ray/session_2026-01-31_12-00-00_123456_{}/sockets/plasma_store"  # below the folder for temporary files
)
MEMORY_THRESHOLD = "RAY_memory_usage_threshold"
AGAIN = "start the same command again"


logger = logging.getLogger(__name__)


def check_ray_folder() -> None:
    """UserError unless Ray can create its sockets and logs below RAY_TMPDIR, TMPDIR or /tmp."""
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), "RAY_TMPDIR")
    folder = os.environ.get(name, "/tmp")
    fix = "set RAY_TMPDIR to a short, writable folder, as /tmp"
    longest = len(os.fsencode(folder + LONGEST_SOCKET.format(os.getpid())))
    if longest > MAX_SOCKET_BYTES:
        raise UserError(
            f"{name} = {folder!r}: Ray's sockets below it would have paths of {longest} bytes, and the system allows "
            f"{MAX_SOCKET_BYTES}: {fix}"
        )
    if not os.path.isabs(folder):
        raise UserError(f"{name} = {folder!r} is no absolute path: {fix}")
    try:
        os.makedirs(f"{folder}/ray", exist_ok=True)
        with tempfile.TemporaryFile(dir=f"{folder}/ray"):
            pass
    except OSError as error:
        raise UserError(f"{name} = {folder!r} cannot be written to ({error.strerror}): {fix}") from error


def use_own_token() -> None:
    """Set a token for a local Ray that cannot keep one in the home folder."""
    folder = os.path.expanduser("~/.ray")
    if any(name.startswith("RAY_AUTH_") for name in os.environ):
        return
    try:
        if os.path.isabs(folder):  # else there is no home
            os.makedirs(folder, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return
    except OSError as error:
        logger.debug("Ray's token is not kept: %s", error)
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def check_cluster_address() -> None:
    """Check that a cluster answers at RAY_ADDRESS, or at what `auto` stands for.

    UserError where it cannot be an address, TryAgain where nothing answers.
    """
    import grpc
    from ray._private.services import get_ray_address_from_environment

    given = f"RAY_ADDRESS = {os.environ['RAY_ADDRESS']!r}"
    away = "start the cluster, or unset RAY_ADDRESS to run on this machine"
    try:
        address = get_ray_address_from_environment("auto", None)
    except ConnectionError as error:
        raise TryAgain(f"{given}: no cluster runs on this machine: {away}") from error
    found = re.fullmatch(r"(?:ray://)?(\[[0-9a-fA-F:.]+\]|[\w.-]+):(\d{1,5})", address)
    if not found or int(found[2]) > 65535:
        raise UserError(f"{given} is no address: write host:port of the head node, as 10.0.0.1:6379, auto or local")
    host, port = found[1].strip("[]"), int(found[2])
    try:
        socket.create_connection((host, port), ANSWER_TIMEOUT_S).close()
    except OSError as error:
        raise TryAgain(f"{given}: nothing answers there ({error.strerror or error}): {away}") from error
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return
    with grpc.insecure_channel(found[0].removeprefix("ray://")) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=ANSWER_TIMEOUT_S)
        except grpc.FutureTimeoutError as error:
            raise TryAgain(f"{given}: no Ray answers there within {ANSWER_TIMEOUT_S:g} s: {away}") from error


def ray_failure(error: BaseException) -> UserError | None:
    """What a user can do about processes that Ray lost or ended; None for other errors."""
    if "ray" not in sys.modules:
        return None
    from ray import exceptions

    lost = (
        exceptions.RayActorError,
        exceptions.WorkerCrashedError,
        exceptions.LocalRayletDiedError,
        exceptions.NodeDiedError,
        exceptions.ObjectLostError,
        exceptions.RaySystemError,
        exceptions.RpcError,
    )
    for one in causes(error):
        text = str(one)
        is_lost = isinstance(one, lost) or type(one).__name__.startswith("WorkerGroupStartup")  # of Ray Train
        if isinstance(one, exceptions.OutOfMemoryError) or (is_lost and "low on memory" in text):
            used = re.search(r"[\d.]+GB used / [\d.]+GB limit", text)
            share = os.environ.get(MEMORY_THRESHOLD, "0.95")
            return TryAgain(
                f"Ray ended tasks because memory is short ({used.group() if used else 'see its logs'}, "
                f"{MEMORY_THRESHOLD} = {share}): end other programs or raise the threshold, then {AGAIN}"
            )
        if isinstance(one, exceptions.ObjectStoreFullError | exceptions.OutOfDiskError):
            return UserError(f"Ray's folder for temporary files is full: free some room in it, then {AGAIN}")
        if is_lost and "creation task" not in text:  # where the code of an actor's constructor failed
            return TryAgain(f"a process of Ray was killed or crashed, more often than it is replaced: {AGAIN}")
    return None

"""Settings of `mtrec serve` and of the `args` in serve.yaml."""

import ipaddress
import os
import socket

from pydantic import Field, model_validator

from mtrec_ray.config import Config, advanced
from mtrec_ray.errors import UserError

KEY_VARIABLE = "MTREC_API_KEYS"


class LimitsConfig(Config):
    """Limits per request, API key and replica."""

    requests_per_s: float = Field(default=200.0, gt=0)
    """Average requests per second of one API key at one replica."""
    burst: int = Field(default=400, ge=1)
    """Requests of one API key at once."""
    max_in_flight: int = Field(default=128, ge=1)
    """Requests that a replica works on; further ones get 503 with Retry-After at once."""
    max_queued: int = advanced(128, ge=1)
    """Requests that wait at a proxy while all replicas are full; further ones get 503 with Retry-After at once."""
    max_body_bytes: int = advanced(4_000_000, ge=1)
    """Longest request body; 1,000 histories of 100 titles fit."""
    batch_rows: int = advanced(64, ge=1)
    """Maximum users of one forward."""


class ScaleConfig(Config):
    """Replicas; each holds the whole model, so that no request hops between deployments."""

    min_replicas: int = Field(default=1, ge=0)
    """Minimum replicas; with 0, the first request after a quiet time waits for a replica to start."""
    max_replicas: int = Field(default=1, ge=1)
    """Maximum replicas."""
    target_ongoing_requests: float = Field(default=16.0, gt=0)
    """Requests in flight per replica above which Ray Serve adds another."""
    upscale_delay_s: float = advanced(10.0, ge=0)
    """Seconds of high load before Ray Serve adds a replica."""
    downscale_delay_s: float = advanced(120.0, ge=0)
    """Seconds of low load before Ray Serve removes a replica; long, because a new one loads slowly."""
    num_cpus: float = advanced(1.0, gt=0)
    """Logical CPUs of a replica."""

    @model_validator(mode="after")
    def _ordered(self) -> "ScaleConfig":
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} is above max_replicas {self.max_replicas}")
        return self


class ServeConfig(Config):
    """An endpoint."""

    bundle: str
    """Folder or URI of a bundle, or of a pointer (ends in .json) that `mtrec promote` moves."""
    store: str | None = None
    """Online store: a folder (embedded) or redis://HOST; null: requests must send histories."""
    expire_s: float | None = Field(default=None, gt=0)
    """Seconds after a user's last event until the store forgets the user; null: never."""
    host: str = "127.0.0.1"
    """Address to listen on; any but loopback requires API keys."""
    port: int = Field(default=8000, ge=1, le=65535)
    """Port to listen on."""
    api_key_file: str | None = None
    """File with one API key per line; MTREC_API_KEYS in the environment adds more, separated by commas."""
    poll_s: float = advanced(2.0, gt=0)
    """Seconds between two reads of the pointer."""
    limits: LimitsConfig = LimitsConfig()
    scale: ScaleConfig = ScaleConfig()


def api_keys(config: ServeConfig) -> tuple[str, ...]:
    """The keys of the file and of the environment.

    Raises:
        UserError: an unreadable or empty file, or no key although other machines can reach the host.
    """
    keys = os.environ.get(KEY_VARIABLE, "").split(",")
    if (path := config.api_key_file) is not None:
        try:
            with open(path, encoding="utf-8") as file:
                lines = file.read().splitlines()
        except OSError as error:
            raise UserError(f"api_key_file {path!r} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise UserError(f"api_key_file {path!r} is not text: write one key per line") from error
        if not any(line.strip() for line in lines):
            raise UserError(f"api_key_file {path!r} contains no key: write one per line")
        keys += lines
    keys = [key.strip() for key in keys if key.strip()]
    if not keys and not _is_loopback(config.host):
        raise UserError(
            f"host {config.host!r} can be reached from other machines: give API keys in api_key_file=FILE "
            f"or {KEY_VARIABLE}"
        )
    return tuple(keys)


def check_port(config: ServeConfig) -> None:
    """Raise UserError if the port is taken: Ray's proxy would share it, and each listener get some requests."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        with socket.socket(family) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # allows a port whose listener just ended
            listener.bind((config.host, config.port))
    except OSError as error:
        raise UserError(
            f"port {config.port} of host {config.host!r}: {error.strerror}; stop the program that listens there, "
            "or choose another port with --port"
        ) from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

"""Settings of `mtrec serve` and of the `args` in serve.yaml."""

import ipaddress
import os
import socket

from pydantic import Field, model_validator

from mtrec_ray.config import Config
from mtrec_ray.errors import UserError

KEY_VARIABLE = "MTREC_API_KEYS"


class LimitsConfig(Config):
    """Limits for one request, one API key and one replica."""

    max_body_bytes: int = Field(default=4_000_000, ge=1)
    """Longest request body; 1,000 histories of 100 titles fit."""
    requests_per_s: float = Field(default=200.0, gt=0)
    """Requests a second of one API key at one replica, on average."""
    burst: int = Field(default=400, ge=1)
    """Requests of one API key in one burst."""
    max_in_flight: int = Field(default=128, ge=1)
    """Requests that a replica works on at the same time; further ones get 503 with Retry-After at once."""
    max_queued: int = Field(default=128, ge=1)
    """Requests that wait at a proxy while all replicas are full; further ones get 503 with Retry-After at once."""
    batch_rows: int = Field(default=64, ge=1)
    """Most users in one forward."""


class ScaleConfig(Config):
    """Replicas; each holds the whole model, so that no request hops between deployments."""

    min_replicas: int = Field(default=1, ge=0)
    """Fewest replicas; with 0, the first request after a quiet time waits until a replica has started."""
    max_replicas: int = Field(default=1, ge=1)
    """Most replicas."""
    target_ongoing_requests: float = Field(default=16.0, gt=0)
    """Requests in flight per replica above which Ray Serve adds another."""
    upscale_delay_s: float = Field(default=10.0, ge=0)
    """Seconds that the load must stay high before Ray Serve adds a replica."""
    downscale_delay_s: float = Field(default=120.0, ge=0)
    """Seconds that the load must stay low before Ray Serve removes one; long, as a new one loads slowly."""
    num_cpus: float = Field(default=1.0, gt=0)
    """CPUs of a replica."""

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
    """Online store: a folder (embedded) or redis://HOST; null: requests must carry histories."""
    expire_s: float | None = Field(default=None, gt=0)
    """Seconds after its last event that a user is forgotten by the store; null: never."""
    host: str = "127.0.0.1"
    """Address to listen on; any but loopback needs API keys."""
    port: int = Field(default=8000, ge=1, le=65535)
    """Port to listen on."""
    api_key_file: str | None = None
    """File with one API key per line; MTREC_API_KEYS in the environment adds more, separated by commas."""
    poll_s: float = Field(default=2.0, gt=0)
    """Seconds between two looks at the pointer."""
    limits: LimitsConfig = LimitsConfig()
    scale: ScaleConfig = ScaleConfig()


def api_keys(config: ServeConfig) -> tuple[str, ...]:
    """The keys of the file and of the environment.

    Raises:
        UserError: an unreadable or empty file, or no key where the host can be reached from elsewhere.
    """
    keys = [key.strip() for key in os.environ.get(KEY_VARIABLE, "").split(",")]
    if config.api_key_file is not None:
        try:
            with open(config.api_key_file, encoding="utf-8") as file:
                found = [line.strip() for line in file]
        except OSError as error:
            raise UserError(f"api_key_file {config.api_key_file!r} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise UserError(f"api_key_file {config.api_key_file!r} is not text: write one key per line") from error
        if not any(found):
            raise UserError(f"api_key_file {config.api_key_file!r} holds no key: write one per line")
        keys += found
    keys = [key for key in keys if key]
    if not keys and not _is_loopback(config.host):
        raise UserError(
            f"host {config.host!r} can be reached from elsewhere: give API keys in api_key_file=FILE or {KEY_VARIABLE}"
        )
    return tuple(keys)


def check_port(config: ServeConfig) -> None:
    """Raise UserError if the port is taken: Ray's proxy would share it, and each listener get some of the requests."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        with socket.socket(family) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a listener that just ended is no obstacle
            listener.bind((config.host, config.port))
    except OSError as error:
        raise UserError(
            f"port {config.port} of host {config.host!r}: {error.strerror}; stop what listens there, "
            "or choose another port with --port"
        ) from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

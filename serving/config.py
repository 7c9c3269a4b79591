"""Settings of `mtrec serve` (and serve.yaml), `promote`, `rollback`, `store load`."""

import os
import socket
from pathlib import Path

from pydantic import Field, model_validator

from mtrec_ray.config import Config, advanced
from mtrec_ray.errors import UserError

KEY_VARIABLE = "MTREC_API_KEYS"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


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
    requests_per_s: float = Field(default=200.0, gt=0)
    """Average requests per second of one API key at one replica; twice as many may come at once."""
    scale: ScaleConfig = ScaleConfig()


class GatesConfig(Config):
    """Conditions for a bundle to go live; a metric is worse if its whole interval is."""

    ndcg_ratio: float = Field(default=0.97, gt=0)
    """Minimum NDCG@10 of each combination relative to the live bundle, reached by the interval's upper end."""
    pr_auc_ratio: float = Field(default=0.97, gt=0)
    """Like `ndcg_ratio`, for the mean PR-AUC of the propensity model; both must be measured on the same protocol."""
    max_leak: float = Field(default=0.02, ge=0)
    """Largest excess of the best attacker's balanced accuracy over its null interval, per ignored attribute."""
    max_auc_leak: float = Field(default=0.05, ge=0)
    """Like `max_leak`, for AUC; larger, because other folds alone move an AUC by 0.015."""
    audit: bool = True
    """Require an audit."""
    against_live: bool = True
    """Compare with the live bundle; false for a damaged pointer, a lost live bundle or dropped combinations."""


class RollbackConfig(Config):
    """The pointer to move back."""

    pointer: str
    """Pointer that endpoints follow: a file or URI that ends in .json."""


class PromoteConfig(RollbackConfig):
    """A bundle, and the pointer to move to it."""

    bundle: str
    """Folder or URI of the bundle."""
    gates: GatesConfig = GatesConfig()


class StoreLoadConfig(Config):
    """One load of a lake's users into an online store."""

    lake: str
    """Folder or URI of the lake."""
    store: str
    """redis://host:port/db, rediss://..., or a local folder, which is created."""
    expire_s: float | None = Field(default=None, gt=0)
    """Seconds after a user's load or last event until the store forgets the user; null: never."""


def api_keys(config: ServeConfig) -> tuple[str, ...]:
    """The keys of the file and of the environment.

    UserError for a file without keys, or if there is no key although other machines can reach the host.
    """
    keys = os.environ.get(KEY_VARIABLE, "").split(",")
    if (path := config.api_key_file) is not None:
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"api_key_file {path!r} cannot be read as text: {error}") from error
        if not any(line.strip() for line in lines):
            raise UserError(f"api_key_file {path!r} contains no key: write one per line")
        keys += lines
    keys = [key.strip() for key in keys if key.strip()]
    if not keys and config.host not in LOOPBACK:
        fix = f"give API keys in api_key_file=FILE or {KEY_VARIABLE}"
        raise UserError(f"host {config.host!r} can be reached from other machines: {fix}")
    return tuple(keys)


def check_port(config: ServeConfig) -> None:
    """Raise UserError if the port is taken, because Ray's proxy would share it silently."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        socket.create_server((config.host, config.port), family=family).close()
    except OSError as error:
        fix = "stop the program that listens there, or choose another port with --port"
        reason = str(error.strerror).partition(" (")[0]  # Python adds the address
        raise UserError(f"port {config.port} of host {config.host!r}: {reason}; {fix}") from error

"""`mtrec serve` and its deployment: model, store and routes in one replica."""

import gc
import logging
import signal
import sys
import threading
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import BackpressureConfig

from mtrec_ray.config import validate_config
from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import UserError
from mtrec_ray.files import absolute, exists
from mtrec_ray.lake.cluster import joins_cluster, metrics_url, need_ray
from mtrec_ray.process import prepare_process
from mtrec_ray.serving.api import build_api
from mtrec_ray.serving.config import ServeConfig, api_keys, check_port
from mtrec_ray.serving.guard import MAX_IN_FLIGHT, RETRY_AFTER_S
from mtrec_ray.serving.pointer import LiveEngine
from mtrec_ray.serving.proxy import configure_proxy_env
from mtrec_ray.serving.service import Service
from mtrec_ray.serving.store import is_folder, open_store
from mtrec_ray.serving.telemetry import Telemetry

MAX_QUEUED = 128  # requests that wait at a proxy while all replicas are full; further ones get 503 at once
QUIET = {"enable_access_log": False, "log_level": "WARNING"}  # the path of a request may contain a user id


@serve.deployment
@serve.ingress()
class Endpoint:
    """One replica; `config` is a `ServeConfig` as plain data."""

    def __init__(self, config: dict[str, Any], keys: tuple[str, ...]) -> None:
        prepare_process(cpus=1)
        self.config, self.keys = validate_config(ServeConfig, config), keys

    def __serve_build_asgi_app__(self) -> Any:
        config = self.config
        store = None if config.store is None else open_store(config.store, expire_s=config.expire_s)
        app = build_api(Service(LiveEngine(config.bundle), store, Telemetry()), self.keys, config.requests_per_s)
        gc.collect()
        gc.freeze()  # the collector skips what is loaded: it took 150 ms once in a thousand requests
        return app


def build(args: dict[str, Any]) -> Application:
    """The application that serve.yaml names; `args` are `ServeConfig` except port."""
    if "port" in args:
        raise UserError(f"port {args['port']!r} has no effect here: set http_options.port")
    config = validate_config(ServeConfig, {"host": "0.0.0.0", **args})  # needs API keys unless args name loopback
    keys, scale = api_keys(config), config.scale
    if config.store is not None and is_folder(config.store) and not exists(config.store):
        raise UserError(f"no online store at {config.store!r}: `mtrec store load LAKE --store {config.store}` makes it")
    paths = {"bundle": absolute(config.bundle), "store": absolute(config.store) if config.store else None}
    deployment = Endpoint.options(
        autoscaling_config=scale.model_dump(exclude={"num_cpus"}) | {"initial_replicas": max(scale.min_replicas, 1)},
        max_ongoing_requests=2 * MAX_IN_FLIGHT,  # the guard refuses first: Serve's queue is expensive
        max_queued_requests=MAX_QUEUED,
        backpressure_config=BackpressureConfig(retry_after_s=RETRY_AFTER_S),
        ray_actor_options={"num_cpus": scale.num_cpus},
        logging_config=QUIET,
    )
    return deployment.bind(config.model_copy(update=paths).model_dump(mode="json"), keys)


def serve_endpoint(config: ServeConfig, progress: ProgressCallback | None = None) -> None:
    """Serve on this machine until interrupted; UserError for a mistake, before any start."""
    keys = api_keys(config)
    if joins_cluster():  # its proxies' address is the cluster's, and ending here would end all its applications
        fix = "unset RAY_ADDRESS, or `serve deploy serving/serve.yaml` on the cluster"
        raise UserError(f"RAY_ADDRESS names a cluster, `mtrec serve` is for this machine: {fix}")
    check_port(config)
    version = LiveEngine(config.bundle).engine.version  # loads the bundle once, to check it
    configure_proxy_env()
    need_ray()
    application = build(config.model_dump(mode="json", exclude={"port"}))
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # it warns of options that it applies all the same
    options = {"host": config.host, "port": config.port, "access_log": False}
    serve.start(http_options=options, logging_config=QUIET)
    serve.run(application, name="mtrec", route_prefix="/", logging_config=QUIET)
    access = "API keys needed" if keys else "no API key needed on this machine"
    url = f"http://{config.host}:{config.port}"
    print(f"serving bundle {version} at {url} ({access}; ctrl-c stops it)", file=sys.stderr)
    print(f"metrics for Prometheus, ray_mtrec_*, at {metrics_url()}", file=sys.stderr, flush=True)
    received = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: received.set())
    received.wait()
    serve.shutdown()

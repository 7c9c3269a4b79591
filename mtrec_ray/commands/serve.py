"""`mtrec serve`: an endpoint on this machine."""

from typing import TYPE_CHECKING, Any

import click

from mtrec_ray.errors import UserError

if TYPE_CHECKING:
    from mtrec_ray.serving.config import ServeConfig


def serve(config: "ServeConfig", progress: Any = None) -> None:
    """Serve until interrupted; UserError for a mistake, before anything is started."""
    from mtrec_ray.lake.cluster import joins_cluster, metrics_url, need_ray
    from mtrec_ray.serving.config import api_keys, check_port

    keys = api_keys(config)
    if joins_cluster():  # its proxies' address is the cluster's, and ending here would end all its applications
        raise UserError(
            "RAY_ADDRESS names a cluster, `mtrec serve` is for this machine: "
            "unset RAY_ADDRESS, or `serve deploy serving/serve.yaml` on the cluster"
        )
    check_port(config)
    from mtrec_ray.serving import proxy
    from mtrec_ray.serving.pointer import LiveEngine

    version = LiveEngine(config.bundle).engine.version  # loads the bundle once, to check it
    proxy.configure_proxy_env()
    need_ray()
    from mtrec_ray.serving.endpoint import start_endpoint, wait_for_signal

    start_endpoint(config)
    click.echo(
        f"serving bundle {version} at http://{config.host}:{config.port}"
        f" ({'API keys needed' if keys else 'no API key needed on this machine'}; ctrl-c stops it)\n"
        f"metrics for Prometheus, ray_mtrec_*, at {metrics_url()}",
        err=True,
    )
    wait_for_signal()

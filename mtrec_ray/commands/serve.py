"""`mtrec serve`, `mtrec promote`, `mtrec rollback`."""

from typing import Annotated

import typer

from mtrec_ray.commands.options import (
    AsJson,
    ConfigFile,
    JobResult,
    PrintConfig,
    Settings,
    resolved,
    run_job,
    with_settings,
)
from mtrec_ray.console import ProgressCallback

SERVE_HELP = with_settings(("mtrec_ray.serving.config:ServeConfig", ""))
PROMOTE_HELP = with_settings(("mtrec_ray.serving.gates_config:PromoteConfig", ""))
PointerFile = Annotated[
    str | None, typer.Option("--pointer", metavar="FILE", help="Pointer that endpoints follow, a .json file or URI.")
]


def serve(
    bundle: Annotated[str | None, typer.Argument(metavar="[BUNDLE]", help="A bundle, or a pointer to one.")] = None,
    store: Annotated[
        str | None, typer.Option("--store", metavar="STORE", help="Online store: a folder or redis://HOST.")
    ] = None,
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option("--port", help="Port to listen on.")] = None,
    config_file: ConfigFile = None,
    settings: Settings = None,
    show_config: PrintConfig = False,
) -> None:
    """Serve a bundle on this machine until interrupted; `serving/serve.yaml` does so on a cluster."""
    from mtrec_ray.serving.config import ServeConfig, api_keys, check_port

    flags = {"bundle": bundle, "store": store, "host": host, "port": port}
    config = resolved(ServeConfig, config_file, settings, show_config, flags)
    keys = api_keys(config)

    from mtrec_ray.errors import UserError
    from mtrec_ray.lake.cluster import joins_cluster, metrics_url, need_ray, ray_session

    if joins_cluster():  # its proxies listen where they listen, and our end would be that of all its applications
        raise UserError(
            "RAY_ADDRESS names a cluster, `mtrec serve` is for this machine: "
            "unset RAY_ADDRESS, or `serve deploy serving/serve.yaml` on the cluster"
        )

    check_port(config)
    from mtrec_ray.serving import proxy
    from mtrec_ray.serving.live import LiveEngine

    version = LiveEngine(config.bundle, config.poll_s).engine.version  # a mistake is said before anything starts
    proxy.configure_proxy_env()
    with ray_session():
        need_ray()
        from mtrec_ray.serving.endpoint import start_endpoint, wait_for_signal

        start_endpoint(config)
        typer.echo(
            f"serving bundle {version} at http://{config.host}:{config.port}"
            f" ({'API keys needed' if keys else 'no API key needed on this machine'}; ctrl-c ends it)\n"
            f"metrics for Prometheus, ray_mtrec_*, at {metrics_url()}",
            err=True,
        )
        wait_for_signal()


def promote(
    bundle: Annotated[str | None, typer.Argument(metavar="[BUNDLE]", help="Folder or URI of the bundle.")] = None,
    pointer: PointerFile = None,
    config_file: ConfigFile = None,
    settings: Settings = None,
    show_config: PrintConfig = False,
    as_json: AsJson = False,
) -> None:
    """Make a bundle the live one, if its gates hold; endpoints that follow the pointer take it up by themselves."""
    from mtrec_ray.serving.gates_config import PromoteConfig

    config = resolved(PromoteConfig, config_file, settings, show_config, {"bundle": bundle, "pointer": pointer})

    def job(_: ProgressCallback) -> JobResult:
        from mtrec_ray.serving.promote import promote

        result = promote(config)
        return result.document(), result.tables()

    run_job(job, as_json, ray=False)


def rollback(
    pointer: Annotated[str, typer.Option("--pointer", metavar="FILE", help="Pointer that endpoints follow.")],
    as_json: AsJson = False,
) -> None:
    """Make the bundle live that was so before the last promotion."""

    def job(_: ProgressCallback) -> JobResult:
        from mtrec_ray.serving.gates_config import RollbackConfig
        from mtrec_ray.serving.promote import rollback

        result = rollback(RollbackConfig(pointer=pointer))
        return result.document(), result.tables()

    run_job(job, as_json, ray=False)

"""`mtrec audit`."""

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

HELP = with_settings(("mtrec_ray.jobs.audit_config:AuditConfig", ""))


def audit(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="Folder or URI of a run of eliminators.")] = None,
    compare: Annotated[
        list[str] | None, typer.Option("--compare", metavar="RUN", help="A further run, audited on the same users.")
    ] = None,
    out: Annotated[str | None, typer.Option("--out", metavar="DIR", help="Folder or URI for CSV and JSON.")] = None,
    config_file: ConfigFile = None,
    settings: Settings = None,
    show_config: PrintConfig = False,
    as_json: AsJson = False,
) -> None:
    """What eliminators hide, what they keep readable, and what they cost: attacked on users they never saw."""
    from mtrec_ray.jobs.audit_config import AuditConfig

    flags = {"run": run, "compare": compare or None, "out": out}
    config = resolved(AuditConfig, config_file, settings, show_config, flags)

    def job(progress: ProgressCallback) -> JobResult:
        from mtrec_ray.jobs.audit import audit as run_audit
        from mtrec_ray.jobs.audit_report import show_audit

        return show_audit(run_audit(config, progress), config.out, config.num_bootstrap, config.seed)

    run_job(job, as_json)

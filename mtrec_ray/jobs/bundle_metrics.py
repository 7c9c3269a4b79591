"""Metrics of a bundle, from the audit and the evaluation of the bundled weights."""

from typing import Any

from pydantic import TypeAdapter, ValidationError

from mtrec_ray.bundle.manifest import EvaluationProtocol, Leakage, Metric, PrAuc
from mtrec_ray.combinations import NONE, combination_name
from mtrec_ray.errors import UserError, check_version
from mtrec_ray.evaluation.tables import AVERAGE
from mtrec_ray.files import absolute, join, read_json
from mtrec_ray.jobs.audit_report import AUDIT_FILE, AUDIT_VERSION
from mtrec_ray.jobs.report import EVALUATION_FILE, EVALUATION_VERSION
from mtrec_ray.training.eliminators_run import EliminatorsRecord, eliminators_hash
from mtrec_ray.training.propensity_run import PropensityRecord, snapshots_hash

AUDITED = TypeAdapter(dict[str, tuple[dict[str, Metric], dict[str, Leakage]]])


def read_audit(record: EliminatorsRecord, audit: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """(metrics, audit) of the manifest, empty without an audit; UserError if it does not fit."""
    if audit is None:
        return {}, {}
    document = _read("audit", audit, AUDIT_FILE, AUDIT_VERSION, "`mtrec audit RUN --out DIR`")
    if document["weights_hash"] != eliminators_hash(record):
        raise UserError(f"audit {audit!r} is of other weights than run {record.uri!r}: audit this run")
    names = [NONE, *map(combination_name, record.combinations)]
    found = {name: document["combinations"][name] for name in names}
    metrics = {name: of["accuracy"] for name, of in found.items()}
    leakage = {name: of["leakage"]["vectors"] for name, of in found.items()}
    try:
        AUDITED.validate_python({name: (metrics[name], leakage[name]) for name in names})
    except ValidationError as error:
        name, _, *where = error.errors()[0]["loc"]
        path = "/".join(map(str, (name, *where)))
        raise UserError(f"audit {audit!r}: {path} could not be measured: audit more users") from error
    return metrics, leakage


def read_evaluation(
    run: PropensityRecord, evaluation: str | None
) -> tuple[dict[str, PrAuc], EvaluationProtocol | None]:
    """PR-AUC of the run's variant by territory, and protocol; UserError if it does not fit."""
    if evaluation is None:
        return {}, None
    fix = "`mtrec evaluate propensity RUN --out DIR`"
    document = _read("evaluation", evaluation, EVALUATION_FILE, EVALUATION_VERSION, fix)
    own, runs = snapshots_hash(run), document["runs"]
    variants = [of["variant"] for of in runs.values() if of["weights_hash"] == own]
    if not variants:
        raise UserError(
            f"evaluation {evaluation!r} is of {', '.join(runs)}, of other weights than run {run.uri!r}: evaluate this "
            f"run with {fix}"
        )
    protocol = EvaluationProtocol.model_validate(document["protocol"])
    territories = document["territory_metrics"][protocol.cohort][variants[0]][AVERAGE]
    found = {name: of["pr_auc"] for name, of in territories.items() if of["pr_auc"]["value"] is not None}
    return {n: PrAuc(value=f["value"], low=f.get("low"), high=f.get("high")) for n, f in found.items()}, protocol


def _read(what: str, folder: str, file: str, version: int, command: str) -> dict[str, Any]:
    try:
        document = read_json(join(absolute(folder), file))
    except FileNotFoundError as error:
        raise UserError(f"no {what} at {folder!r}: {file} is missing; {command} makes one") from error
    check_version(f"{what} {folder!r}", document.get("version", 0), version, f"make it again with {command}")
    return document

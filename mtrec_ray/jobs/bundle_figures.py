"""The figures of a bundle: what an audit and an evaluation say of the very weights that are bundled."""

from typing import Any

import numpy as np

from mtrec_ray.bundle.manifest import EvaluationProtocol
from mtrec_ray.combinations import NONE, combination_name
from mtrec_ray.errors import UserError
from mtrec_ray.files import absolute, join, read_json
from mtrec_ray.jobs.audit_report import ACCURACY
from mtrec_ray.training.eliminators_run import EliminatorsRecord, eliminators_hash
from mtrec_ray.training.propensity_run import PropensityRecord, snapshots_hash


def audited(record: EliminatorsRecord, audit: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """(metrics, audit) of the manifest from the flat keys of `audit.json`.

    Raises:
        UserError: no audit, one of other weights, or one with a figure that is no number.
    """
    if audit is None:
        return {}, {}
    try:
        flat = read_json(join(absolute(audit), "audit.json"))
    except FileNotFoundError as error:
        raise UserError(
            f"no audit at {audit!r}: audit.json is missing; `mtrec audit RUN --out DIR` makes one"
        ) from error
    if flat.get("weights_hash") != eliminators_hash(record):
        raise UserError(f"audit {audit!r} is of other weights than run {record.uri!r}: audit this run")
    names = [NONE, *map(combination_name, record.combinations)]
    keys = [f"{key}{end}" for key in ACCURACY for end in ("", "_low", "_high")]
    metrics = {name: {key: flat[_placed(key, name)] for key in keys} for name in names}
    found = {
        name: {
            attribute: {
                key.removeprefix(f"audit/{name}/{attribute}/"): value
                for key, value in flat.items()
                if key.startswith(f"audit/{name}/{attribute}/")
            }
            for attribute in record.attributes
        }
        for name in names
    }
    for name, figures in [*metrics.items(), *((f"{n}/{a}", of) for n in names for a, of in found[n].items())]:
        for key, value in figures.items():
            if isinstance(value, float) and not np.isfinite(value):
                raise UserError(f"audit {audit!r}: {key} of {name} is no number: audit more users")
    return metrics, found


def _placed(key: str, name: str) -> str:
    """`ndcg@10_low` of a combination is the flat key `ndcg@10/<combination>_low`."""
    for end in ("_low", "_high"):
        if key.endswith(end):
            return f"{key.removesuffix(end)}/{name}{end}"
    return f"{key}/{name}"


def evaluated(run: PropensityRecord, evaluation: str | None) -> tuple[dict[str, float], EvaluationProtocol | None]:
    """`pr_auc/<territory>` with `_low` and `_high` of the run's variant, where they are numbers, and their protocol.

    Raises:
        UserError: no evaluation, one that does not say what it is of, or one of other weights.
    """
    if evaluation is None:
        return {}, None
    fix = "`mtrec evaluate propensity RUN --out DIR`"
    try:
        flat = read_json(join(absolute(evaluation), "metrics.json"))
    except FileNotFoundError as error:
        raise UserError(f"no evaluation at {evaluation!r}: metrics.json is missing; {fix} makes one") from error
    if not {"runs", "protocol"} <= flat.keys():
        raise UserError(f"evaluation {evaluation!r} does not say which weights it is of: evaluate again with {fix}")
    own, runs = snapshots_hash(run), flat["runs"]
    variants = [of["variant"] for of in runs.values() if of["weights_hash"] == own]
    if not variants:
        raise UserError(
            f"evaluation {evaluation!r} is of {', '.join(runs)}, of other weights than run {run.uri!r}: evaluate this "
            f"run with {fix}"
        )
    first = next(iter(runs.values()))["variant"]
    prefix = "" if variants[0] == first else f"{variants[0]}/"
    found = {key.removeprefix(prefix): value for key, value in flat.items() if key.startswith(f"{prefix}pr_auc/")}
    figures = {key: value for key, value in found.items() if isinstance(value, float)}
    return figures, EvaluationProtocol.model_validate(flat["protocol"])

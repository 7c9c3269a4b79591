"""Is this the same run? One answer for trainings and searches started again by name."""

from dataclasses import dataclass, field
from typing import Any

from mtrec_ray.errors import UserError

MAY_CHANGE = {  # settings that may change on resume: they affect speed or paths only
    *("runner", "tracking", "jobs_at_once", "trials_at_once", "cpus_per_worker"),
    *("lake", "backbone", "runs", "searches"),
}


@dataclass(frozen=True)
class Identity:
    """What decides a run's figures."""

    settings: dict[str, Any]  # as a nested document; `check_same` ignores those that `MAY_CHANGE`
    inputs: dict[str, str] = field(default_factory=dict)  # what it is built from -> content hash


def check_same(what: str, before: Identity, now: Identity) -> None:
    """UserError where a stored run differs from a new one of its name, as in `run 'mtl'`."""
    for name in before.inputs.keys() | now.inputs.keys():
        old, new = before.inputs.get(name, "none"), now.inputs.get(name, "none")
        if old != new:
            state = f"another state of its {name} (hash {old[:12]}, now {new[:12]})"
            raise UserError(f"{what} was started on {state}: choose another name")
    old, new = (
        flatten({key: value for key, value in one.settings.items() if key not in MAY_CHANGE}) for one in (before, now)
    )
    changed = [
        f"{key} = {old.get(key)!r} (now {new.get(key)!r})" for key in sorted(old | new) if old.get(key) != new.get(key)
    ]
    if changed:
        raise UserError(f"{what} was started with other settings: {'; '.join(changed)}: choose another name")


def flatten(document: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested document as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in document.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat

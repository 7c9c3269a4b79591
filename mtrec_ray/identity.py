"""Is this the same run? One answer for trainings and searches started again by name."""

from dataclasses import dataclass, field
from typing import Any

from mtrec_ray.errors import UserError


@dataclass(frozen=True)
class Identity:
    """What decides a run's figures."""

    settings: dict[str, Any]
    """Settings as a nested document, those of speed and places left out."""
    inputs: dict[str, str] = field(default_factory=dict)
    """What it is built from -> content hash."""


def check_same(what: str, before: Identity, now: Identity) -> None:
    """UserError where a stored run differs from a new one of its name, as in `run 'mtl'`."""
    for name in before.inputs.keys() | now.inputs.keys():
        old, new = before.inputs.get(name, "none"), now.inputs.get(name, "none")
        if old != new:
            raise UserError(
                f"{what} was started on another state of its {name} (hash {old[:12]}, now {new[:12]}): "
                "choose another name"
            )
    old, new = flatten(before.settings), flatten(now.settings)
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

"""`mtrec promote` and `mtrec rollback`."""

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.table import Table

from mtrec_ray.bundle.manifest import Bundle, BundleManifest
from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import UserError
from mtrec_ray.files import exists
from mtrec_ray.serving.config import PromoteConfig, RollbackConfig
from mtrec_ray.serving.engine import Engine
from mtrec_ray.serving.gates import Gate, check_gates
from mtrec_ray.serving.pointer import Pointer, move_back, move_pointer, read_pointer

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class PromoteResult:
    """The moved pointer, and the gates that the bundle passed; none after a rollback."""

    uri: str
    pointer: Pointer
    gates: tuple[Gate, ...] = ()

    @property
    def metrics(self) -> "pd.DataFrame":
        """One row per gate."""
        import pandas as pd

        return pd.DataFrame([asdict(gate) for gate in self.gates], columns=[field.name for field in fields(Gate)])

    def document(self) -> dict[str, Any]:
        live = {"bundle": self.pointer.bundle, "bundle_version": self.pointer.version}
        return {"version": 1, "pointer": self.uri, **live, "gates": [asdict(gate) for gate in self.gates]}

    def tables(self) -> list[RenderableType]:
        if not self.gates:
            return [f"bundle {self.pointer.version} ({self.pointer.bundle}) is live again: pointer {self.uri}"]
        table = Table("gate", "measured", title=f"Bundle {self.pointer.version} is live: pointer {self.uri}")
        for gate in self.gates:
            table.add_row(gate.label, gate.measured)
        return [table]


def promote(config: PromoteConfig, progress: ProgressCallback | None = None) -> PromoteResult:
    """Make a bundle the live one; UserError if it is damaged or fails a gate."""
    bundle = Bundle.open(config.bundle)
    Engine(bundle)  # loads and checks every file
    against_live = config.gates.against_live
    live = _live_manifest(config.pointer) if against_live and exists(config.pointer) else None
    gates = check_gates(bundle.manifest, live, config.gates)
    failed = [f"{gate.label}: {gate.measured}" for gate in gates if not gate.passed]
    if failed:
        summary = f"bundle {bundle.manifest.version} is not promoted, {len(failed)} of {len(gates)} gates failed:"
        raise UserError("\n".join([summary, *failed]))
    pointer = move_pointer(config.pointer, bundle, overwrite_damaged=not against_live)
    return PromoteResult(config.pointer, pointer, tuple(gates))


def rollback(config: RollbackConfig, progress: ProgressCallback | None = None) -> PromoteResult:
    """Make the previous bundle live again; UserError if there is none or it cannot be loaded."""
    return PromoteResult(config.pointer, move_back(config.pointer))


def _live_manifest(uri: str) -> BundleManifest:
    fix = "`--set gates.against_live=false` promotes without a comparison"
    pointer = read_pointer(uri)
    try:
        manifest = Bundle.open(pointer.bundle).manifest
    except UserError as error:
        raise UserError(f"the live bundle: {error}; {fix}") from error
    if manifest.version != pointer.version:
        rebuilt = f"the live bundle {pointer.bundle!r} was rebuilt after its promotion (then {pointer.version})"
        raise UserError(f"{rebuilt}, so its metrics are lost; {fix}")
    return manifest

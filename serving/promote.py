"""`mtrec promote` and `mtrec rollback`."""

from mtrec_ray.bundle.manifest import Bundle, BundleManifest
from mtrec_ray.errors import UserError
from mtrec_ray.files import exists
from mtrec_ray.serving.engine import Engine
from mtrec_ray.serving.gates import Gate, check_gates
from mtrec_ray.serving.gates_config import PromoteConfig
from mtrec_ray.serving.pointer import Pointer, move_pointer, read_pointer


def promote(config: PromoteConfig) -> tuple[Pointer, list[Gate]]:
    """Make a bundle the live one, if it can be loaded and its gates hold.

    Raises:
        UserError: a damaged bundle, or gates that fail; the pointer stays as it was.
    """
    bundle = Bundle.open(config.bundle)
    Engine(bundle)  # checks that every file is there, whole, and fits the others
    against_live = config.gates.against_live
    live = _live(config.pointer) if against_live and exists(config.pointer) else None
    found = check_gates(bundle.manifest, live, config.gates)
    failing = [f"{gate.name}: {gate.found}" for gate in found if not gate.holds]
    if failing:
        raise UserError(
            f"bundle {bundle.manifest.version} stays out, {len(failing)} of {len(found)} gates fail:\n"
            + "\n".join(failing)
        )
    return move_pointer(config.pointer, bundle, anew=not against_live), found


def _live(pointer: str) -> BundleManifest:
    fix = "`--set gates.against_live=false` promotes without it"
    named = read_pointer(pointer)
    try:
        manifest = Bundle.open(named.bundle).manifest
    except UserError as error:
        raise UserError(f"the live bundle: {error}; {fix}") from error
    if manifest.version != named.version:
        what = f"bundle {named.bundle!r} was made again since it was promoted (was {named.version})"
        raise UserError(f"{what}, so what is live has no figures to compare with; {fix}")
    return manifest

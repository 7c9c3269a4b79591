"""The rooms and their direction, read from the source with `ast`: a rule is a test, not a sentence."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import mtrec_ray
from tests.processes import python

PACKAGE = Path(mtrec_ray.__file__).parent
ROOMS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
WITH_RAY = {"lake", "streams", "training", "tuning", "serving"}

OF_TRAINERS = {"models", "steps", "lake", "streams", "evaluation", "tracking"}
MAY_IMPORT = {
    "models": set(),
    "steps": {"models"},
    "evaluation": set(),
    "sources": set(),
    "lake": {"sources"},
    "streams": {"lake"},
    "tracking": set(),
    "trainers": OF_TRAINERS,
    "training": OF_TRAINERS | {"trainers"},
    "reports": set(),
    "bundle": {"models"},
    "jobs": OF_TRAINERS | {"sources", "trainers", "training", "bundle", "reports"},
    "tuning": {"lake", "streams", "models", "steps", "trainers", "training", "evaluation", "jobs"},
    "serving": {"bundle", "models", "lake", "streams"},
    "commands": {"sources", "lake", "streams", "trainers", "training", "jobs", "tuning", "serving", "reports"},
}
"""Room -> other rooms that it may import."""

OF_EVERY_SOURCE = {"sources.calendar", "sources.names", "sources.source", "sources.values"}
"""What all sources have in common; the lake knows no single one."""


def modules_imported(path: Path) -> set[str]:
    """Dotted names that a file imports anywhere; of `from a import b` both `a` and `a.b`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def files_of(room: str) -> list[Path]:
    return sorted((PACKAGE / room).glob("*.py"))


def own_imports(path: Path) -> Iterator[tuple[str, str]]:
    """(room, dotted module below the package) of each import of the package's own modules."""
    for name in modules_imported(path):
        parts = name.split(".")
        if parts[0] == "mtrec_ray" and len(parts) > 1 and parts[1] in ROOMS:
            yield parts[1], ".".join(parts[1:])


def test_rooms_have_one_level_of_folders_and_each_its_rule():
    assert set(ROOMS) == set(MAY_IMPORT)
    assert not [path for path in PACKAGE.glob("*/*") if path.is_dir() and path.name not in ("__pycache__", "page")]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_rooms_before_it_and_ray_only_where_data_moves_between_machines(room):
    users = {p.name for p in files_of(room) if any(n.split(".")[0] == "ray" for n in modules_imported(p))}
    assert not users or room in WITH_RAY, f"{room}/ imports ray in {sorted(users)}"
    allowed = MAY_IMPORT[room] | {room}
    breaches = {(p.name, module) for p in files_of(room) for other, module in own_imports(p) if other not in allowed}
    assert not breaches


def test_the_lake_knows_no_single_source():
    modules = {module for path in files_of("lake") for room, module in own_imports(path) if room == "sources"}
    assert {".".join(module.split(".")[:2]) for module in modules} - {"sources"} <= OF_EVERY_SOURCE


def test_of_tuning_what_computes_names_no_ray():
    computing = ("clustering", "partitions", "affinity", "space", "propensity_trial")
    for name in computing:
        assert not any(n.split(".")[0] == "ray" for n in modules_imported(PACKAGE / "tuning" / f"{name}.py")), name


def test_modules_beside_the_rooms_import_none_of_them():
    beside = [path for path in PACKAGE.glob("*.py") if path.name not in ("__main__.py", "__init__.py", "api.py")]
    assert not {(path.name, module) for path in beside for _, module in own_imports(path)}


def test_loading_the_command_line_loads_neither_torch_nor_ray():
    program = "import sys, mtrec_ray.commands.app; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    heavy = {"torch", "ray", "transformers", "pandas", "pyarrow", "sklearn", "scipy", "numpy"}
    assert not heavy & set(python(program).split())


def test_the_help_of_a_build_loads_no_ray():
    """Though it shows the settings of every source."""
    program = (
        "import sys, mtrec_ray.commands.app as app\nsys.argv = ['mtrec', 'lake', 'build', '--help']\n"
        "try: app.app()\nexcept SystemExit: print('ray' in sys.modules)"
    )
    assert python(program).splitlines()[-1] == "False"


def test_importing_any_module_starts_nothing():
    """No Ray, no folder, no logging set-up: everything waits for a call."""
    files = [*PACKAGE.glob("*.py"), *PACKAGE.glob("*/*.py")]
    modules = [path.relative_to(PACKAGE).with_suffix("") for path in files if path.stem not in ("__init__", "__main__")]
    names = [".".join(("mtrec_ray", *module.parts)) for module in sorted(modules)]
    program = (
        f"import importlib, logging\nfor name in {names!r}:\n    importlib.import_module(name)\n"
        "import ray\nprint(ray.is_initialized(), logging.getLogger('mtrec_ray').handlers)"
    )
    assert python(program).strip() == "False []"

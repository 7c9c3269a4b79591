"""The wheel and a Ray job's working directory contain tuning and serving; foreign folders do not shadow them."""

import shutil
import zipfile
from pathlib import Path

import pytest

from tests.processes import python
from tests.test_architecture import PACKAGE, modules_imported

ROOT = Path(__file__).parents[1]
EXPECTED = {
    *(f"mtrec_ray/tuning/{path.name}" for path in (ROOT / "tuning").glob("*.py")),
    *(f"mtrec_ray/serving/{path.name}" for path in (ROOT / "serving").glob("*.py")),
    *(f"mtrec_ray/serving/page/{name}" for name in ("index.html", "page.css", "page.js")),
    "mtrec_ray/serving/serve.yaml",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """Built from a copy, because setuptools writes beside its sources; without network."""
    pytest.importorskip("setuptools", minversion="77", reason="setuptools is too old: pip install -e '.[test]'")
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("mtrec_ray", "tuning", "serving"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    python("from setuptools import build_meta; build_meta.build_wheel('.')", cwd=folder)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_wheel_contains_tuning_serving_and_the_page(wheel):
    assert set(wheel.namelist()) >= EXPECTED
    assert not [name for name in wheel.namelist() if name.startswith(("tuning/", "serving/", "tests/"))]


def test_working_directory_of_a_job_contains_tuning_serving_and_the_page(tmp_path):
    from ray._private.runtime_env.packaging import create_package

    create_package(str(ROOT), tmp_path / "job.zip", include_gitignore=True, excludes=[".git"])
    assert set(zipfile.ZipFile(tmp_path / "job.zip").namelist()) >= EXPECTED


def test_foreign_folders_in_the_working_directory_are_not_imported(wheel, tmp_path):
    for name in ("tuning", "serving"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('not ours')")
    wheel.extractall(tmp_path / "site")
    program = (
        "import sys, mtrec_ray.tuning.config as tuning, mtrec_ray.serving.config as serving\n"
        "print(tuning.__file__, serving.__file__, *sorted({'tuning', 'serving'} & sys.modules.keys()))"
    )
    printed = python(program, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "site")})
    files = [str(tmp_path / "site" / "mtrec_ray" / room / "config.py") for room in ("tuning", "serving")]
    assert printed.split() == files


def test_tuning_and_serving_are_imported_below_mtrec_ray_only():
    for path in PACKAGE.glob("*/*.py"):
        assert not {"tuning", "serving"} & {name.split(".")[0] for name in modules_imported(path)}, path

"""Runs that an audit refuses to compare; they are written by hand, with untrained weights."""

from pathlib import Path

import pytest

from mtrec_ray.config import validate_config
from mtrec_ray.errors import UserError
from mtrec_ray.jobs import audit as job
from mtrec_ray.jobs.audit_config import AuditConfig
from mtrec_ray.training.backbone_run import BackboneRecord
from tests.jobs.untrained import write_backbone, write_eliminators
from tests.tuning.conftest import build_here


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> BackboneRecord:
    folder = tmp_path_factory.mktemp("audited")
    return write_backbone(build_here(folder / "lake", 2, users=120, territories=4, titles=30), folder)


def compare(backbone: BackboneRecord, folder: Path, *names: str) -> None:
    uris = [write_eliminators(backbone, folder, name).uri for name in dict.fromkeys(names)]
    job.audit(validate_config(AuditConfig, {"run": uris[0], "compare": [str(folder / name) for name in names[1:]]}))


@pytest.mark.parametrize("name", ["first", "backbone", "none", "gender", "gender+age"])
def test_runs_that_tables_could_not_tell_apart_are_refused(backbone, tmp_path, monkeypatch, name):
    monkeypatch.setattr(job, "load_backbone", None)  # before any work
    with pytest.raises(
        UserError, match=f"a run named '{name.replace('+', '.')}' cannot be told apart in the tables: r"
    ):
        compare(backbone, tmp_path, "first", name)


@pytest.mark.parametrize("names", [("first", "occupation"), ("gender", "other")], ids=["no combination", "the first"])
def test_names_that_tables_can_tell_apart_are_not(backbone, tmp_path, monkeypatch, names):
    monkeypatch.setattr(job, "load_backbone", None)
    with pytest.raises(TypeError):
        compare(backbone, tmp_path, *names)

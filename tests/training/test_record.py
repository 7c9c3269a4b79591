"""Records: the identity of a run, its table."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.table import Table

from mtrec_ray.config import validate_config
from mtrec_ray.errors import UserError
from mtrec_ray.models.two_tower import TwoTowerConfig
from mtrec_ray.streams.groups import Groups
from mtrec_ray.trainers.backbone_config import BackboneConfig
from mtrec_ray.trainers.eliminators_config import EliminatorsConfig
from mtrec_ray.trainers.propensity_config import PropensityConfig
from mtrec_ray.training.backbone_run import BackboneRecord
from mtrec_ray.training.eliminators_run import EliminatorsRecord
from mtrec_ray.training.propensity_run import PropensityRecord


def propensity(runs: Path, of_territory: list[int]) -> PropensityRecord:
    return PropensityRecord(
        status="training",
        config=validate_config(PropensityConfig, {"lake": "lake", "name": "run", "runs": str(runs)}),
        lake_hash="a",
        groups=Groups(names=["x", "y"], of_territory=of_territory),
        model=TwoTowerConfig(4, 4),
        learning_rates=(1e-3, 1e-3, 1e-3),
        num_steps=1,
    )


def eliminators(runs: Path, backbone_hash: str = "b", jobs_at_once: int = 1, **fields: Any) -> EliminatorsRecord:
    document = {"backbone": "bb", "name": "run", "runs": str(runs), "jobs_at_once": jobs_at_once}
    given: dict[str, Any] = {"status": "training", "lake_hash": "a", "backbone_hash": backbone_hash}
    given |= {"attributes": {"gender": ["f", "m"]}, "packs": {"pack000": [("gender",)]}} | fields
    return EliminatorsRecord(config=validate_config(EliminatorsConfig, document), **given)


def test_other_territory_groups_are_another_run(tmp_path):
    propensity(tmp_path, [0, 1]).save()
    with pytest.raises(UserError, match="run 'run' was started on another state of its territory groups"):
        propensity(tmp_path, [1, 0]).resume_or_new()
    assert propensity(tmp_path, [0, 1]).resume_or_new() == propensity(tmp_path, [0, 1])


def test_a_run_of_a_removed_block_is_refused_in_one_line(tmp_path):
    propensity(tmp_path, [0, 1]).save()
    file = tmp_path / "run" / "run.json"
    document = json.loads(file.read_text())
    document["config"]["model"]["group_block"] = document["model"]["group_block"] = "shift"
    file.write_text(json.dumps(document))
    known = r"has the group block 'shift', which is no more \(there are dense, hierarchical\): train it again"
    with pytest.raises(UserError, match=f"^run '{tmp_path}/run' {known}$"):
        PropensityRecord.load(str(tmp_path / "run"))


def test_another_backbone_is_another_run(tmp_path):
    eliminators(tmp_path, "b").save()
    with pytest.raises(UserError, match=r"was started on another state of its backbone \(hash b, now c\)"):
        eliminators(tmp_path, "c").resume_or_new()


def test_a_backbone_stored_without_a_loss_was_trained_with_bpr(tmp_path):
    """A run of the default loss is another one; one with `optim.loss=bpr` resumes it."""

    def backbone(**optim: Any) -> BackboneRecord:
        document = {"lake": "lake", "name": "run", "runs": str(tmp_path), "optim": optim}
        config = validate_config(BackboneConfig, document)
        return BackboneRecord(status="training", config=config, lake_hash="a", attributes={}, num_titles=2)

    backbone().save()
    assert BackboneRecord.load(str(tmp_path / "run")).config.optim.loss == "softmax"
    file = tmp_path / "run" / "run.json"
    document = json.loads(file.read_text())
    del document["config"]["optim"]["loss"]
    file.write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"with other settings: optim\.loss = 'bpr' \(now 'softmax'\)"):
        backbone().resume_or_new()
    assert backbone(loss="bpr").resume_or_new() == backbone(loss="bpr")


@pytest.mark.parametrize("status", ["training", "done"])
def test_jobs_at_once_may_change_until_the_run_is_done(tmp_path, status):
    eliminators(tmp_path, status=status).save()
    found = eliminators(tmp_path, jobs_at_once=3).resume_or_new()
    assert (found.status, found.config.jobs_at_once) == (status, 1 if status == "done" else 3)


def test_table_of_eliminators_has_a_row_per_combination():
    figures = {"ndcg": 0.41, "ndcg_floor": 0.4, "strength": 0.5, "strength_confirmed": 1.0, "step": 90.0}
    packs = {"pack000": [("gender",)], "pack001": [("gender", "age")]}
    record = eliminators(Path("runs"), packs=packs, figures={"none": {"ndcg": 0.42}, "gender+age": figures})
    (table,) = record.tables()
    assert isinstance(table, Table)
    rows = list(zip(*(column.cells for column in table.columns), strict=True))
    assert rows[0] == ("none", "0.4200", "", "", "", "")
    assert rows[1][0] == "gender"
    assert rows[2] == ("gender+age", "0.4100", "0.4000", "0.5", "1", "90")
    assert table.title == f"Run {record.uri}: eliminator, jobs: 2"

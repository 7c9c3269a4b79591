"""The quickstart: settings of each step, checks before the first training, and a second start.

Nothing is trained: a run has the weights of its first step, as in `test_evaluate`.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mtrec_ray.bundle.manifest import Bundle, EvaluationProtocol
from mtrec_ray.config import validate_config
from mtrec_ray.errors import UserError
from mtrec_ray.files import absolute
from mtrec_ray.jobs.config import AuditConfig
from mtrec_ray.jobs.quickstart import QuickstartResult, _same_settings, quickstart
from mtrec_ray.jobs.quickstart_config import QuickstartConfig, training_configs
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.models.two_tower import TwoTower
from mtrec_ray.reports.report import Report
from mtrec_ray.trainers.backbone_config import BackboneConfig
from mtrec_ray.trainers.eliminators_config import EliminatorsConfig
from mtrec_ray.training.backbone_run import BackboneRecord
from mtrec_ray.training.eliminators_run import EliminatorsRecord
from mtrec_ray.training.propensity_run import PropensityRecord
from mtrec_ray.training.weights import save_weights
from tests.jobs.untrained import write_audit, write_backbone, write_eliminators

LAKE = {"users": 500, "territories": 4, "titles": 30, "user_width": 8, "title_width": 8, "num_evaluation_days": 1}


def config(**settings: Any) -> QuickstartConfig:
    return validate_config(QuickstartConfig, settings)


class TestTrainings:
    def configs(self, **settings: Any):
        return training_configs(config(**settings), "lake", "runs")

    def test_the_baseline_comes_first_and_every_variant_has_every_seed(self):
        found = self.configs(seeds=2, variants=["mtl+upsampling", "baseline"])
        names = ["baseline-s0", "baseline-s1", "mtl+upsampling-s0", "mtl+upsampling-s1"]
        assert [training.name for training in found] == names
        assert [(training.seed, training.sample.seed) for training in found] == [(0, 0), (1, 1)] * 2
        assert {(training.lake, training.runs) for training in found} == {(absolute("lake"), absolute("runs"))}

    def test_variants_override_train_and_baselines_have_no_groups(self):
        train = {"model": {"d": 16, "groups": "each"}, "sample": {"active_fraction": 0.7}}
        base, mtl = self.configs(variants=["mtl+upsampling"], train=train)
        assert (base.kind, base.model.groups, base.sample.active_fraction) == ("baseline", None, 0.0)
        assert (mtl.kind, mtl.model.groups, mtl.sample.active_fraction) == ("mtl", "each", 0.7)
        assert base.model.d == mtl.model.d == 16


class TestLakeSettings:
    def test_settings_may_change_until_the_lake_is_made_from_them(self, tmp_path):
        folder, made = str(tmp_path), ["dataset", "raw", "source", "build"]
        _same_settings(config(dataset="movielens", raw="wrong"), folder, [])
        right = config(dataset="movielens", raw="right", embed={"interactions": {"width": 4}})
        _same_settings(right, folder, [])
        other = right.model_copy(update={"embed": {"interactions": {"width": 8}}})
        with pytest.raises(UserError, match=r"embed\.interactions\.width = 4 \(now 8\): choose another"):
            _same_settings(other, folder, [*made, "embed"])
        _same_settings(other, folder, made)
        _same_settings(other, folder, [*made, "embed"])
        with pytest.raises(UserError, match=r"raw = 'right' \(now None\)"):
            _same_settings(config(dataset="movielens", embed=other.embed), folder, made)

    def test_a_folder_of_version_1_is_refused(self, tmp_path):
        (tmp_path / "quickstart.json").write_text(json.dumps({"source": "synthetic", "raw": None, "lake": {}}))
        with pytest.raises(UserError, match="has format version 1, this mtrec_ray reads 3: choose another --out"):
            _same_settings(config(), str(tmp_path), [])

    def test_missing_raw_files_leave_no_trace(self, tmp_path):
        with pytest.raises(UserError, match="is not a folder"):
            quickstart(config(dataset="movielens", raw=str(tmp_path / "typo"), out=str(tmp_path / "out")))
        assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("quickstart")


def start(folder: Path, **settings: Any):
    document = {
        "out": str(folder),
        "variants": ["mtl+upsampling"],
        "source": LAKE,
        "train": {"model": {"d": 8}, "optim": {"epochs": 1}},
        "evaluate": {"num_bootstrap": 10},
    }
    return quickstart(config(**document | settings))


def untrained(record: PropensityRecord, *_: Any) -> None:
    """In place of `fit`, which takes 20 s."""
    model = TwoTower(record.model)
    model.init_weights(torch.Generator().manual_seed(record.config.seed))
    save_weights(record.weights_uris()["day_0"], model.state_dict(), {})


FIT = "mtrec_ray.training.fit.fit"


def by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace training, audit and report; the audit's AUCs are a tenth of its seed."""

    def train_backbone(settings: BackboneConfig, *_: Any) -> None:
        others = settings.model_dump(mode="json", exclude={"lake", "runs"})
        write_backbone(Lake.open(settings.lake), Path(settings.runs), **others)

    def train_eliminators(settings: EliminatorsConfig, *_: Any) -> None:
        write_eliminators(BackboneRecord.load(settings.backbone), Path(settings.runs))

    def audit(settings: AuditConfig, *_: Any) -> None:
        write_audit(EliminatorsRecord.load(settings.run), Path(str(settings.out)), auc=settings.seed / 10)

    monkeypatch.setattr(FIT, untrained)
    monkeypatch.setattr("mtrec_ray.jobs.quickstart.make_report", lambda settings, *_: Report(settings.out, []))
    for made in (train_backbone, train_eliminators, audit):
        monkeypatch.setattr(f"mtrec_ray.jobs.quickstart.{made.__name__}", made)


@pytest.fixture(scope="module")
def done(ray_cluster, folder) -> QuickstartResult:
    """A whole quickstart, after the tests of settings."""
    with pytest.MonkeyPatch.context() as patch:
        by_hand(patch)
        return start(folder, audit={"seed": 1})


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
class TestStarts:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"evaluate": {"validation": True}}, "validation has no effect"),
            ({"train": {"model": {"groups": "nowhere.yaml"}}}, r"nowhere\.yaml"),
            ({"train": {"runner": {"workers": 8}}}, "needs 9 logical CPUs"),
            ({"backbone": {"runner": {"workers": 8}}}, "needs 9 logical CPUs"),
            ({"backbone": {"model": {"num_heads": 3}}}, r"is not a multiple of model\.num_heads = 3"),
            ({"eliminators": {"combinations": "height"}}, "the lake has no attribute 'height'"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
    )
    def test_settings_that_do_not_fit_the_lake_are_refused_before_training(
        self, folder, monkeypatch, settings, message
    ):
        monkeypatch.setattr(FIT, None)
        with pytest.raises(UserError, match=message):
            start(folder, **settings)
        assert not (folder / "runs").exists()

    def test_a_second_start_trains_nothing_and_returns_the_same(self, folder, done, monkeypatch):
        monkeypatch.setattr(FIT, None)
        second = start(folder, fairness=False)
        evaluation = second.document()["evaluation"]
        assert evaluation == done.parts["evaluation"].document()
        assert "mtl+upsampling" in evaluation["territory_metrics"]["held_out"]
        assert (list(second.parts), second.bundle) == (["evaluation"], None)

    def test_gains_are_said_before_the_backbone_trains(self, folder, done, monkeypatch, capsys):
        monkeypatch.setattr("mtrec_ray.jobs.quickstart.evaluate_propensity", lambda *_: done.gains)
        monkeypatch.setattr("mtrec_ray.jobs.quickstart.train_backbone", None)
        with pytest.raises(TypeError):
            start(folder)
        lines = capsys.readouterr().err.splitlines()
        assert [line[:5] for line in lines if line.startswith("[")] == [f"[{n}/8]" for n in range(1, 5)]
        assert any(line.strip().startswith("mtl+upsampling: PR-AUC ") for line in lines)
        assert "territory_metrics" in json.loads((folder / "evaluation" / "metrics.json").read_text())

    def test_the_bundle_has_the_metrics_of_its_own_evaluation(self, done):
        part = Bundle.open(str(done.bundle)).manifest.propensity
        assert part is not None
        found = done.parts["evaluation"].document()["territory_metrics"]["held_out"]["mtl+upsampling"]["average"][
            "mean"
        ]
        assert part.pr_auc["mean"].value == found["pr_auc"]["value"]
        assert part.protocol == EvaluationProtocol(num_negatives=None, cohort="held_out")

    def test_a_second_start_makes_the_bundle_again_where_its_audit_changed(self, folder, done, monkeypatch):
        by_hand(monkeypatch)
        monkeypatch.setattr("mtrec_ray.jobs.quickstart.evaluate_propensity", lambda *_: done.parts["evaluation"])
        first = Bundle.open(str(done.bundle)).manifest
        same, other = (Bundle.open(str(start(folder, audit={"seed": seed}).bundle)).manifest for seed in (1, 2))
        assert same == first
        assert [made.audit["age"]["gender"].auc.value for made in (first, other)] == [0.1, 0.2]
        assert other.version != first.version

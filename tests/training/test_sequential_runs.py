"""Backbones and packs, killed and resumed: Ray Train with one worker is simulated in this process."""

import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import ray.train
import ray.train.torch
import torch

from mtrec_ray.combinations import combination_name
from mtrec_ray.config import validate_config
from mtrec_ray.errors import UserError
from mtrec_ray.jobs.audit import audit
from mtrec_ray.jobs.bundle import make_bundle
from mtrec_ray.jobs.config import AuditConfig, BundleConfig
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.models.eliminators import StackedEliminators
from mtrec_ray.streams.crops import SequencePlan, make_sequence_plan, sequence_batches
from mtrec_ray.streams.ordered import LocalReader
from mtrec_ray.streams.sequences import SequenceConfig, Sequences, UserSplit, in_split
from mtrec_ray.trainers import eliminators as eliminators_trainer
from mtrec_ray.trainers.backbone_config import BackboneConfig
from mtrec_ray.trainers.eliminators import EliminatorTrainer
from mtrec_ray.trainers.eliminators_config import EliminatorsConfig
from mtrec_ray.trainers.workers import Workers
from mtrec_ray.training import backbone, backbone_run, eliminators, eliminators_run
from mtrec_ray.training.backbone_run import BackboneRecord, load_backbone
from mtrec_ray.training.eliminators_run import EliminatorsRecord, load_methods
from mtrec_ray.training.loop import train_loop_per_worker
from mtrec_ray.training.record import Record
from tests.tuning.conftest import build_here

BUCKETS = 3


class Killed(Exception):
    """The worker's process ended."""


class OneWorker:
    """Ray Train with one worker in this process, which is killed at some of its reports and started again.

    Args:
        folder: for checkpoints.
        killed_at: numbers of the reports after which the worker ends.
    """

    def __init__(self, folder: Path, killed_at: set[int]) -> None:
        self.folder, self.killed_at = folder, killed_at
        self.reports = self.starts = 0
        self.latest: Path | None = None

    def report(self, metrics: dict[str, Any], checkpoint: ray.train.Checkpoint | None = None) -> None:
        self.reports += 1
        assert checkpoint is not None
        self.latest = self.folder / f"checkpoint{self.reports}"
        shutil.copytree(checkpoint.path, self.latest)
        if self.reports in self.killed_at:
            raise Killed

    def get_checkpoint(self) -> ray.train.Checkpoint | None:
        return self.latest and ray.train.Checkpoint.from_directory(self.latest)

    def fit(self, record: Record, progress: Any, pack: str = "") -> None:
        self.latest = None
        actor = SimpleNamespace(put=SimpleNamespace(remote=lambda step, note: None))
        settings = {"run": type(record), "record": record.model_dump_json(), "pack": pack, "actor": actor}
        while True:
            self.starts += 1
            try:
                train_loop_per_worker(settings)
                return
            except Killed:
                continue


@pytest.fixture(scope="module")
def lake(tmp_path_factory) -> Lake:
    folder = tmp_path_factory.mktemp("loops") / "lake"
    return build_here(folder, BUCKETS, users=160, territories=4, titles=40, events_per_user=30.0)


@pytest.fixture
def one_worker(monkeypatch) -> Callable[..., OneWorker]:
    def play(folder: Path, *killed_at: int) -> OneWorker:
        worker = OneWorker(folder, set(killed_at))
        context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
        monkeypatch.setattr(ray.train, "get_context", lambda: context)
        monkeypatch.setattr(ray.train, "get_checkpoint", worker.get_checkpoint)
        monkeypatch.setattr(ray.train, "report", worker.report)
        monkeypatch.setattr(ray.train.torch, "get_device", lambda: torch.device("cpu"))
        for driver in (backbone, eliminators):
            monkeypatch.setattr(driver, "fit", worker.fit)
            monkeypatch.setattr(driver, "check_resources", lambda *_: None)
        for run in (backbone_run, eliminators_run):
            monkeypatch.setattr(run, "make_sequence_plan", partial(make_sequence_plan, reader=LocalReader()))
            monkeypatch.setattr(run, "sequence_batches", partial(sequence_batches, reader=LocalReader()))
        monkeypatch.setattr(eliminators, "jobs_that_fit", lambda runner: 1)
        return worker

    return play


def backbone_config(lake: Lake, runs: Path, **settings: Any) -> BackboneConfig:
    document = {
        "lake": lake.uri,
        "runs": str(runs),
        "name": "backbone",
        "model": {"width": 16},
        "optim": {"epochs": 4, "evaluate_every": 2, "lanes": 2, "batch_crops": 16},
        "runner": {"checkpoint_every_s": 0},
    }
    return validate_config(BackboneConfig, document | settings)


def eliminators_config(source: BackboneRecord, runs: Path, **settings: Any) -> EliminatorsConfig:
    document = {
        "backbone": source.uri,
        "runs": str(runs),
        "name": "eliminators",
        "combinations": "gender,gender+age",
        "optim": {"epochs": 4, "lanes": 2, "batch_crops": 16, "min_ndcg_ratio": 0.5},
        "transport": {"passes": 4, "later_passes": 2},
        "runner": {"checkpoint_every_s": 0},
    }
    return validate_config(EliminatorsConfig, document | settings)


@pytest.fixture
def source(lake, one_worker, tmp_path) -> BackboneRecord:
    one_worker(tmp_path / "source")
    return backbone.train_backbone(backbone_config(lake, tmp_path / "runs"))


def progress_at(checkpoint: Path) -> int:
    """Step of a checkpoint."""
    return json.loads((checkpoint / "progress.json").read_text())["next_step"]


def content(record: BackboneRecord | EliminatorsRecord) -> dict[str, bytes]:
    return {str(path.relative_to(record.uri)): path.read_bytes() for path in Path(record.uri).rglob("*.safetensors")}


def test_killed_backbone_resumes_to_the_same_weights(lake, source, one_worker, tmp_path):
    worker = one_worker(tmp_path / "killed", 1, 2, 3)
    killed = backbone.train_backbone(backbone_config(lake, tmp_path / "again"))
    assert worker.starts == 4
    assert killed.figures == source.figures
    assert content(killed) == content(source)


def test_killed_pack_resumes_to_the_same_weights(source, one_worker, tmp_path):
    records = []
    for runs, killed_at in ((tmp_path / "straight", []), (tmp_path / "killed", [1, 3])):
        worker = one_worker(runs, *killed_at)
        records.append(eliminators.train_eliminators(eliminators_config(source, runs)))
        assert worker.starts == 1 + len(killed_at)
    assert records[0].figures == records[1].figures
    assert records[0].figures["gender"]["step"] > 0
    assert content(records[0]) == content(records[1])


def test_resumed_pack_does_not_fit_its_first_transport_again(source, one_worker, monkeypatch, tmp_path):
    started = []

    def start(trainer: EliminatorTrainer, start: Any = EliminatorTrainer.start) -> bool:
        started.append(trainer.next_step)
        return start(trainer)

    def step(trainer: EliminatorTrainer, *args: Any, step: Any = EliminatorTrainer.train_step) -> Any:
        if worker.starts == 1:
            raise Killed
        return step(trainer, *args)

    worker = one_worker(tmp_path / "killed")
    monkeypatch.setattr(EliminatorTrainer, "start", start)
    monkeypatch.setattr(EliminatorTrainer, "train_step", step)
    eliminators.train_eliminators(eliminators_config(source, tmp_path / "killed"))
    assert (worker.starts, started) == (2, [0])


def test_kept_weights_survive_a_kill(source, one_worker, monkeypatch, tmp_path):
    """Of a pack of two, gender holds its floor at the first validation alone, gender+age at none."""
    first = []

    def validate(trainer: EliminatorTrainer) -> list[float]:
        if trainer.next_step and not first:
            first.append(trainer.next_step)
        holds = [trainer.next_step in (0, *first), trainer.next_step == 0]
        return [trainer.figures["none"]["ndcg"] * held for held in holds]

    monkeypatch.setattr(EliminatorTrainer, "validate", validate)
    ends, records, killed_at = [], [], []
    for runs in (tmp_path / "straight", tmp_path / "killed"):
        worker = one_worker(runs, *killed_at)
        records.append(eliminators.train_eliminators(eliminators_config(source, runs)))
        assert worker.starts == 1 + len(killed_at)
        assert worker.latest is not None
        ends.append({path.name: path.read_bytes() for path in worker.latest.iterdir() if path.name != "config.yaml"})
        steps = {n: progress_at(runs / f"checkpoint{n}") for n in range(1, worker.reports + 1)}
        killed_at = [n for n, step in steps.items() if first[0] < step < records[0].num_steps]
    assert killed_at
    for record in records:
        assert [record.figures[name]["step"] for name in ("gender", "gender+age")] == [first[0], 0.0]
        assert record.figures["gender"]["ndcg"] == record.figures["none"]["ndcg"]
    assert records[0].figures == records[1].figures
    assert content(records[0]) == content(records[1])
    assert ends[0] == ends[1]  # the live weights, their average and the discriminators too


def test_pack_reads_only_the_train_split(lake, source, one_worker, monkeypatch, tmp_path):
    one_worker(tmp_path / "watched")
    seen: dict[str, list[np.ndarray]] = {"crops": [], "prefixes": [], "validation": []}

    class Watched(LocalReader):
        def bucket(self, read: Any, *arguments: Any) -> Any:
            found = read(*arguments)
            seen["crops"].append(found.keys)
            return found

    def fit_transport(trainer: EliminatorTrainer, fit: Any = EliminatorTrainer.fit_transport) -> None:
        seen["prefixes"].append(trainer.data.prefixes.keys)
        fit(trainer)

    def measure(users: Any, *vectors: Any, stacked_metrics: Any = eliminators_trainer.stacked_metrics) -> Any:
        seen["validation"].append(users.keys)
        return stacked_metrics(users, *vectors)

    monkeypatch.setattr(eliminators_run, "sequence_batches", partial(sequence_batches, reader=Watched()))
    monkeypatch.setattr(EliminatorTrainer, "fit_transport", fit_transport)
    monkeypatch.setattr(eliminators_trainer, "stacked_metrics", measure)
    eliminators.train_eliminators(eliminators_config(source, tmp_path / "watched"))
    everybody = np.concatenate([Sequences.read(lake, b, source.config.sequences).keys for b in range(BUCKETS)])
    train_split = set(everybody[~in_split(everybody, source.config.sequences, "audit")].tolist())
    assert 0 < len(train_split) < len(everybody)
    for where, keys in seen.items():
        assert set(np.concatenate(keys).tolist()) == train_split, where


@pytest.mark.parametrize(("leakage", "strength"), [(0.5, 0.25), (1.0, 1.0)])
def test_transport_strength_is_limited_by_the_floor(
    source, one_worker, monkeypatch, tmp_path, caplog, leakage: float, strength: float
):
    """The first combination's NDCG@10 is the backbone's up to strength 0.25, the second's at every strength."""

    def validate(trainer: EliminatorTrainer) -> list[float]:
        averaged: Any = trainer.averaged
        strength, ndcg = averaged.pack.transport_strength[0].item(), trainer.figures["none"]["ndcg"]
        return [ndcg * (1.0 if strength <= 0.25 else 0.4), ndcg]

    def full_strength(pack: Any, *args: Any, fit: Any = StackedEliminators.fit_transport, **settings: Any) -> None:
        fit(pack, *args, **settings)
        if settings["find_strength"]:
            pack.transport_strength.fill_(1.0)

    one_worker(tmp_path / "bounded")
    monkeypatch.setattr(EliminatorTrainer, "validate", validate)
    monkeypatch.setattr(StackedEliminators, "fit_transport", full_strength)
    monkeypatch.setattr(eliminators_trainer, "probe_leakage", lambda *_: {"gender": leakage, "age": 0.0})
    optim = {"epochs": 4, "lanes": 2, "batch_crops": 16, "min_ndcg_ratio": 0.5, "leakage_budget": 0.7}
    run = eliminators.train_eliminators(eliminators_config(source, tmp_path / "bounded", optim=optim))
    assert run.figures["gender"]["ndcg_floor"] == pytest.approx(
        min(0.5, 1 - 0.7 * leakage**2) * run.figures["none"]["ndcg"]
    )
    (method,) = load_methods(run, load_backbone(source))
    assert method.own_parameters()["pack.transport_strength"].flatten().tolist() == [strength, 1.0]
    first, second = (combination_name(combination) for combination in run.combinations)
    assert [run.figures[name]["strength"] for name in (first, second)] == [strength, 1.0]
    assert [run.figures[name]["strength_confirmed"] for name in (first, second)] == [1.0, 1.0]
    bounded = [message for message in caplog.messages if "transport strength limited" in message]
    assert len(bounded) == (strength < 1)
    assert all(message.startswith(f"combination {first}:") for message in bounded)
    assert all(
        f"limited to {strength:g} by the accuracy floor; cross-validation supports 1;" in message for message in bounded
    )


def test_failed_pack_is_retried_and_trained_alone_later(source, one_worker, monkeypatch, tmp_path):
    worker, tried = one_worker(tmp_path / "failing"), []

    def fit(record: Record, progress: Any, pack: str) -> None:
        tried.append(pack)
        if pack == "pack000":
            raise RuntimeError("no room")
        worker.fit(record, progress, pack)

    monkeypatch.setattr(eliminators, "fit", fit)
    config = eliminators_config(source, tmp_path / "failing", pack_size=1)
    message = r"1 of 2 packs failed \(pack000\), the others are done; .*no room"
    with pytest.raises(eliminators.PacksFailed, match=message):
        eliminators.train_eliminators(config)
    assert tried == ["pack000", "pack000", "pack001"]
    record = EliminatorsRecord.load(str(tmp_path / "failing" / "eliminators"))
    assert [Path(record.done_uri(pack)).exists() for pack in record.packs] == [False, True]
    untouched = Path(record.weights_uri("pack001")).stat().st_mtime_ns
    monkeypatch.setattr(eliminators, "fit", worker.fit)
    again = eliminators.train_eliminators(config)
    assert Path(record.weights_uri("pack001")).stat().st_mtime_ns == untouched
    straight = eliminators.train_eliminators(eliminators_config(source, tmp_path / "straight", pack_size=1))
    assert content(again) == content(straight)
    (method,) = load_methods(again, load_backbone(source))  # both packs, stacked
    assert method.combinations == (("gender",), ("gender", "age"))


def test_unwritable_folder_is_refused(source, lake, one_worker, tmp_path):
    one_worker(tmp_path / "made")
    (tmp_path / "file").write_text("not a folder")
    run = eliminators.train_eliminators(eliminators_config(source, tmp_path / "made"))
    with pytest.raises(UserError, match=r"cannot write to .*file"):
        backbone.train_backbone(backbone_config(lake, tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot write to .*file"):
        eliminators.train_eliminators(eliminators_config(source, tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot write to .*file/bundle"):
        make_bundle(validate_config(BundleConfig, {"run": run.uri, "out": str(tmp_path / "file" / "bundle")}))


def test_eliminators_of_a_retrained_backbone_are_refused(source, lake, one_worker, tmp_path):
    one_worker(tmp_path / "made")
    run = eliminators.train_eliminators(eliminators_config(source, tmp_path / "made"))
    shutil.rmtree(source.uri)
    backbone.train_backbone(backbone_config(lake, tmp_path / "runs", seed=1))
    with pytest.raises(UserError, match="was trained again since: train its eliminators again"):
        audit(validate_config(AuditConfig, {"run": run.uri}))
    with pytest.raises(UserError, match="was trained again since: train its eliminators again"):
        make_bundle(validate_config(BundleConfig, {"run": run.uri, "out": str(tmp_path / "bundle")}))
    assert not (tmp_path / "bundle").exists()


def test_finished_runs_learn_where_their_inputs_were_moved(source, lake, one_worker, tmp_path):
    one_worker(tmp_path / "made")
    run, places = eliminators.train_eliminators(eliminators_config(source, tmp_path / "runs")), tmp_path / "elsewhere"
    moved_lake = Lake.open(shutil.copytree(lake.uri, places / "lake"))
    shutil.move(tmp_path / "runs", places / "runs")
    with pytest.raises(UserError, match=r"backbone '.*/runs/backbone' of run .* is missing: if it was moved, start"):
        audit(validate_config(AuditConfig, {"run": str(places / "runs" / "eliminators")}))
    backbone.train_backbone(backbone_config(moved_lake, places / "runs"))
    source = BackboneRecord.load(str(places / "runs" / "backbone"))
    assert source.config.lake == moved_lake.uri
    again = eliminators.train_eliminators(eliminators_config(source, places / "runs"))
    assert again.figures == run.figures
    found = EliminatorsRecord.load(again.uri).source()
    assert (found.uri, found.config.lake) == (source.uri, moved_lake.uri)


def test_worker_without_validation_users_takes_part(source, one_worker, monkeypatch, tmp_path):
    one_worker(tmp_path / "nobody")
    monkeypatch.setattr(Workers, "mean", lambda self, means, *_: dict.fromkeys(means, 0.5))
    read_held_out = eliminators_run.read_held_out
    monkeypatch.setattr(
        eliminators_run, "read_held_out", lambda *args: (u := read_held_out(*args)).only(np.zeros(len(u), dtype=bool))
    )
    assert eliminators.train_eliminators(eliminators_config(source, tmp_path / "nobody")).status == "done"


def plan_that_needs(lake: Lake, users: int, split: UserSplit) -> SequencePlan:
    """Plan of a seed with which fewer validation users would draw nobody."""
    configs = (SequenceConfig(split_seed=seed) for seed in range(100))
    plans = (make_sequence_plan(lake, config, 20, split, reader=LocalReader()) for config in configs)
    return next(plan for plan in plans if plan.min_sampling_hash * plan.users > users - 1)


def test_backbone_without_validation_users_is_refused(lake, one_worker, tmp_path):
    one_worker(tmp_path / "drawn")
    plan = plan_that_needs(lake, 2, "all")
    config = backbone_config(
        lake, tmp_path, sequences=plan.sequences.model_dump(), optim={"validation_users": 1, "epochs": 1}
    )
    with pytest.raises(UserError, match=rf"optim.validation_users = 1 draws none of the {plan.users} users"):
        backbone.train_backbone(config)
    assert not (tmp_path / "backbone").exists()


def test_eliminators_without_validation_users_are_refused_with_the_fix(lake, one_worker, tmp_path):
    one_worker(tmp_path / "drawn")
    plan, optim = plan_that_needs(lake, 3, "train"), {"epochs": 1, "batch_crops": 16}
    source = backbone.train_backbone(
        backbone_config(lake, tmp_path, sequences=plan.sequences.model_dump(), optim=optim)
    )
    with pytest.raises(UserError, match=rf"optim.validation_users = 2 draws none of the {plan.users} users") as refused:
        eliminators.train_eliminators(eliminators_config(source, tmp_path, optim=optim | {"validation_users": 2}))
    assert not (tmp_path / "eliminators").exists()
    (least,) = re.findall(r"make it (\d+) or more", str(refused.value))
    config = eliminators_config(source, tmp_path, optim=optim | {"validation_users": int(least)})
    assert eliminators.train_eliminators(config).status == "done"


def test_lake_without_validation_users_is_refused(source, lake, one_worker, monkeypatch, tmp_path):
    one_worker(tmp_path / "nobody")
    read_held_out = backbone_run.read_held_out
    monkeypatch.setattr(
        backbone_run, "read_held_out", lambda *args: (u := read_held_out(*args)).only(np.zeros(len(u), dtype=bool))
    )
    with pytest.raises(UserError, match=r"no user was drawn for validation: raise optim.validation_users"):
        backbone.train_backbone(backbone_config(lake, tmp_path / "nobody"))

"""Backbones and packs in this process: killed and resumed, what they read, what they refuse."""

import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch

from mtrec_ray.config import validate_config
from mtrec_ray.errors import UserError
from mtrec_ray.jobs.audit import audit
from mtrec_ray.jobs.bundle import make_bundle
from mtrec_ray.jobs.config import AuditConfig, BundleConfig
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.models.eliminators import StackedEliminators
from mtrec_ray.streams.crops import SequencePlan, make_sequence_plan
from mtrec_ray.streams.ordered import LocalReader
from mtrec_ray.streams.sequences import SequenceConfig, Sequences, UserSplit, in_split
from mtrec_ray.tracking.metrics_file import read_metrics
from mtrec_ray.trainers import adversarial
from mtrec_ray.trainers import eliminators as eliminators_trainer
from mtrec_ray.trainers.eliminators import EliminatorTrainer
from mtrec_ray.training import backbone_run, eliminators, eliminators_run
from mtrec_ray.training.backbone_run import BackboneRecord, load_backbone
from mtrec_ray.training.eliminators import train_eliminators
from mtrec_ray.training.eliminators_run import EliminatorsRecord, load_methods
from mtrec_ray.training.fit import train_backbone
from mtrec_ray.training.record import Record, load_plan
from mtrec_ray.training.weights import load_checkpoint, save_weights
from mtrec_ray.workers import Workers
from tests.streams.lakes import day, lake_of, title_table
from tests.training.one_worker import OneWorker, backbone_config, eliminators_config
from tests.tuning.conftest import build_here

BUCKETS = 3
NAMES = ("gender", "gender+age")


@pytest.fixture(scope="module")
def lake(tmp_path_factory) -> Lake:
    folder = tmp_path_factory.mktemp("loops") / "lake"
    return build_here(folder, BUCKETS, users=160, territories=4, titles=40, events_per_user=30.0)


@pytest.fixture
def one_worker(monkeypatch, tmp_path) -> Callable[..., OneWorker]:
    return partial(OneWorker, monkeypatch)


@pytest.fixture(scope="module")
def made(lake, tmp_path_factory) -> Iterator[tuple[BackboneRecord, EliminatorsRecord]]:
    """A backbone and eliminators in one folder, trained undisturbed."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        OneWorker(patch, folder / "checkpoints")
        source = train_backbone(backbone_config(lake, folder / "runs"))
        yield source, train_eliminators(eliminators_config(source, folder / "runs"))


@pytest.fixture
def source(made) -> BackboneRecord:
    return made[0]


def content(record: BackboneRecord | EliminatorsRecord) -> dict[str, bytes]:
    return {str(path.relative_to(record.uri)): path.read_bytes() for path in Path(record.uri).rglob("*.safetensors")}


def test_metrics_file_has_losses_and_every_validation(made):
    """Of the backbone after two of four epochs and at the end; of each combination."""
    source, run = made
    rows = read_metrics(source.uri)
    validations = [row for row in rows if "val/ndcg" in row]
    assert [row["step"] for row in validations] == [source.num_steps // 2, source.num_steps]
    assert max(row["val/ndcg"] for row in validations) == source.figures["validation"]["val/ndcg"]
    logged = [row for row in rows if "train/loss" in row]
    assert [row["step"] for row in logged] == list(range(1, source.num_steps + 1))
    assert all(row["train/lr"] == source.config.optim.lr for row in logged)
    assert {key for row in read_metrics(run.folder("pack000")) for key in row} >= {f"val/ndcg/{n}" for n in NAMES}


def test_killed_backbone_resumes_to_the_same_weights(lake, source, one_worker, tmp_path):
    worker = one_worker(tmp_path / "killed", 1, 2, 3)
    killed = train_backbone(backbone_config(lake, tmp_path / "again"))
    assert worker.starts == 4
    assert killed.figures == source.figures
    assert content(killed) == content(source)


def test_diverged_backbone_is_refused_and_leaves_no_weights(lake, one_worker, tmp_path):
    worker, config = one_worker(tmp_path / "killed"), backbone_config(lake, tmp_path / "runs")
    diverging = config.model_copy(update={"optim": config.optim.model_copy(update={"lr": 1e30})})
    with pytest.raises(UserError, match=r"^training diverged: loss is nan at step 2: lower optim\.lr \(1e30\)"):
        train_backbone(diverging)
    assert (worker.starts, worker.reports) == (1, 0)
    assert list(Path(tmp_path).rglob("*.safetensors")) == []


def test_lake_with_one_title_is_refused(tmp_path):
    one = lake_of(tmp_path / "lake", {"u": "north"}, [("u", "t0", day(1, 1))], title_table({"t0": []}))
    with pytest.raises(UserError, match="has one title: there is nothing to rank"):
        train_backbone(backbone_config(one, tmp_path / "runs"))


def test_attribute_with_a_rare_value_is_warned_of(made, caplog):
    _, run = made
    plan = load_plan(run.uri, SequencePlan)
    enough = [[100] * len(counts) for counts in plan.value_counts]
    run.check_values(plan.model_copy(update={"value_counts": enough}))
    assert not caplog.messages
    gender = list(run.attributes).index("gender")
    enough[gender] = [100, 2]
    run.check_values(plan.model_copy(update={"value_counts": enough}))
    (message,) = caplog.messages
    assert message.startswith("attribute gender: about 0.9 users of the audit split have another value than most")


def test_killed_pack_resumes_to_the_same_weights(source, one_worker, monkeypatch, tmp_path):
    """Of two combinations, gender holds its floor at the first validation alone, gender+age at none.

    Killed after its first transport was fitted, which is not fitted again, and between that validation and the end.
    """
    first, started = [], []

    def start(trainer: EliminatorTrainer, start: Any = EliminatorTrainer.start) -> bool:
        started.append(trainer.next_step)
        return start(trainer)

    def validate(trainer: EliminatorTrainer) -> list[float]:
        if trainer.next_step and not first:
            first.append(trainer.next_step)
        holds = [trainer.next_step in (0, *first), trainer.next_step == 0]
        return [trainer.figures["none"]["ndcg"] * held for held in holds]

    monkeypatch.setattr(EliminatorTrainer, "start", start)
    monkeypatch.setattr(EliminatorTrainer, "validate", validate)
    ends, records, killed_at = [], [], []
    for runs in (tmp_path / "straight", tmp_path / "killed"):
        worker = one_worker(runs, *killed_at)
        records.append(train_eliminators(eliminators_config(source, runs, epochs=4)))
        assert worker.starts == 1 + len(killed_at)
        assert worker.latest is not None
        ends.append({path.name: path.read_bytes() for path in worker.latest.iterdir()})
        saved = {n: load_checkpoint(str(runs / f"checkpoint{n}")) for n in range(1, worker.reports + 1)}
        steps = {n: state.plain["next_step"] for n, state in saved.items() if state}
        killed_at = [n for n, step in steps.items() if step == 0 or first[0] < step < records[0].num_steps]
    assert len(killed_at) > 1
    assert started == [0, 0]
    for record in records:
        assert [record.figures[name]["step"] for name in NAMES] == [first[0], 0.0]
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

    def measure(users: Any, *vectors: Any, stacked_metrics: Any = adversarial.stacked_metrics) -> Any:
        seen["validation"].append(users.keys)
        return stacked_metrics(users, *vectors)

    monkeypatch.setattr("mtrec_ray.training.record.lake_reader", lambda runner: Watched())
    monkeypatch.setattr(EliminatorTrainer, "fit_transport", fit_transport)
    monkeypatch.setattr(adversarial, "stacked_metrics", measure)
    train_eliminators(eliminators_config(source, tmp_path / "watched"))
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
    run = train_eliminators(eliminators_config(source, tmp_path / "bounded", optim={"leakage_budget": 0.7}))
    assert run.figures["gender"]["ndcg_floor"] == pytest.approx(
        min(0.5, 1 - 0.7 * leakage**2) * run.figures["none"]["ndcg"]
    )
    (method,) = load_methods(run, load_backbone(source))
    assert method.own_parameters()["pack.transport_strength"].flatten().tolist() == [strength, 1.0]
    found = [(run.figures[name]["strength"], run.figures[name]["strength_confirmed"]) for name in NAMES]
    assert found == [(strength, 1.0), (1.0, 1.0)]
    bounded = [message for message in caplog.messages if "transport strength limited" in message]
    assert len(bounded) == (strength < 1)
    warning = f"combination gender: transport strength limited to {strength:g} by the accuracy floor; cross-validation"
    assert all(message.startswith(f"{warning} supports 1;") for message in bounded)


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
        train_eliminators(config)
    assert tried == ["pack000", "pack000", "pack001"]
    record = EliminatorsRecord.load(str(tmp_path / "failing" / "eliminators"))
    assert [Path(record.done_uri(pack)).exists() for pack in record.packs] == [False, True]
    untouched = Path(record.weights_uris()["pack001"]).stat().st_mtime_ns
    monkeypatch.setattr(eliminators, "fit", worker.fit)
    again = train_eliminators(config)
    assert Path(record.weights_uris()["pack001"]).stat().st_mtime_ns == untouched
    straight = train_eliminators(eliminators_config(source, tmp_path / "straight", pack_size=1))
    assert content(again) == content(straight)
    (method,) = load_methods(again, load_backbone(source))  # both packs, stacked
    assert method.combinations == (("gender",), ("gender", "age"))


def test_unwritable_folder_is_refused(made, lake, one_worker, tmp_path):
    one_worker(tmp_path / "checkpoints")
    source, run = made
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match=r"cannot write to .*file"):
        train_backbone(backbone_config(lake, tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot write to .*file"):
        train_eliminators(eliminators_config(source, tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot write to .*file/bundle"):
        make_bundle(validate_config(BundleConfig, {"run": run.uri, "out": str(tmp_path / "file" / "bundle")}))


@pytest.fixture
def moved(made, tmp_path) -> tuple[BackboneRecord, EliminatorsRecord]:
    """The two runs in another folder; the eliminators name the old one."""
    shutil.copytree(Path(made[0].uri).parent, tmp_path / "runs")
    found = BackboneRecord.load(str(tmp_path / "runs" / "backbone"))
    return found, EliminatorsRecord.load(str(tmp_path / "runs" / "eliminators"))


def test_eliminators_of_a_retrained_backbone_are_refused(moved, tmp_path):
    source, run = moved
    run.with_settings(backbone=source.uri).save()
    weights = safetensors.torch.load_file(source.weights_uris()["validation"])
    save_weights(source.weights_uris()["validation"], {name: 2 * tensor for name, tensor in weights.items()}, {})
    with pytest.raises(UserError, match="was trained again since: train its eliminators again"):
        audit(validate_config(AuditConfig, {"run": run.uri}))
    with pytest.raises(UserError, match="was trained again since: train its eliminators again"):
        make_bundle(validate_config(BundleConfig, {"run": run.uri, "out": str(tmp_path / "bundle")}))
    assert not (tmp_path / "bundle").exists()


def test_finished_runs_learn_where_their_inputs_were_moved(moved, lake, one_worker, tmp_path):
    one_worker(tmp_path / "checkpoints")
    source, run = moved
    moved_lake = Lake.open(shutil.copytree(lake.uri, tmp_path / "lake"))
    run.with_settings(backbone=str(tmp_path / "nowhere" / "backbone")).save()
    with pytest.raises(UserError, match=r"backbone '.*/nowhere/backbone' of run .* is missing: if it was moved, start"):
        audit(validate_config(AuditConfig, {"run": run.uri}))
    source = train_backbone(backbone_config(moved_lake, tmp_path / "runs"))
    assert BackboneRecord.load(source.uri).config.lake == moved_lake.uri
    again = train_eliminators(eliminators_config(source, tmp_path / "runs"))
    assert again.figures == run.figures
    found = EliminatorsRecord.load(again.uri).source()
    assert (found.uri, found.config.lake) == (source.uri, moved_lake.uri)


def without_held_out_users(monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
    read = module.read_held_out
    monkeypatch.setattr(module, "read_held_out", lambda *args: (u := read(*args)).only(np.zeros(len(u), dtype=bool)))


def test_worker_without_validation_users_takes_part(source, one_worker, monkeypatch, tmp_path):
    one_worker(tmp_path / "nobody")
    monkeypatch.setattr(Workers, "mean", lambda self, means, *_: dict.fromkeys(means, 0.5))
    without_held_out_users(monkeypatch, eliminators_run)
    assert train_eliminators(eliminators_config(source, tmp_path / "nobody")).status == "done"


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
        train_backbone(config)
    assert not (tmp_path / "backbone").exists()


def test_eliminators_without_validation_users_are_refused_with_the_fix(lake, one_worker, tmp_path):
    one_worker(tmp_path / "drawn")
    plan, optim = plan_that_needs(lake, 3, "train"), {"epochs": 1, "batch_crops": 16}
    source = train_backbone(backbone_config(lake, tmp_path, sequences=plan.sequences.model_dump(), optim=optim))
    with pytest.raises(UserError, match=rf"optim.validation_users = 2 draws none of the {plan.users} users") as refused:
        train_eliminators(eliminators_config(source, tmp_path, optim={"validation_users": 2}))
    assert not (tmp_path / "eliminators").exists()
    (least,) = re.findall(r"make it (\d+) or more", str(refused.value))
    config = eliminators_config(source, tmp_path, optim={"validation_users": int(least)})
    assert train_eliminators(config).status == "done"


def test_lake_without_validation_users_is_refused(source, lake, one_worker, monkeypatch, tmp_path):
    one_worker(tmp_path / "nobody")
    without_held_out_users(monkeypatch, backbone_run)
    with pytest.raises(UserError, match=r"no user was drawn for validation: raise optim.validation_users"):
        train_backbone(backbone_config(lake, tmp_path / "nobody", optim={"epochs": 1}))

"""Runs of paper B's eliminators in this process: ended early, killed and resumed, whom they read, what is served."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.table import Table

from mtrec_ray.config import validate_config
from mtrec_ray.jobs.bundle import make_bundle
from mtrec_ray.jobs.config import BundleConfig
from mtrec_ray.jobs.runs import ShowRunConfig, show_run
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.models.eliminators import StackedEliminators
from mtrec_ray.serving.engine import Engine, Query
from mtrec_ray.streams import sequences
from mtrec_ray.streams.ordered import LocalReader
from mtrec_ray.streams.sequences import Sequences, in_split
from mtrec_ray.trainers import pfrec
from mtrec_ray.trainers.eliminators_config import EliminatorsConfig
from mtrec_ray.trainers.pfrec import PFRecTrainer
from mtrec_ray.training import eliminators_run
from mtrec_ray.training.backbone_run import BackboneRecord, load_backbone
from mtrec_ray.training.eliminators import _warn_of_written_values, train_eliminators
from mtrec_ray.training.eliminators_run import EliminatorsRecord, load_methods
from mtrec_ray.training.fit import train_backbone
from tests.processes import printed
from tests.training.one_worker import OneWorker, backbone_config
from tests.tuning.conftest import build_here

BUCKETS, EPOCHS = 3, 30
NAMES = ("gender", "gender+age")
SHAPES: dict[str, dict[str, Any]] = {"all parts": {}, "adapters alone": {"num_prompts": 0, "personal_prompt": False}}


@pytest.fixture(scope="module")
def lake(tmp_path_factory) -> Lake:
    folder = tmp_path_factory.mktemp("paper") / "lake"
    return build_here(folder, BUCKETS, users=160, territories=4, titles=40, events_per_user=30.0)


@pytest.fixture(scope="module")
def source(lake, tmp_path_factory) -> BackboneRecord:
    folder = tmp_path_factory.mktemp("backbone")
    with pytest.MonkeyPatch.context() as patch:
        OneWorker(patch, folder / "checkpoints")
        return train_backbone(backbone_config(lake, folder / "runs"))


@pytest.fixture(scope="module", autouse=True)
def few_users() -> Iterator[None]:
    """Enough of them are probed, and patience is short."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequences, "PROBED_FRACTION", 0.4)
        patch.setattr(pfrec, "PATIENCE", 2)
        yield


def config_of(source: BackboneRecord, runs: Path, **settings: Any) -> EliminatorsConfig:
    document = {
        "backbone": source.uri,
        "runs": str(runs),
        "name": "paper",
        "method": "pfrec",
        "combinations": ",".join(NAMES),
        "optim": {"epochs": EPOCHS, "lanes": 2},
        "adversary": {"generator_lr": 1e-2},
        "runner": {"checkpoint_every_s": 0},
    }
    return validate_config(EliminatorsConfig, document | settings)


@pytest.fixture(scope="module")
def trained(source, few_users, tmp_path_factory) -> dict[str, EliminatorsRecord]:
    """A run of each shape, undisturbed."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        OneWorker(patch, folder / "checkpoints")
        return {
            name: train_eliminators(config_of(source, folder / name.replace(" ", "_"), shape=shape))
            for name, shape in SHAPES.items()
        }


def content(record: EliminatorsRecord) -> list[bytes]:
    return [path.read_bytes() for path in sorted(Path(record.uri).rglob("*.safetensors"))]


def test_killed_run_that_ends_early_resumes_to_the_same_weights(source, trained, monkeypatch, tmp_path):
    straight = trained["all parts"]
    epochs = {name: of["step"] / straight.num_steps * EPOCHS for name, of in straight.figures.items() if name in NAMES}
    assert max(epochs.values()) + 2 < EPOCHS
    worker = OneWorker(monkeypatch, tmp_path / "killed", 1, 2, 3)
    killed = train_eliminators(config_of(source, tmp_path / "runs"))
    assert worker.starts == 4
    assert killed.figures == straight.figures
    assert content(killed) == content(straight)


def test_users_of_the_probe_are_not_trained_on(lake, source, monkeypatch, tmp_path):
    OneWorker(monkeypatch, tmp_path / "watched")
    seen: dict[str, list[np.ndarray]] = {"unprobed": [], "probed": [], "train": []}

    class Watched(LocalReader):
        def bucket(self, read: Any, *arguments: Any) -> Any:
            found = read(*arguments)
            seen["unprobed"].append(found.keys)
            return found

    def probe(trainer: PFRecTrainer, probe: Any = PFRecTrainer.probe) -> list[float]:
        seen["probed"].append(trainer.data.prefixes.keys)
        seen["train"].append(trainer.data.users.keys)
        return probe(trainer)

    monkeypatch.setattr("mtrec_ray.training.record.lake_reader", lambda runner: Watched())
    monkeypatch.setattr(PFRecTrainer, "probe", probe)
    run = train_eliminators(config_of(source, tmp_path / "watched", optim={"epochs": 1, "lanes": 2}))
    config = source.config.sequences
    everybody = np.concatenate([Sequences.read(lake, b, config).keys for b in range(BUCKETS)])
    for split, keys in seen.items():
        expected = set(everybody[in_split(everybody, config, split)].tolist())  # pyright: ignore[reportArgumentType]
        assert set(np.concatenate(keys).tolist()) == expected, split
    counted = [sum(counts) for counts in eliminators_run.load_plan(run.uri, eliminators_run.SequencePlan).value_counts]
    assert max(counted) <= len(set(np.concatenate(seen["unprobed"]).tolist()))


def test_figures_of_the_probe_are_shown(trained):
    run = trained["all parts"]
    for name in NAMES:
        assert 0 < run.figures[name]["probe_auc"] < 1
        assert run.figures[name]["written"] in (0, 1, 2)
    assert {name for name in run.figures["gender"] if "age" in name} == set()
    (table,) = run.tables()
    assert isinstance(table, Table)
    assert [str(column.header) for column in table.columns] == [
        "ignoring",
        "NDCG@10, validation event",
        "lowest probe AUC, users held out",
        "of step",
        "values written",
        *(f"probe AUC of {name}" for name in ("age", "gender", "occupation")),
    ]
    view = show_run(validate_config(ShowRunConfig, {"run": run.uri}))
    assert view.document()["kept"] == run.figures
    assert "auc/gender" in printed(view.tables())
    found = {one["metric"]: one for one in view.validations()}
    assert found["val/probe_auc/gender"]["best"] <= found["val/probe_auc/gender"]["last"]
    assert found["val/probe_auc/gender"]["best_step"] >= run.figures["gender"]["step"]  # none is kept once finished


def test_a_written_value_is_warned_of_in_one_line(trained, caplog):
    run = trained["all parts"]
    figures = {
        "none": {"auc/gender": 0.55, "auc/age": 0.58},
        "gender": {"auc/gender": 0.56, "errors_above/gender": 0.4, "written": 0.0},
        "gender+age": {"auc/age": 0.689, "errors_above/age": 4.2, "written": 1.0},
    }
    found = run.model_copy(update={"figures": figures})
    with caplog.at_level(logging.WARNING):
        _warn_of_written_values(found)
    (message,) = caplog.messages
    assert message == (
        "combination gender+age: its vectors write age, which they should hide: a linear probe's AUC on the train "
        "split is 0.689, on the backbone's vectors 0.580; lower optim.epochs or adversary.generator_lr, or set "
        "shape.personal_prompt=false"
    )
    assert "0.689 !" in printed(found.tables())
    assert "0.560 !" not in printed(found.tables())


@pytest.mark.parametrize("shape", SHAPES)
def test_a_bundle_serves_the_vectors_of_training(trained, monkeypatch, tmp_path, shape):
    """The gate is 0: prompts count in full, but for requests of the backbone alone."""
    monkeypatch.setattr("mtrec_ray.jobs.bundle.map_tasks", LocalReader().map)
    run = trained[shape]
    bundle = make_bundle(validate_config(BundleConfig, {"run": run.uri, "out": str(tmp_path / "bundle")})).bundle
    served = bundle.eliminators()
    assert isinstance(served, StackedEliminators)
    assert (served.gate == 0).all()
    backbone, engine = load_backbone(run.source()), Engine(bundle)
    (method,) = load_methods(run, backbone)
    history = torch.tensor([[1, 2, 3, 4], [5, 6, -1, -1], [7, -1, -1, -1]])
    values = torch.tensor([[0, 1, -1], [1, -1, 0], [-1, 3, 2]])
    expected = {
        "gender": method.user_vectors(history, values)[0],
        "gender+age": method.user_vectors(history, values)[1],
    }
    expected |= {"": backbone.user_vectors(history)}
    wanted = [(name, user) for user in range(3) for name in expected]
    queries = []
    for name, user in wanted:
        events = tuple(history[user][history[user] >= 0].tolist())
        combination = engine.combinations[tuple(name.split("+")) if name else ()]
        queries.append(Query(events, tuple(values[user].tolist()), combination, 0, 5))
    for (name, user), vector in zip(wanted, engine.user_vectors(queries), strict=True):
        torch.testing.assert_close(vector, expected[name][user], rtol=1e-5, atol=1e-6, msg=f"{name} {user}")
    for name in NAMES:
        assert (expected[name] - expected[""]).abs().amax() > 1e-2

"""All trainers: resume to the same bits, callbacks, outputs, no Ray."""

from dataclasses import replace
from functools import cache
from typing import get_args

import numpy as np
import pytest
import torch

from mtrec_ray.models.shapes import GroupBlockName
from mtrec_ray.models.training_state import collect_state
from mtrec_ray.models.two_tower import TwoTower, TwoTowerConfig
from mtrec_ray.trainers.propensity import PropensityScorer, make_optimizer
from mtrec_ray.trainers.trainer import Diverged, Trainer
from mtrec_ray.training.weights import load_checkpoint, save_checkpoint
from tests.processes import python
from tests.trainers.small import MAKERS, STEPS_PER_EPOCH, TITLES, WIDTH, backbone, propensity, validation_chunk

BEST = {"sample": {"validation_fraction": 0.1}, "optim": {"epochs": 2, "snapshot": "best"}}
WITHOUT_RAY = """
import sys
sys.modules["ray"] = None
from mtrec_ray.streams import crops, plan, reader, schedule, sequences
from tests.trainers.small import MAKERS
for name, make in MAKERS.items():
    trainer, batches = make()
    trainer.run(batches(0))
    print(name, trainer.next_step, sorted(trainer.take_outputs()))
"""


def test_trainers_run_and_plans_are_defined_without_ray():
    assert python(WITHOUT_RAY).splitlines() == [
        "propensity 9 ['snapshots/day_0/model.safetensors', 'snapshots/day_1/model.safetensors']",
        "backbone 12 ['backbone.safetensors']",
        "eliminators 12 ['eliminators.safetensors']",
        "pfrec 12 ['eliminators.safetensors']",
    ]


@cache
def straight_training(name: str, best: bool) -> Trainer:
    straight, batches = MAKERS[name](**BEST if best else {})
    straight.run(batches(0))
    return straight


@pytest.mark.parametrize("stop", [1, STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH, 8])
@pytest.mark.parametrize(("name", "settings"), [*((name, {}) for name in MAKERS), ("propensity", BEST)])
def test_resumed_training_equals_straight_training(name, settings, stop, tmp_path):
    straight = straight_training(name, bool(settings))
    stopped, batches = MAKERS[name](**settings)
    stopped.run(batches(0), until=stop)
    save_checkpoint(str(tmp_path), stopped.state_dict())
    resumed, batches = MAKERS[name](seed=1, **settings)
    resumed.config = stopped.config  # weights and all else come from the checkpoint
    saved = load_checkpoint(str(tmp_path))
    assert saved is not None
    resumed.load_state_dict(saved)
    assert resumed.next_step == stop
    resumed.run(batches(stop))
    first, second = collect_state(straight.parts()), collect_state(resumed.parts())
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[key]) for key, tensor in first.items())
    assert straight.state_dict().plain == resumed.state_dict().plain


@pytest.mark.parametrize("name", ["propensity", "backbone"])
def test_callbacks_are_called_at_milestones(name):
    trainer, batches = MAKERS[name]()
    steps, figures, saved = [], [], []
    trainer.run(
        batches(0),
        on_step=lambda: steps.append(trainer.next_step),
        on_milestone=figures.append,
        on_checkpoint=lambda: saved.append(trainer.next_step),
    )
    assert steps == list(range(1, trainer.num_steps + 1))
    assert (len(figures), len(saved)) == (2, 2)
    assert all(one["train/loss"] > 0 for one in figures)


@pytest.mark.parametrize(
    ("name", "settings", "found"),
    [
        ("propensity", {}, r"loss is nan at step 2: lower optim\.lr \(1e30\)"),
        ("backbone", {"optim": {"lr": 1e30}}, r"loss is nan at step 2: lower optim\.lr \(1e30\)"),
        (
            "eliminators",
            {"adversary": {"generator_lr": 1e30}},
            r"loss is nan at step 2: lower adversary\.generator_lr \(1e30\) or adversary\.weight \(0\.1\)",
        ),
        (
            "eliminators",
            {"adversary": {"weight": 1e30}},
            r"weights overflow at step 6: .* or adversary\.weight \(1e30\)",
        ),
    ],
)
def test_diverged_training_is_refused_before_anything_is_kept(name, settings, found):
    trainer, batches = MAKERS[name](**settings)
    if name == "propensity":  # its learning rates are inputs
        trainer.data = replace(trainer.data, learning_rates=(1e30,) * 3)
        trainer.optimizer = make_optimizer(trainer.model, trainer.data.learning_rates)
    saved = []
    with pytest.raises(Diverged, match=f"^training diverged: {found}"):
        trainer.run(batches(0), on_checkpoint=lambda: saved.append(trainer.next_step))
    assert trainer.take_outputs() == {}
    assert saved == ([0] if name == "eliminators" else [])  # the transport, before the first step


def test_weights_too_large_to_be_squared_are_refused():
    trainer, _ = propensity()
    trainer.check_weights()
    trainer.model.state_dict()["user_tower.first"].fill_(1e30)
    with pytest.raises(Diverged, match="weights overflow at step 0"):
        trainer.check_weights()


def test_validation_scores_that_overflow_are_refused(monkeypatch):
    trainer, batches = backbone()
    monkeypatch.setattr(trainer, "check_weights", lambda: trainer.average.module.titles.weight.fill_(3e38))
    with pytest.raises(Diverged, match="validation scores are nan or inf at step 6"):
        trainer.run(batches(0))
    assert trainer.take_outputs() == {}


def test_clock_checkpoints_at_most_every_ten_steps():
    trainer, batches = backbone(optim={"epochs": 10, "evaluate_every": 10})
    saved = []
    trainer.run(batches(0), on_checkpoint=lambda: saved.append(trainer.next_step), checkpoint_every_s=0)
    assert saved == [10, 20, 30]


@pytest.mark.parametrize(("loss", "first"), [("softmax", np.log(1 + TITLES)), ("bpr", np.log(2))])
def test_backbone_starts_from_scores_near_zero_by_its_loss(loss, first):
    trainer, batches = backbone(optim={"loss": loss, "num_negatives": 8})
    assert trainer.train_step(next(batches(0))).item() == pytest.approx(first, abs=0.1)


def test_backbone_stops_when_validation_does_not_improve(monkeypatch):
    trainer, batches = backbone(optim={"epochs": 20, "evaluate_every": 2})
    ndcgs = iter([0.3, 0.2, 0.25, 0.1, 0.1, 0.1, 0.9])
    monkeypatch.setattr(type(trainer.workers), "mean", lambda *_: {"ndcg": next(ndcgs)})
    trainer.run(batches(0))
    assert trainer.stopped
    assert trainer.next_step == 12 * STEPS_PER_EPOCH
    assert trainer.take_outputs()["backbone.safetensors"][1]["val/ndcg"] == 0.3


@pytest.mark.parametrize("snapshot", ["last", "best"])
def test_snapshot_is_the_last_or_the_best_of_its_period(snapshot, monkeypatch):
    trainer, batches = propensity(**BEST | {"optim": {"epochs": 2, "snapshot": snapshot}})
    weighted = iter([0.5, 0.4, 0.3])  # after each epoch of the window, after the day
    monkeypatch.setattr(trainer, "validate", lambda period: {"val/pr_auc/weighted": next(weighted)})
    after_first_epoch = {}

    def remember() -> None:
        if trainer.next_step == STEPS_PER_EPOCH:
            after_first_epoch.update({n: t.clone() for n, t in trainer.model.state_dict().items()})

    trainer.run(batches(0), on_step=remember)
    tensors, figures = trainer.take_outputs()["snapshots/day_0/model.safetensors"]
    equal = all(torch.equal(tensor, after_first_epoch[name]) for name, tensor in tensors.items())
    assert equal == (snapshot == "best")
    assert figures["val/pr_auc/weighted"] == (0.5 if snapshot == "best" else 0.4)


@pytest.mark.parametrize(("preset", "last"), [("ours", 1e-2 / STEPS_PER_EPOCH), ("paper", 1e-2)])
def test_learning_rates_fall_over_each_period_or_stay_as_the_papers(preset, last):
    trainer, batches = propensity(preset=preset, model={}, optim={})
    trainer.run(batches(0))
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(last)


@pytest.mark.parametrize("group_block", ["none", *get_args(GroupBlockName)])
def test_optimizer_has_every_parameter_in_one_group(group_block):
    groups = 1 if group_block == "none" else 2
    model = TwoTower(TwoTowerConfig(4, 4, d=4, num_groups=groups, group_block=group_block))
    if model.group_block is not None:
        model.group_block.temperature = torch.nn.Parameter(torch.ones(2))  # a vector of one number per group
    found = [id(p) for group in make_optimizer(model, (1e-3, 1e-4, 1e-2)).param_groups for p in group["params"]]
    assert sorted(found) == sorted(map(id, model.parameters()))


def test_validation_figures_have_bounds_and_change_no_weight():
    validated, batches = propensity(sample={"validation_fraction": 0.1})
    figures = []
    validated.run(batches(0), on_milestone=figures.append)
    assert len(figures) == 3
    for one in figures:
        assert one["val/pr_auc/mean_low"] <= one["val/pr_auc/mean"] <= one["val/pr_auc/mean_high"]
    plain, batches = propensity()
    plain.run(batches(0))
    for name, tensor in collect_state(plain.parts()).items():
        assert torch.equal(tensor, collect_state(validated.parts())[name]), name


@pytest.mark.parametrize("aligned", [0, WIDTH])
def test_scores_are_logits_with_the_prior(aligned):
    """Where user vectors are made of watched titles, the prior alone scores those."""
    shape = TwoTowerConfig(WIDTH, WIDTH, d=WIDTH, aligned_width=aligned, initial_bias=-2.0, prior_shape=(2, TITLES, 3))
    model, rng = TwoTower(shape), np.random.default_rng(0)
    model.init_weights(torch.Generator().manual_seed(0))
    titles_prior, users_prior = rng.normal(size=(2, TITLES)).astype(np.float32), np.array([0.5, -1, 2], np.float32)
    model.get_buffer("title_prior").copy_(torch.from_numpy(titles_prior))
    model.get_buffer("user_prior").copy_(torch.from_numpy(users_prior))
    model.get_buffer("seen_prior").fill_(-0.75)
    if model.gain is not None:
        model.gain.data.fill_(0.5)
    chunk = replace(
        validation_chunk(1),
        activity=rng.integers(0, 3, 10),
        seen=rng.random((10, TITLES)) < 0.3,
        title_index=rng.permutation(TITLES).astype(np.int32),
    )
    scorer = PropensityScorer(model, rng.normal(size=(TITLES, WIDTH)), [0, 0])
    users = model.user_vectors(torch.from_numpy(chunk.embedding), torch.zeros(10, dtype=torch.int64))
    logits = model.logits(users, scorer.titles).numpy()[:, chunk.title_index]
    expected = np.where(chunk.seen, -2.0, logits) if aligned else logits
    expected = expected - 0.75 * chunk.seen + titles_prior[1, chunk.title_index] + users_prior[chunk.activity, None]
    np.testing.assert_allclose(scorer.score(chunk), expected, rtol=1e-5, atol=1e-5)

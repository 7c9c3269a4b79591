"""Trainer of paper B's eliminators: its settings, what it keeps, when it ends, values that a prompt writes."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from mtrec_ray.combinations import Combination
from mtrec_ray.errors import UserError
from mtrec_ray.models.training_state import collect_state
from mtrec_ray.trainers import pfrec
from mtrec_ray.trainers.pfrec import PFRecTrainer
from mtrec_ray.trainers.probe_leakage import BEYOND_CHANCE, ProbeScores
from mtrec_ray.trainers.trainer import Diverged
from mtrec_ray.training.weights import load_checkpoint, save_checkpoint
from mtrec_ray.workers import Workers
from tests.steps.cases import in_lock_step
from tests.trainers import small
from tests.trainers.small import PAIR, STEPS_PER_EPOCH, USERS, held_out_users

SINGLES: list[Combination] = [("gender",), ("age",)]


def make_trainer(*args: Any, **settings: Any) -> PFRecTrainer:
    return small.pfrec(*args, **settings)[0]


def test_game_is_that_of_the_paper():
    trainer = make_trainer()
    game = trainer.game
    optimizers = (game.generator_optimizer, game.discriminator_optimizer)
    assert [(type(one), one.defaults["lr"], one.defaults["weight_decay"]) for one in optimizers] == [
        (torch.optim.RMSprop, 1e-4, 1e-6)
    ] * 2
    assert (game.weight, game.average, game.columns) == (1.0, None, small.LENGTH)
    assert game.value_weights.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert trainer.averaged is trainer.method
    pack = trainer.method.get_submodule("pack")
    trained = {name for name, of in pack.named_parameters() if of.requires_grad}
    assert trained == {"prompts", "personal", "down", "up", "norm_scale", "norm_shift"}
    assert (pack.get_parameter("gate") == 0).all()
    assert pack.get_parameter("prompts").shape[1] == 10


def test_generator_moves_at_each_fifth_batch():
    trainer, batches = small.pfrec()
    moved, before = [], trainer.method.get_parameter("pack.up").clone()
    trainer.start()
    for batch in batches(0):
        trainer.train_step(batch)
        after = trainer.method.get_parameter("pack.up").clone()
        moved.append(not torch.equal(after, before))
        before = after
    assert moved == [(step + 1) % 5 == 0 for step in range(12)]


def test_personal_prompts_are_moved_by_the_optimizer_alone():
    """With a learning rate of nearly zero, nothing pulls them anywhere."""
    trainer, batches = small.pfrec(adversary={"generator_lr": 1e-30})
    before = {name: tensor.clone() for name, tensor in trainer.method.own_parameters().items()}
    trainer.run(batches(0))
    for name, tensor in trainer.method.own_parameters().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=1e-25, msg=name)


@pytest.fixture
def readings(monkeypatch):
    """Let the probe read given AUCs, epoch after epoch; weights hold the number of their epoch."""

    def read(trainer: PFRecTrainer, *aucs: list[float]) -> None:
        given: Iterator[list[float]] = iter(aucs)

        def probe() -> list[float]:
            epoch = trainer.next_step // STEPS_PER_EPOCH
            with torch.no_grad():
                for parameter in trainer.method.own_parameters().values():
                    parameter.fill_(epoch)
            return next(given) if epoch else [0.9, 0.9]

        monkeypatch.setattr(trainer, "probe", probe)

    return read


def test_each_combination_keeps_its_lowest_auc_and_the_run_ends_when_none_falls(monkeypatch, readings):
    """Gender is finished after epoch 4 and not kept in epoch 6, though its AUC falls there: age goes on."""
    monkeypatch.setattr(pfrec, "PATIENCE", 2)
    trainer, batches = small.pfrec(pack=SINGLES, epochs=20)
    age = [0.8, 0.7, 0.7, 0.6, 0.6, 0.5, 0.6, 0.5, 0.1]
    readings(trainer, *map(list, zip([0.7, 0.6, 0.7, 0.6, 0.6, 0.4, 0.6, 0.6, 0.1], age, strict=True)))
    seen = []
    trainer.run(batches(0), on_milestone=seen.append)
    assert trainer.stopped
    assert trainer.next_step == 8 * STEPS_PER_EPOCH
    kept = [
        (trainer.figures[name]["step"] / STEPS_PER_EPOCH, trainer.figures[name]["probe_auc"]) for name in trainer.names
    ]
    assert kept == [(2, 0.6), (6, 0.5)]
    for tensor in trainer.kept.values():
        assert [of.unique().tolist() for of in tensor if of.numel()] == [[2.0], [6.0]][
            : len(tensor) * (tensor.numel() > 0)
        ]
    weights, figures = trainer.take_outputs()["eliminators.safetensors"]
    assert figures is trainer.figures
    assert weights is trainer.kept
    assert [one["val/probe_auc/age"] for one in seen] == age[:8]
    assert trainer.method.own_parameters()["pack.up"].unique().tolist() == [8.0]  # the probe of what is kept moved none


def test_weights_of_the_first_epoch_replace_untrained_ones_whatever_they_leak(readings):
    trainer, batches = small.pfrec(epochs=1)
    readings(trainer, [1.0, 1.0])
    trainer.run(batches(0))
    assert [trainer.figures[name]["step"] for name in trainer.names] == [STEPS_PER_EPOCH] * 2


@pytest.mark.parametrize("stop", [1, STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH + 1, 100])
def test_run_that_ends_early_resumes_to_the_same_bits(monkeypatch, tmp_path, stop):
    monkeypatch.setattr(pfrec, "PATIENCE", 2)
    adversary = {"generator_lr": 1e-2}
    straight, batches = small.pfrec(epochs=40, adversary=adversary)
    straight.run(batches(0))
    assert straight.stopped
    assert straight.next_step < straight.num_steps
    stopped, batches = small.pfrec(epochs=40, adversary=adversary)
    stopped.run(batches(0), until=stop)
    save_checkpoint(str(tmp_path), stopped.state_dict())
    resumed, batches = small.pfrec(epochs=40, seed=1, adversary=adversary)
    resumed.config = stopped.config  # weights and all else come from the checkpoint
    saved = load_checkpoint(str(tmp_path))
    assert saved is not None
    resumed.load_state_dict(saved)
    resumed.run(batches(min(stop, straight.next_step)))
    first, second = collect_state(straight.parts()), collect_state(resumed.parts())
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[key]) for key, tensor in first.items())
    assert straight.state_dict().plain == resumed.state_dict().plain


def test_a_pack_keeps_what_its_members_keep_alone(monkeypatch):
    monkeypatch.setattr(pfrec, "PATIENCE", 2)
    together, batches = small.pfrec(epochs=12, adversary={"generator_lr": 1e-2})
    together.run(batches(0))
    for row, combination in enumerate(PAIR):
        alone, batches = small.pfrec(pack=[combination], epochs=12, adversary={"generator_lr": 1e-2})
        alone.run(batches(0))
        (name,) = alone.names
        assert alone.figures[name] == pytest.approx(together.figures[name], abs=1e-3)
        for key, tensor in alone.kept.items():
            torch.testing.assert_close(tensor[0], together.kept[key][row], rtol=1e-3, atol=1e-4, msg=key)


def test_two_workers_probe_and_keep_as_one():
    users = held_out_users()
    parts = [users.only(np.arange(USERS) % 3 == 0), users.only(np.arange(USERS) % 3 > 0)]

    def train(users: Any, workers: Workers | None) -> PFRecTrainer:
        trainer = make_trainer(users, workers)
        trainer.start()
        trainer.next_step = STEPS_PER_EPOCH
        trainer.reach_milestone()
        trainer.finish()
        return trainer

    alone = train(users, None)
    assert 0.5 < alone.figures["gender"]["probe_auc"] < 1
    for one in in_lock_step(lambda rank, reduce: train(parts[rank], Workers(rank, 2, all_reduce=reduce))):
        for name, figures in alone.figures.items():
            assert one.figures[name] == pytest.approx(figures, rel=1e-4)


def test_a_prompt_that_writes_the_value_is_noticed():
    """The personal prompts of gender lie far apart in what is kept; those of gender+age are as they start."""
    trainer = make_trainer()
    direction = torch.randn(small.WIDTH, generator=torch.Generator().manual_seed(0))
    trainer.kept["pack.personal"][0, 0], trainer.kept["pack.personal"][0, 1] = 3 * direction, -3 * direction
    before = {name: tensor.clone() for name, tensor in trainer.method.own_parameters().items()}
    trainer.finish()
    backbone, gender, both = (trainer.figures[name] for name in ("none", "gender", "gender+age"))
    assert gender["auc/gender"] > 0.95 > backbone["auc/gender"]
    assert gender["errors_above/gender"] > BEYOND_CHANCE
    assert (gender["written"], both["written"]) == (1, 0)
    assert "auc/age" not in gender  # not selected
    assert all(both[f"errors_above/{name}"] < BEYOND_CHANCE for name in ("gender", "age"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.method.own_parameters().items())


@pytest.mark.parametrize("make", [small.pfrec, small.eliminators], ids=["pfrec", "eliminator"])
def test_adapters_are_trained_without_prompts(make):
    shape = {"num_prompts": 0, "personal_prompt": False, "transport_units": 0}
    trainer, batches = make(shape=shape, adversary={"generator_lr": 1e-2})
    trainer.run(batches(0))
    users = held_out_users()
    history, values = torch.from_numpy(users.history), torch.from_numpy(users.attribute_index)
    vectors = trainer.method.user_vectors(history, values)
    assert (vectors - trainer.method.backbone.user_vectors(history)).abs().amax((1, 2)).min() > 1e-3
    assert torch.equal(vectors, trainer.method.user_vectors(history, (values + 1) % 2))  # the values are not read
    weights, _ = trainer.take_outputs()["eliminators.safetensors"]
    assert weights["pack.prompts"].numel() == weights["pack.personal"].numel() == 0


@pytest.mark.parametrize("known", [0, 1])
def test_too_few_users_to_probe_are_refused_before_the_first_step(known):
    users = held_out_users()
    values = users.attribute_index.copy()
    values[known:, 1] = -1
    trainer, batches = small.pfrec(replace(users, attribute_index=values))
    with pytest.raises(UserError, match=rf"^attribute 'age': of the {USERS} users held out of training too few have"):
        trainer.run(batches(0))
    trainer, batches = small.pfrec(replace(users, attribute_index=values), pack=[("gender",)])
    trainer.run(batches(0), until=3)


def test_diverged_training_is_refused_before_anything_is_kept():
    trainer, batches = small.pfrec(adversary={"generator_lr": 1e30})
    with pytest.raises(Diverged, match=r"lower adversary\.generator_lr \(1e30\) or adversary\.weight \(1\)"):
        trainer.run(batches(0))
    assert trainer.take_outputs() == {}


def test_probe_is_fitted_on_all_users_and_reads_those_held_out():
    trainer, _ = small.pfrec()
    users = held_out_users()
    held_out = np.arange(USERS) % 3 == 0
    data = replace(trainer.data, prefixes=small.prefixes_of(users.only(held_out)))
    trainer = PFRecTrainer(trainer.config, PAIR, data)
    assert len(trainer.probed.keys) == (~held_out).sum() + 3 * held_out.sum()
    assert set(trainer.unseen.tolist()) == set(users.keys[held_out].tolist())
    read: list[tuple[int, ProbeScores]] = []

    def only(scores: ProbeScores, keys: np.ndarray, only: Any = ProbeScores.only) -> ProbeScores:
        read.append((len(scores.keys), only(scores, keys)))
        return read[-1][1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProbeScores, "only", only)
        aucs = trainer.probe()
    assert aucs == [read[0][1].auc, max(read[1][1].auc, read[2][1].auc)]
    assert {size for size, _ in read} == {len(trainer.probed.keys)}
    assert {key for _, of in read for key in of.keys.tolist()} == set(trainer.unseen.tolist())

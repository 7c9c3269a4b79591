"""Trainer of eliminators: settings, kept weights, two workers against one."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mtrec_ray.combinations import Combination
from mtrec_ray.models.discriminators import value_weights
from mtrec_ray.models.eliminators import StackedEliminators
from mtrec_ray.streams.sequences import HeldOutUsers
from mtrec_ray.trainers import eliminators
from mtrec_ray.trainers.eliminators import EliminatorTrainer
from mtrec_ray.workers import Workers
from tests.steps.cases import in_lock_step
from tests.trainers import small
from tests.trainers.small import PAIR, USERS, VALUE_COUNTS, held_out_users


def make_trainer(*args: Any, **settings: Any) -> EliminatorTrainer:
    return small.eliminators(*args, **{"transport": {"passes": 4, "later_passes": 2}} | settings)[0]


def test_game_settings_come_from_the_config():
    adversary = {"weight": 0.7, "generator_lr": 1e-4, "averaging": 0.9, "class_power": 1.0}
    game = make_trainer(adversary=adversary).game
    rates = [optimizer.defaults["lr"] for optimizer in (game.generator_optimizer, game.discriminator_optimizer)]
    assert (game.weight, rates, game.columns) == (0.7, [1e-4, 1e-3], 2)
    assert torch.equal(game.value_weights, value_weights(VALUE_COUNTS, power=1.0))


def test_ndcg_floor_follows_the_most_leaked_attribute(monkeypatch):
    monkeypatch.setattr(eliminators, "probe_leakage", lambda *_: {"gender": 0.9, "age": 0.1})
    pack: list[Combination] = [("gender",), ("age",), ("gender", "age")]
    trainer = make_trainer(pack=pack, optim={"min_ndcg_ratio": 0.95, "leakage_budget": 0.5})
    backbone = trainer.figures["none"]["ndcg"]
    assert backbone > 0
    expected = [1 - 0.5 * 0.9**2, 0.95, 1 - 0.5 * 0.9**2]
    assert [floor / backbone for floor in floors(trainer)] == pytest.approx(expected)


def floors(trainer: EliminatorTrainer) -> list[float]:
    return [trainer.figures[name]["ndcg_floor"] for name in trainer.names]


def set_floors(trainer: EliminatorTrainer, *floors: float) -> None:
    for name, floor in zip(trainer.names, floors, strict=True):
        trainer.figures[name]["ndcg_floor"] = floor


def set_weights(trainer: EliminatorTrainer) -> None:
    """All own weights: 1 in the average, 2 in what is trained, 0 in what is kept so far, which is accurate."""
    for name in trainer.names:
        trainer.figures[name]["ndcg"] = 1.0
    live, average = trainer.method.own_parameters(), trainer.averaged.own_parameters()
    with torch.no_grad():
        for name, parameter in live.items():
            parameter.fill_(2.0)
            if average[name] is not parameter:
                average[name].fill_(1.0)
    trainer.kept = {name: torch.zeros_like(parameter) for name, parameter in live.items() if parameter.requires_grad}


@pytest.mark.parametrize("above", [True, False])
def test_averaged_weights_at_or_above_the_floor_are_kept(monkeypatch, above):
    trainer = make_trainer()
    set_weights(trainer)
    trainer.next_step = 7
    ndcg = [floors(trainer)[0] - (0.0 if above else 1e-9), 1.0]
    monkeypatch.setattr(trainer, "validate", lambda: ndcg)
    trainer.keep_accurate()
    for name, tensor in trainer.kept.items():
        assert tensor[0].unique().tolist() == [float(above)], name
        assert tensor[1].unique().tolist() == [1.0], name
    assert trainer.figures["gender"]["ndcg"] == (ndcg[0] if above else 1.0)
    assert trainer.figures["gender+age"]["ndcg"] == 1.0
    assert [trainer.figures[name]["step"] for name in ("gender", "gender+age")] == [7.0 * above, 7.0]


def test_more_accurate_weights_below_the_floor_are_kept(monkeypatch):
    """A filter starts as a random layer, which must not be its result."""
    trainer = make_trainer(method="filter", transport={}, pack=[("gender",), ("age",)])
    measured = iter([[0.05, 0.05], [0.04, 0.3], [0.3, float("nan")], [0.2, 0.31]])
    monkeypatch.setattr(trainer, "validate", lambda: next(measured))
    set_floors(trainer, 0.5, 0.5)
    trainer.start()
    kept = []
    for step in (1, 2, 3):
        trainer.next_step = step
        with torch.no_grad():
            for parameter in trainer.averaged.own_parameters().values():
                parameter.fill_(step)
        trainer.keep_accurate()
        kept.append([trainer.figures[name]["step"] for name in ("gender", "age")])
    assert kept == [[0, 1], [2, 1], [2, 3]]
    assert [trainer.kept["inner"][k].unique().tolist() for k in range(2)] == [[2.0], [3.0]]
    assert [trainer.figures[name]["ndcg"] for name in ("gender", "age")] == [0.3, 0.31]


@pytest.mark.parametrize("above", [True, False])
def test_single_combination_is_kept_by_its_floor(monkeypatch, above):
    trainer = make_trainer(pack=PAIR[:1], method="fine_tuning", transport={})
    set_weights(trainer)
    monkeypatch.setattr(trainer, "validate", lambda: [floors(trainer)[0] - (0.0 if above else 1e-9)])
    trainer.keep_accurate()
    assert {value for tensor in trainer.kept.values() for value in tensor.unique().tolist()} == {float(above)}


def test_histories_of_a_user_share_a_fold_of_the_transport(monkeypatch):
    folds: dict[int, set[int]] = {}

    def fit(pack: Any, vectors: Tensor, values: Tensor, user: Tensor, fold: Tensor, *_: Any, **__: Any) -> None:
        for one, its_fold in zip(user.tolist(), fold.tolist(), strict=True):
            folds.setdefault(one, set()).add(its_fold)

    users = held_out_users()
    monkeypatch.setattr(StackedEliminators, "fit_transport", fit)
    make_trainer(users).fit_transport()
    assert len(folds) == USERS
    assert {len(of_user) for of_user in folds.values()} == {1}
    assert len(set.union(*folds.values())) > 1


def two_parts() -> list[HeldOutUsers]:
    """A third of the users for the first worker, the others for the second."""
    users = held_out_users()
    return [users.only(np.arange(USERS) % 3 == 0), users.only(np.arange(USERS) % 3 > 0)]


def test_two_workers_keep_the_same_weights_as_one():
    """The second combination's floor cannot be reached at the validation."""
    users, parts = held_out_users(), two_parts()

    def train(users: HeldOutUsers, workers: Workers | None) -> EliminatorTrainer:
        trainer = make_trainer(users, workers)
        set_floors(trainer, 0.0, 0.0)
        trainer.start()
        trainer.next_step = 5
        set_floors(trainer, 0.0, 1.0)
        trainer.fit_transport()
        trainer.keep_accurate()
        return trainer

    alone = train(users, None)
    assert alone.figures["gender"]["ndcg"] > 0
    before = make_trainer(users).method.own_parameters()
    assert any(not torch.allclose(tensor, before[name]) for name, tensor in alone.kept.items())
    for one in in_lock_step(lambda rank, reduce: train(parts[rank], Workers(rank, 2, all_reduce=reduce))):
        for name, figures in alone.figures.items():
            assert one.figures[name] == pytest.approx(figures, rel=1e-4)
        assert one.kept.keys() == alone.kept.keys()
        for name, tensor in one.kept.items():
            torch.testing.assert_close(tensor, alone.kept[name], rtol=1e-3, atol=1e-4, msg=name)


def test_two_workers_have_the_floors_of_one():
    parts, optim = two_parts(), {"min_ndcg_ratio": 1.0, "leakage_budget": 1.0}
    alone = make_trainer(optim=optim)
    assert floors(alone)[0] < 0.99 * alone.figures["none"]["ndcg"]  # gender leaks
    for one in in_lock_step(
        lambda rank, reduce: make_trainer(parts[rank], Workers(rank, 2, all_reduce=reduce), optim=optim)
    ):
        assert floors(one) == pytest.approx(floors(alone), rel=1e-6)


@pytest.mark.parametrize("method", ["eliminator", "filter", "fine_tuning"])
def test_vectors_of_kept_weights_are_probed_in_the_end(monkeypatch, method):
    """Those of untrained weights, which are kept, though others are trained by then."""
    pack: list[Combination] = [("gender",)]
    settings: dict[str, Any] = {} if method == "eliminator" else {"transport": {}}
    trainer, batches = small.eliminators(pack=pack, method=method, **settings)
    monkeypatch.setattr(trainer, "keep_accurate", dict)
    trainer.run(batches(0))
    gender = trainer.figures["gender"]
    assert 0 < trainer.figures["none"]["auc/gender"] < 1
    assert {"auc/gender", "errors_above/gender", "written"} <= gender.keys()
    trained = {name: tensor.clone() for name, tensor in trainer.method.own_parameters().items()}
    history, values = (torch.from_numpy(of) for of in (held_out_users().history, held_out_users().attribute_index))
    kept = trainer._kept_vectors(history, values)
    assert not torch.allclose(kept, trainer.method.user_vectors(history, values))
    if method == "fine_tuning":  # untrained, it is the backbone
        torch.testing.assert_close(kept[0], trainer.data.backbone.user_vectors(history))
        assert gender["written"] == gender["errors_above/gender"] == 0
    assert all(torch.equal(tensor, trained[name]) for name, tensor in trainer.method.own_parameters().items())

"""One pack in training, without a lake: what its game is given, what is kept of it, and two workers against one."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mtrec_ray.combinations import Combination, combination_name
from mtrec_ray.config import validate_config
from mtrec_ray.models.discriminators import value_weights
from mtrec_ray.models.eliminators import StackedEliminators
from mtrec_ray.models.sequential import SequentialBackbone, SequentialConfig
from mtrec_ray.steps.adversary import GameSettings
from mtrec_ray.streams.crops import SequencePlan
from mtrec_ray.streams.held_out import HeldOutUsers, Prefixes
from mtrec_ray.streams.sequences import SequenceConfig
from mtrec_ray.trainers import workers
from mtrec_ray.trainers.eliminators_config import EliminatorsConfig
from mtrec_ray.training import pack_trainee
from mtrec_ray.training.eliminators_run import EliminatorsRecord
from mtrec_ray.training.pack_trainee import PackTrainee, make_pack_trainee
from tests.steps.cases import LockStep

U, L, D, NUM_TITLES, PER_USER = 60, 6, 16, 40, 3
ATTRIBUTES = {"gender": ["F", "M"], "age": ["18", "25", "35"]}
VALUE_COUNTS = [[9, 4], [1, 16, 4]]
PAIR: list[Combination] = [("gender",), ("gender", "age")]


def make_users() -> HeldOutUsers:
    """Women and men watch from two halves of the catalogue more often than not, and each has watched ten titles."""
    rng = np.random.default_rng(0)
    values = np.stack([rng.integers(0, len(names), U) for names in ATTRIBUTES.values()], 1)
    watched = np.stack([rng.permutation(NUM_TITLES)[:10] for _ in range(U)])
    half = np.where(rng.random(watched.shape) < 0.8, values[:, :1], rng.integers(0, 2, watched.shape))
    watched = watched // 2 + half * (NUM_TITLES // 2)
    return HeldOutUsers(
        keys=rng.integers(0, 2**63, U).astype(np.uint64),
        territory=np.zeros(U, dtype=np.int32),
        attribute_index=values,
        audit_split=np.zeros(U, dtype=bool),
        history=watched[:, :L],
        target=watched[:, L],
        other_titles=np.delete(watched, L, axis=1).ravel(),
        other_counts=np.full(U, 9),
    )


def prefixes_of(users: HeldOutUsers) -> Prefixes:
    """Histories that lack their last events, moment by moment as `read_prefixes` gives them."""
    histories = [np.where(np.arange(L) < L - moment, users.history, -1) for moment in range(PER_USER)]
    return Prefixes(
        keys=np.tile(users.keys, PER_USER),
        attribute_index=np.tile(users.attribute_index, (PER_USER, 1)),
        history=np.concatenate(histories),
    )


def make_trainee(
    users: HeldOutUsers, rank: int = 0, world_size: int = 1, pack: list[Combination] = PAIR, **settings: Any
) -> PackTrainee:
    document = {"backbone": "bb", "name": "el", "transport": {"passes": 4, "later_passes": 2}}
    record = EliminatorsRecord(
        status="training",
        config=validate_config(EliminatorsConfig, document | settings),
        lake_hash="",
        backbone_hash="",
        attributes=ATTRIBUTES,
        packs={"pack000": pack},
    )
    backbone = SequentialBackbone(SequentialConfig(NUM_TITLES, history=L, width=D))
    backbone.init_weights(torch.Generator().manual_seed(0))
    backbone.eval().requires_grad_(False)
    plan = SequencePlan(
        lake_hash="",
        sequences=SequenceConfig(),
        length=L,
        train_split_only=True,
        users=U,
        positions=U * L,
        crops_per_bucket=[U],
        value_counts=VALUE_COUNTS,
    )
    device = torch.device("cpu")
    return make_pack_trainee(record, "pack000", backbone, plan, device, users, rank, world_size)


def test_the_game_is_played_by_the_configs_rules():
    adversary = {
        "weight": 0.7,
        "discriminator_steps": 2,
        "discriminator_width": 24,
        "columns": 3,
        "class_power": 0.25,
        "generator_lr": 1e-4,
        "discriminator_lr": 5e-3,
        "l2": 1e-5,
        "averaging": 0.9,
    }
    game = make_trainee(make_users(), adversary=adversary).game
    assert game.config == GameSettings(
        weight=0.7,
        discriminator_steps=2,
        columns=3,
        generator_lr=1e-4,
        discriminator_lr=5e-3,
        l2=1e-5,
        average=0.9,
    )
    assert torch.equal(game.weights, value_weights(VALUE_COUNTS, power=0.25))
    assert 24 in {size for tensor in game.discriminators.parameters() for size in tensor.shape}


def test_the_bar_of_a_combination_is_that_of_what_is_told_most(monkeypatch):
    monkeypatch.setattr(pack_trainee, "probe_leakage", lambda *_: {"gender": 0.9, "age": 0.1})
    pack: list[Combination] = [("gender",), ("age",), ("gender", "age")]
    trainee = make_trainee(make_users(), pack=pack, optim={"min_ndcg_ratio": 0.95, "leakage_budget": 0.5})
    backbone = trainee.figures["val/ndcg/none"]
    assert backbone > 0
    expected = [1 - 0.5 * 0.9**2, 0.95, 1 - 0.5 * 0.9**2]
    assert [trainee.bars[combination] / backbone for combination in pack] == pytest.approx(expected)


def set_weights(trainee: PackTrainee) -> None:
    """All own weights: 1 in the average, 2 in what is trained, 0 in what is kept so far, which is accurate."""
    trainee.figures |= {f"val/ndcg/{combination_name(combination)}": 1.0 for combination in trainee.bars}
    live, average = trainee.method.own_parameters(), trainee.game.average.module.own_parameters()
    with torch.no_grad():
        for name, parameter in live.items():
            parameter.fill_(2.0)
            if average[name] is not parameter:
                average[name].fill_(1.0)
    trainee.kept = {name: torch.zeros_like(parameter) for name, parameter in live.items() if parameter.requires_grad}


@pytest.mark.parametrize("above", [True, False])
def test_a_look_keeps_the_average_of_the_combinations_above_their_bars(monkeypatch, above):
    trainee = make_trainee(make_users())
    set_weights(trainee)
    trainee.next_step = 7
    ndcg = [trainee.bars[PAIR[0]] - (0.0 if above else 1e-9), 1.0]
    monkeypatch.setattr(trainee, "_validate", lambda users: ndcg)
    trainee.look(make_users())
    for name, tensor in trainee.kept.items():
        assert tensor[0].unique().tolist() == [float(above)], name
        assert tensor[1].unique().tolist() == [1.0], name
    assert trainee.figures["val/ndcg/gender"] == (ndcg[0] if above else 1.0)
    assert trainee.figures["val/ndcg/gender+age"] == 1.0
    assert [trainee.figures[f"step/{name}"] for name in ("gender", "gender+age")] == [7.0 * above, 7.0]


def test_below_its_bar_what_is_more_accurate_is_kept(monkeypatch):
    """A filter begins as a random layer; that must not be what is left of it."""
    trainee, users = (
        make_trainee(make_users(), method="filter", transport={}, pack=[("gender",), ("age",)]),
        make_users(),
    )
    looks = iter([[0.05, 0.05], [0.04, 0.3], [0.3, float("nan")], [0.2, 0.31]])
    monkeypatch.setattr(trainee, "_validate", lambda users: next(looks))
    trainee.bars = dict.fromkeys(trainee.bars, 0.5)
    trainee.begin(prefixes_of(users), users, 0, 1)
    kept = []
    for step in (1, 2, 3):
        trainee.next_step = step
        with torch.no_grad():
            for parameter in trainee.game.average.module.own_parameters().values():
                parameter.fill_(step)
        trainee.look(users)
        kept.append([trainee.figures[f"step/{name}"] for name in ("gender", "age")])
    assert kept == [[0, 1], [2, 1], [2, 3]]
    assert [trainee.kept["inner"][k].unique().tolist() for k in range(2)] == [[2.0], [3.0]]
    assert [trainee.figures[f"val/ndcg/{name}"] for name in ("gender", "age")] == [0.3, 0.31]


@pytest.mark.parametrize("above", [True, False])
def test_a_combination_alone_is_kept_or_not_by_the_same_rule(monkeypatch, above):
    trainee = make_trainee(make_users(), pack=PAIR[:1], method="fine_tuning", transport={})
    set_weights(trainee)
    monkeypatch.setattr(trainee, "_validate", lambda users: [trainee.bars[PAIR[0]] - (0.0 if above else 1e-9)])
    trainee.look(make_users())
    assert {value for tensor in trainee.kept.values() for value in tensor.unique().tolist()} == {float(above)}


def test_all_histories_of_a_user_are_in_one_fold_of_the_map(monkeypatch):
    folds: dict[int, set[int]] = {}

    def fit(pack: Any, vectors: Tensor, values: Tensor, user: Tensor, fold: Tensor, *_: Any, **__: Any) -> None:
        for one, its_fold in zip(user.tolist(), fold.tolist(), strict=True):
            folds.setdefault(one, set()).add(its_fold)

    users = make_users()
    monkeypatch.setattr(StackedEliminators, "fit_transport", fit)
    make_trainee(users).fit_transport(prefixes_of(users), 0, 1)
    assert len(folds) == U
    assert {len(of_user) for of_user in folds.values()} == {1}
    assert len(set.union(*folds.values())) > 1


@pytest.fixture
def in_lock_step(monkeypatch) -> Callable[[Callable[[int], PackTrainee]], list[PackTrainee]]:
    """Run `work(rank)` of two workers that are threads, and sum over them where workers do."""

    def run(work: Callable[[int], PackTrainee]) -> list[PackTrainee]:
        lock_step, here = LockStep(2), threading.local()

        def all_reduce(tensor: Tensor) -> Tensor:
            return here.reducer(tensor)

        def work_here(rank: int) -> PackTrainee:
            here.reducer = lock_step.reducer(rank)
            return work(rank)

        for module in (workers, pack_trainee):
            monkeypatch.setattr(module, "all_reduce", all_reduce)
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(work_here, range(2)))

    return run


def test_two_workers_fit_validate_and_keep_as_one(in_lock_step):
    """One has a third of the users; the second combination's bar is out of reach at the look."""
    users = make_users()
    parts = [users.only(np.arange(U) % 3 == 0), users.only(np.arange(U) % 3 > 0)]

    def train(users: HeldOutUsers, rank: int, world_size: int) -> PackTrainee:
        trainee, seen = make_trainee(users, rank, world_size), prefixes_of(users)
        trainee.bars = dict.fromkeys(trainee.bars, 0.0)
        trainee.begin(seen, users, rank, world_size)
        trainee.next_step, trainee.bars[PAIR[1]] = 5, 1.0
        trainee.fit_transport(seen, rank, world_size)
        trainee.look(users)
        return trainee

    alone = train(users, 0, 1)
    assert alone.figures["val/ndcg/gender"] > 0
    before = make_trainee(users).method.own_parameters()
    assert any(not torch.allclose(tensor, before[name]) for name, tensor in alone.kept.items())
    for one in in_lock_step(lambda rank: train(parts[rank], rank, 2)):
        assert one.figures == pytest.approx(alone.figures, rel=1e-4)
        assert one.kept.keys() == alone.kept.keys()
        for name, tensor in one.kept.items():
            torch.testing.assert_close(tensor, alone.kept[name], rtol=1e-3, atol=1e-4, msg=name)


def test_two_workers_set_the_same_bars_as_one(in_lock_step):
    users = make_users()
    parts = [users.only(np.arange(U) % 3 == 0), users.only(np.arange(U) % 3 > 0)]
    optim = {"min_ndcg_ratio": 1.0, "leakage_budget": 1.0}
    alone = make_trainee(users, optim=optim)
    assert alone.bars[PAIR[0]] < 0.99 * alone.figures["val/ndcg/none"]  # gender is told
    for one in in_lock_step(lambda rank: make_trainee(parts[rank], rank, 2, optim=optim)):
        assert one.figures == pytest.approx(alone.figures, rel=1e-6)
        assert one.bars == pytest.approx(alone.bars, rel=1e-6)

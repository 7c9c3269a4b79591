"""Small trainers of all three models, built without a lake or Ray."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from mtrec_ray.combinations import Combination
from mtrec_ray.config import validate_config
from mtrec_ray.models.sequential import SequentialBackbone
from mtrec_ray.models.shapes import SequentialConfig
from mtrec_ray.models.two_tower import TwoTowerConfig
from mtrec_ray.streams.crops import Prefixes, SequenceBatch
from mtrec_ray.streams.reader import StepRows
from mtrec_ray.streams.schedule import Schedule
from mtrec_ray.streams.scored_users import ScoringChunk
from mtrec_ray.streams.sequences import HeldOutUsers
from mtrec_ray.trainers.adversarial import EliminatorData
from mtrec_ray.trainers.backbone import BackboneData, BackboneTrainer
from mtrec_ray.trainers.backbone_config import BackboneConfig
from mtrec_ray.trainers.eliminators import EliminatorTrainer
from mtrec_ray.trainers.eliminators_config import EliminatorsConfig
from mtrec_ray.trainers.pfrec import PFRecTrainer
from mtrec_ray.trainers.propensity import PropensityData, PropensityTrainer
from mtrec_ray.trainers.propensity_config import PropensityConfig
from mtrec_ray.workers import Workers

USERS, LENGTH, WIDTH, TITLES = 60, 6, 8, 40
STEPS_PER_EPOCH = 3
ATTRIBUTES = {"gender": 2, "age": 3}
VALUE_COUNTS = [[9, 4], [1, 16, 4]]
PAIR: list[Combination] = [("gender",), ("gender", "age")]
Made = tuple[Any, Callable[[int], Iterator[Any]]]
"""A trainer, and its batches from a global step on."""


def propensity(**settings: Any) -> Made:
    """Two epochs over the window, one over a day, two territory groups."""
    document = {"lake": "lake", "name": "p", "model": {"d": WIDTH}, "optim": {"epochs": 2, "lr": 1e-2}}
    config = validate_config(PropensityConfig, document | settings)
    rng = np.random.default_rng(0)
    schedule = Schedule(((USERS,), (USERS,)), (STEPS_PER_EPOCH, STEPS_PER_EPOCH), (2, 1), seed=0, lanes=1)
    validation = bool(config.sample.validation_fraction)
    data = PropensityData(
        model=TwoTowerConfig(WIDTH, WIDTH, d=WIDTH, num_groups=2, discoveries=(90, 9), group_block="hierarchical"),
        learning_rates=(1e-2, 1e-2, 1e-2),
        group_of_territory=[0, 1],
        titles=rng.normal(size=(TITLES, WIDTH)).astype(np.float16),
        schedule=schedule,
        days=(0, 1),
        validate_at=schedule.epoch_ends() if validation else frozenset(),
        validation_users=lambda period: [validation_chunk(territory) for territory in (0, 1)],
        num_bootstrap=10,
    )

    def batches(step: int) -> Iterator[StepRows]:
        return (pair_rows(number) for number in range(step, schedule.num_steps))

    return PropensityTrainer(config, data), batches


def backbone(**settings: Any) -> Made:
    """Four epochs of a SASRec, validated every second one."""
    document = {"lake": "lake", "name": "b", "model": {"width": WIDTH, "history": LENGTH}}
    document |= {"optim": {"epochs": 4, "evaluate_every": 2, "num_negatives": 8}}
    config = validate_config(BackboneConfig, document | settings)
    schedule = Schedule(((USERS,),), (STEPS_PER_EPOCH,), (config.optim.epochs,), seed=0, lanes=1)
    return BackboneTrainer(config, BackboneData(TITLES, schedule, held_out_users())), sequence_batches(schedule)


def eliminators(
    users: HeldOutUsers | None = None, workers: Workers | None = None, pack: list[Combination] = PAIR, **settings: Any
) -> Made:
    """Four epochs of two combinations, validated every second one."""
    document = {"backbone": "b", "name": "e", "transport": {"passes": 2, "later_passes": 1}, "optim": {"epochs": 4}}
    config, users = validate_config(EliminatorsConfig, document | settings), users or held_out_users()
    data = eliminator_data(users, epochs=4)
    return EliminatorTrainer(config, pack, data, workers=workers), sequence_batches(data.schedule)


def pfrec(
    users: HeldOutUsers | None = None,
    workers: Workers | None = None,
    pack: list[Combination] = PAIR,
    epochs: int = 4,
    **settings: Any,
) -> Made:
    """Paper B's eliminators of two combinations, probed on all users after each epoch."""
    document = {"backbone": "b", "name": "p", "method": "pfrec", "optim": {"epochs": epochs}}
    config, users = validate_config(EliminatorsConfig, document | settings), users or held_out_users()
    data = eliminator_data(users, epochs)
    return PFRecTrainer(config, pack, data, workers), sequence_batches(data.schedule)


def eliminator_data(users: HeldOutUsers, epochs: int) -> EliminatorData:
    model = SequentialBackbone(SequentialConfig(num_titles=TITLES, history=LENGTH, width=WIDTH))
    model.init_weights(torch.Generator().manual_seed(0))
    schedule = Schedule(((USERS,),), (STEPS_PER_EPOCH,), (epochs,), seed=0, lanes=1)
    frozen = model.eval().requires_grad_(False)
    return EliminatorData(frozen, ATTRIBUTES, VALUE_COUNTS, schedule, users, prefixes_of(users))


MAKERS: dict[str, Callable[..., Made]] = {
    "propensity": propensity,
    "backbone": backbone,
    "eliminators": eliminators,
    "pfrec": pfrec,
}


def pair_rows(step: int) -> StepRows:
    rng = np.random.default_rng(step)
    counts = rng.integers(1, 5, size=10)
    pairs = int(counts.sum())
    return StepRows(
        step=step,
        embedding=rng.normal(size=(10, WIDTH)).astype(np.float16),
        territory=rng.integers(0, 2, size=10).astype(np.int32),
        offsets=np.concatenate([[0], counts.cumsum()]),
        title_index=rng.integers(0, TITLES, size=pairs).astype(np.int32),
        label=rng.random(pairs) < 0.3,
        prior=np.zeros(pairs, np.float16),
    )


def validation_chunk(territory: int) -> ScoringChunk:
    rng = np.random.default_rng(territory)
    return ScoringChunk(
        territory=territory,
        rows=np.arange(10),
        keys=rng.integers(0, 2**63, size=10).astype(np.uint64),
        embedding=rng.normal(size=(10, WIDTH)).astype(np.float16),
        activity=np.zeros(10, dtype=np.int64),
        seen=np.zeros((10, TITLES), dtype=bool),
        title_index=np.arange(TITLES, dtype=np.int32),
        candidates=np.ones((10, TITLES), dtype=bool),
        labels=rng.random((10, TITLES)) < 0.2,
    )


def held_out_users() -> HeldOutUsers:
    """Women and men watch from two halves of the catalogue more often than not, and each has watched ten titles."""
    rng = np.random.default_rng(0)
    values = np.stack([rng.integers(0, size, USERS) for size in ATTRIBUTES.values()], 1)
    watched = np.stack([rng.permutation(TITLES)[:10] for _ in range(USERS)])
    half = np.where(rng.random(watched.shape) < 0.8, values[:, :1], rng.integers(0, 2, watched.shape))
    watched = watched // 2 + half * (TITLES // 2)
    return HeldOutUsers(
        keys=rng.integers(0, 2**63, USERS).astype(np.uint64),
        territory=np.zeros(USERS, dtype=np.int32),
        attribute_index=values,
        audit_split=np.zeros(USERS, dtype=bool),
        history=watched[:, :LENGTH],
        target=watched[:, LENGTH],
        target_time=np.zeros(USERS, dtype="datetime64[us]"),
        other_titles=np.delete(watched, LENGTH, axis=1).ravel(),
        other_counts=np.full(USERS, 9),
    )


def prefixes_of(users: HeldOutUsers) -> Prefixes:
    """Three of each history, which lack their last events, as `read_prefixes` gives them."""
    histories = [np.where(np.arange(LENGTH) < LENGTH - cut, users.history, -1) for cut in range(3)]
    values = np.tile(users.attribute_index, (3, 1))
    return Prefixes(keys=np.tile(users.keys, 3), attribute_index=values, history=np.concatenate(histories))


def sequence_batches(schedule: Schedule) -> Callable[[int], Iterator[SequenceBatch]]:
    def batch(step: int) -> SequenceBatch:
        rng = np.random.default_rng(step)
        titles = rng.integers(0, TITLES, size=(5, LENGTH + 1))
        return SequenceBatch(step, titles[:, :-1], titles[:, 1:], rng.integers(0, 2, size=(5, 2)))

    return lambda step: (batch(number) for number in range(step, schedule.num_steps))

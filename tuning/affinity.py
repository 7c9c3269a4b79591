"""Gradient affinity: which territories pull the shared towers in the same direction.

After TAG (Fifty et al. 2021) and Grad-TAG (Li et al. 2024): the projected gradient of the user tower's last layer,

    S_t = sum over pairs p of t of delta_p (A' v_p) (B' (h_p - mean h))',   delta = propensity - label

v are title vectors, h hidden activations of the user tower, A and B random (d, k). Negatives are expected, not drawn.
Centring h removes how popular titles are (adjusted Rand index of planted groups 1.0, without it 0.3 to 0.8).

Legend: `N` territories, `T` titles, `M` of them behind expected negatives, `U` users, `P` pairs, `k` sketch width.
"""

import copy
import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mtrec_ray.lake.bucket import Catalogue
from mtrec_ray.models.two_tower import TwoTower
from mtrec_ray.streams.plan import PairPlan
from mtrec_ray.streams.reader import StepRows, read_pairs, training_batches
from mtrec_ray.trainers.propensity import PropensityTrainer
from mtrec_ray.trainers.propensity_config import PropensityConfig
from mtrec_ray.training.propensity_run import new_propensity_run
from mtrec_ray.tuning.clustering import Evidence
from mtrec_ray.tuning.data import TrialCache, TrialData
from mtrec_ray.workers import Workers

CHECKPOINTS = (0.01, 0.02)  # fractions of a training run after which gradients are summed
SKETCH_WIDTH = 32
MAX_TITLES = 1000  # maximum number of titles behind expected negatives, drawn at random


@dataclass(frozen=True)
class ExpectedNegatives:
    """All titles that a row's territory offers, weighted by the probability of a draw."""

    rate: float  # probability that an offered title other than its positives is drawn for a row
    titles: Tensor  # (M,) int64 ascending titles that represent all T
    offered: Tensor  # (N, M) bool

    @staticmethod
    def of(rate: float, offer_mask: np.ndarray, generator: torch.Generator) -> "ExpectedNegatives":
        """From `offer_mask` (N, T): all titles, or MAX_TITLES drawn at random."""
        titles = torch.randperm(offer_mask.shape[1], generator=generator)[:MAX_TITLES].sort().values
        return ExpectedNegatives(rate, titles, torch.from_numpy(offer_mask)[:, titles])


class GradientSums:
    """Sums over the pairs of each territory under one model."""

    @torch.no_grad()
    def __init__(
        self, model: TwoTower, titles: Tensor, negatives: ExpectedNegatives, left: Tensor, right: Tensor
    ) -> None:
        """`model` in eval mode without group block, (T, d) title vectors, (d, k) projections A, B."""
        self.model, self.titles, self.negatives, self.right = model, titles, negatives, right
        self.projected = titles @ left  # (T, k)
        num_territories, width = len(negatives.offered), left.shape[1]
        self.outer = np.zeros((num_territories, width, width))  # sum of delta (A'v)(B'h)'
        self.left = np.zeros((num_territories, width))  # sum of delta A'v
        self.hidden = np.zeros(width)  # sum of B'h over user rows
        self.rows = 0

    @torch.no_grad()
    def add(self, rows: StepRows) -> None:
        """Add U users and P pairs of offered titles, and their expected negatives."""
        model, titles, negatives = self.model, self.titles, self.negatives
        own = model.one_hot_rows(torch.from_numpy(rows.territory.astype(np.int64)))
        hidden = model.user_tower.hidden(torch.from_numpy(rows.embedding), one_hot_rows=own)  # (U, d)
        users = model.user_tower.output(hidden)  # (U, d)
        user_rows = torch.from_numpy(_users_of_pairs(rows))
        title_rows = torch.from_numpy(rows.title_index.astype(np.int64))
        propensity = model.logits(users, titles[negatives.titles]).sigmoid_()  # (U, M)
        if len(negatives.titles) == len(titles):
            own = propensity[user_rows, title_rows]  # (P,)
        else:
            own = model.head((users[user_rows] * titles[title_rows]).sum(dim=1)).sigmoid()
        taken = negatives.rate * torch.from_numpy(is_first(rows)).to(own)
        delta = own * (1.0 - taken) - torch.from_numpy(rows.label).to(own)  # (P,)
        offered = negatives.offered[torch.from_numpy(rows.territory.astype(np.int64))]  # (U, M)
        each = negatives.rate * len(titles) / len(negatives.titles)
        pulls = (propensity * offered) @ self.projected[negatives.titles] * each  # (U, k)
        pulls.index_add_(0, user_rows, delta[:, None] * self.projected[title_rows])
        seen = hidden @ self.right  # (U, k)
        for index in np.unique(rows.territory).tolist():
            members = torch.from_numpy(np.flatnonzero(rows.territory == index))
            self.outer[index] += (pulls[members].t() @ seen[members]).numpy()
            self.left[index] += pulls[members].sum(dim=0).numpy()
        self.hidden += seen.sum(dim=0).numpy()
        self.rows += len(users)

    def centred(self) -> np.ndarray:
        """(N, k * k) S_t."""
        mean = self.hidden / max(1, self.rows)
        return (self.outer - self.left[:, :, None] * mean).reshape(len(self.outer), -1)


def gradient_evidence(config: PropensityConfig, data: TrialData) -> Evidence:
    """Evidence of a baseline after 1 and 2% of its steps, without a prior.

    From half of two or more buckets.
    """
    cache = TrialCache()
    trained = max(2, math.ceil(CHECKPOINTS[-1] * config.optim.epochs * len(data.buckets)))  # one pass over each
    plan, _ = cache.plan(replace(data, buckets=data.buckets[:trained]), config.sample)
    models = _models_at_checkpoints(config, data, plan, cache)
    width, d = min(SKETCH_WIDTH, config.model.d), config.model.d
    generator = torch.Generator().manual_seed(config.seed)
    left, right = (torch.randn(d, width, generator=generator) / width**0.5 for _ in range(2))
    period = plan.periods[0]
    mask = Catalogue.of(data.lake, period.start, period.end).offer_mask
    negatives = ExpectedNegatives.of(period.negative_rate / period.rows_per_user, mask, generator)
    embeddings = torch.from_numpy(data.lake.title_embeddings().copy())
    shared = negatives, left, right
    sums = [[GradientSums(model, model.title_vectors(embeddings), *shared) for model in models] for _ in range(2)]
    pairs = np.zeros((2, len(mask)))
    for number, bucket in enumerate(data.buckets[: max(2, len(data.buckets) // 2)]):
        rows, half = positives(bucket, data, plan), number % 2
        for one in sums[half]:
            one.add(rows)
        pairs[half] += expected_pairs(rows, negatives.rate, mask)
    halves = [np.concatenate([one.centred() for one in half], axis=1) for half in sums]
    return Evidence.centred(np.stack(halves), pairs)


def _models_at_checkpoints(
    config: PropensityConfig, data: TrialData, plan: PairPlan, cache: TrialCache
) -> list[TwoTower]:
    """The model at each checkpoint of a run that stops after the last one."""
    config = config.model_copy(update={"model": config.model.model_copy(update={"prior": False})})
    record, optim = new_propensity_run(config, data.lake, data.calendar), config.optim
    planned = sum(sampled > 0 for sampled in plan.sampled_per_bucket)
    epochs = max(1, round(optim.epochs * len(data.buckets) / planned))  # as many steps as on all buckets
    schedule = plan.schedule((epochs,), optim.batch_pairs, optim.lanes, config.seed)
    trained_on = record.data(data.lake, plan, schedule, Workers())
    trainer = PropensityTrainer(config, replace(trained_on, validate_at=frozenset()))
    batches = training_batches(data.lake, plan, schedule, 0, 1, reader=cache)
    models = []
    for fraction in CHECKPOINTS:
        trainer.run(batches, until=max(1, round(fraction * schedule.num_steps)))
        models.append(copy.deepcopy(trainer.model).eval())
    return models


def is_first(rows: StepRows) -> np.ndarray:
    """(P,) bool: False where a user's title came before, discovered in another month."""
    pair = _users_of_pairs(rows) << 32 | rows.title_index
    first = np.zeros(len(pair), dtype=bool)
    first[np.unique(pair, return_index=True)[1]] = True
    return first


def _users_of_pairs(rows: StepRows) -> np.ndarray:
    """(P,) int64 row of each pair's user."""
    return np.repeat(np.arange(len(rows.territory)), np.diff(rows.offsets))


def expected_pairs(rows: StepRows, rate: float, offer_mask: np.ndarray) -> np.ndarray:
    """(N,) pairs of each territory: `rows`, and others of the (N, T) offered titles at `rate`."""
    titles = np.bincount(_users_of_pairs(rows), weights=is_first(rows), minlength=len(rows.territory))  # (U,)
    expected = np.diff(rows.offsets) + rate * (offer_mask.sum(axis=1)[rows.territory] - titles)
    return np.bincount(rows.territory, weights=expected, minlength=len(offer_mask))


def positives(bucket: int, data: TrialData, plan: PairPlan) -> StepRows:
    """Every positive of a bucket's sampled users, as one step; a row has at least one."""
    period = plan.periods[0].model_copy(update={"negative_rate": 0.0})
    found = read_pairs(0, bucket, data.lake, None, plan.model_copy(update={"periods": [period]}))
    by_slot = np.argsort(found.slot_of_pair, kind="stable")
    slots, counts = np.unique(found.slot_of_pair, return_counts=True)
    users = found.rows[slots // period.rows_per_user]
    return StepRows(
        step=0,
        embedding=found.vectors[users, slots % period.rows_per_user],
        territory=found.bucket.territory[users],
        offsets=np.concatenate([[0], counts.cumsum()]),
        title_index=found.pairs.title_index[by_slot],
        label=found.pairs.label[by_slot],
        prior=np.zeros(len(by_slot), np.float16),
    )

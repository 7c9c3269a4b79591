"""Gradient affinity: sums equal autograd's gradient and find planted tastes."""

import itertools
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

import mtrec_ray.tuning.affinity
from mtrec_ray.config import validate_config
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.models.two_tower import TwoTower
from mtrec_ray.sources.synthetic import SyntheticConfig, SyntheticSource
from mtrec_ray.streams.plan import PairPlan
from mtrec_ray.streams.reader import BucketPairs, Pairs, StepRows
from mtrec_ray.trainers.propensity_config import PropensityConfig
from mtrec_ray.tuning.affinity import ExpectedNegatives, GradientSums, expected_pairs, gradient_evidence, positives
from mtrec_ray.tuning.data import TrialCache, TrialData
from tests.steps.cases import NUM_TITLES, ONE_HOT, TITLE_WIDTH, D, make_model, make_users
from tests.tuning.conftest import build_here, small_config

NUM_TERRITORIES, NUM_USERS = 4, 24
IDENTITY = torch.eye(D, dtype=torch.float64)
OFFERED = np.random.default_rng(2).random((NUM_TERRITORIES, NUM_TITLES)) < 0.7


def model_after_some_steps(**settings) -> TwoTower:
    """A baseline in float64 whose running statistics are not the initial ones."""
    model, generator = make_model(seed=3, **settings), torch.Generator().manual_seed(5)
    for tower in (model.user_tower, model.title_tower):
        tower.norm.running_mean.normal_(generator=generator)
        tower.norm.running_var.uniform_(0.5, 2.0, generator=generator)
    return model.eval()


def make_rows(seed: int = 0) -> StepRows:
    """Users of three of four territories, in any order; some without a pair."""
    rng = np.random.default_rng(seed)
    territory = rng.integers(0, NUM_TERRITORIES - 1, NUM_USERS).astype(np.int32)
    users = make_users(seed, rng.integers(0, 6, NUM_USERS), territory)
    embedding, titles = users["user_features"].astype(np.float16), users["title_index"].astype(np.int32)
    prior = np.zeros(len(titles), np.float16)
    return StepRows(0, embedding, territory, users["offsets"], titles, users["labels"].astype(bool), prior)


def part_of(rows: StepRows, start: int, stop: int) -> StepRows:
    pairs = slice(rows.offsets[start], rows.offsets[stop])
    return replace(
        rows,
        embedding=rows.embedding[start:stop],
        territory=rows.territory[start:stop],
        offsets=rows.offsets[start : stop + 1] - rows.offsets[start],
        title_index=rows.title_index[pairs],
        label=rows.label[pairs],
    )


def catalogue() -> Tensor:
    return torch.randn(NUM_TITLES, TITLE_WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def negatives_at(rate: float) -> ExpectedNegatives:
    return ExpectedNegatives.of(rate, OFFERED, torch.Generator().manual_seed(4))


def summed(
    model: TwoTower, batches: list[StepRows], left: Tensor = IDENTITY, right: Tensor = IDENTITY, rate: float = 0.3
) -> GradientSums:
    sums = GradientSums(model, model.title_vectors(catalogue()), negatives_at(rate), left, right)
    for rows in batches:
        sums.add(rows)
    return sums


def autograd_gradient(model: TwoTower, rows: StepRows, territory: int, rate: float) -> np.ndarray:
    """(d, d) gradient of a territory's loss on the user tower's last weights, over the scale.

    Offered titles are negatives of every user with a weight that makes them `rate` times as many as there are, and the
    pairs themselves are taken from among them.
    """
    own_territory = torch.from_numpy(rows.territory.astype(np.int64))
    users = model.user_outputs(torch.from_numpy(rows.embedding).double(), own_territory)
    titles = model.title_tower(catalogue()).detach()
    row = np.repeat(np.arange(NUM_USERS), np.diff(rows.offsets))
    own = rows.territory[row] == territory
    index = torch.from_numpy(rows.title_index[own].astype(np.int64))
    assert model.bias is not None
    logits = (users[torch.from_numpy(row[own])] * titles[index]).sum(dim=1) * model.scale + model.bias
    labels = torch.from_numpy(rows.label[own]).double()
    loss = F.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
    drawn = negatives_at(rate).titles
    cells = users[torch.from_numpy(rows.territory == territory)] @ titles[drawn].t() * model.scale + model.bias
    offered = torch.from_numpy(OFFERED[territory])[drawn]
    _, firsts = np.unique(np.stack([row[own], index]), axis=1, return_index=True)
    loss = loss + rate * (
        NUM_TITLES / len(drawn) * F.softplus(cells[:, offered]).sum() - F.softplus(logits[firsts]).sum()
    )
    (gradient,) = torch.autograd.grad(loss, model.user_tower.last)
    return gradient.numpy() / model.scale


@pytest.mark.parametrize("one_hot", [(), ONE_HOT], ids=["plain", "one-hot territory"])
@pytest.mark.parametrize(("rate", "max_titles"), [(0.0, 1000), (0.3, 1000), (0.3, 5)])
def test_sums_equal_autograds_gradient_of_each_territory(rate, max_titles, one_hot, monkeypatch):
    monkeypatch.setattr(mtrec_ray.tuning.affinity, "MAX_TITLES", max_titles)
    model, rows = model_after_some_steps(one_hot_of_territory=one_hot), make_rows()
    sums = summed(model, [rows], rate=rate)
    for territory in range(NUM_TERRITORIES - 1):
        expected = autograd_gradient(model, rows, territory, rate)
        assert np.abs(sums.outer[territory] - expected).max() < 1e-10 * np.abs(expected).max()
    assert (sums.outer[-1] == 0).all()


def test_a_title_discovered_in_two_months_is_removed_from_the_negatives_once():
    model, rows = model_after_some_steps(), make_rows()
    twice = replace(
        rows, offsets=2 * rows.offsets, title_index=np.repeat(rows.title_index, 2), label=np.repeat(rows.label, 2)
    )

    def added(rate: float) -> list[np.ndarray]:
        once, both = (summed(model, [of], rate=rate) for of in (rows, twice))
        pairs = expected_pairs(twice, rate, OFFERED) - expected_pairs(rows, rate, OFFERED)
        return [both.outer - once.outer, both.left - once.left, pairs]

    for found, without_negatives in zip(added(0.3), added(0.0), strict=True):
        np.testing.assert_allclose(found, without_negatives, rtol=1e-9, atol=1e-9)


def test_a_rate_of_one_adds_every_other_offered_title():
    model, rng = model_after_some_steps(), np.random.default_rng(6)
    territory = rng.integers(0, NUM_TERRITORIES, NUM_USERS).astype(np.int32)
    user, title = np.nonzero(OFFERED[territory])
    label = rng.random(len(user)) < 0.2

    def rows_of(chosen: np.ndarray) -> StepRows:
        offsets = np.searchsorted(user[chosen], np.arange(NUM_USERS + 1))
        titles = title[chosen].astype(np.int32)
        return replace(make_rows(), territory=territory, offsets=offsets, title_index=titles, label=label[chosen])

    every = np.ones(len(user), dtype=bool)
    np.testing.assert_array_equal(
        expected_pairs(rows_of(label), 1.0, OFFERED), expected_pairs(rows_of(every), 0.0, OFFERED)
    )
    drawn = summed(model, [rows_of(every)], rate=0.0)
    expected = summed(model, [rows_of(label)], rate=1.0)
    for name in ("outer", "left", "hidden"):
        np.testing.assert_allclose(getattr(expected, name), getattr(drawn, name), rtol=1e-9, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(0, NUM_USERS), max_size=5).map(sorted))
def test_sums_do_not_depend_on_batches(cuts):
    model, rows = model_after_some_steps(), make_rows()
    bounds = [0, *cuts, NUM_USERS]
    parts = [part_of(rows, start, stop) for start, stop in itertools.pairwise(bounds)]
    whole, apart = summed(model, [rows]), summed(model, parts)
    for name in ("outer", "left", "hidden"):
        np.testing.assert_allclose(getattr(apart, name), getattr(whole, name), rtol=1e-9, atol=1e-12)
    assert apart.rows == whole.rows == NUM_USERS


def test_projections_apply_to_both_sides_of_the_centred_gradient():
    model, rows = model_after_some_steps(), make_rows()
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal((D, 3)) for _ in range(2))
    sketch = summed(model, [rows], torch.from_numpy(left), torch.from_numpy(right)).centred()
    whole = summed(model, [rows]).centred().reshape(NUM_TERRITORIES, D, D)
    np.testing.assert_allclose(sketch.reshape(-1, 3, 3), left.T @ whole @ right, rtol=1e-9, atol=1e-12)


def test_centring_subtracts_the_mean_activation_of_all_rows():
    model, rows = model_after_some_steps(), make_rows()
    sums = summed(model, [rows])
    hidden = model.user_tower.hidden(torch.from_numpy(rows.embedding).double()).detach().numpy()
    np.testing.assert_allclose(sums.hidden / sums.rows, hidden.mean(axis=0))
    expected = sums.outer - sums.left[:, :, None] * hidden.mean(axis=0)
    np.testing.assert_allclose(sums.centred(), expected.reshape(NUM_TERRITORIES, -1))


def plan_and_data(lake: Lake) -> tuple[PairPlan, TrialData]:
    calendar = lake.manifest.calendar
    data = TrialData(lake, calendar, (0, 1, 2, 3), calendar.day_bounds(0), held_back=False)
    return TrialCache().plan(data, small_config(lake).sample)[0], data


def test_all_positives_of_the_sample_are_read(trial_lake):
    plan, data = plan_and_data(trial_lake)
    counts = np.zeros(len(plan.users), dtype=int)
    for bucket in data.buckets:
        rows = positives(bucket, data, plan)
        assert rows.label.all()
        counts += np.bincount(rows.territory, weights=np.diff(rows.offsets), minlength=len(counts)).astype(int)
    assert counts.tolist() == plan.periods[0].positives


def test_a_positive_has_the_embedding_of_its_fold(trial_lake, monkeypatch):
    plan, data = plan_and_data(trial_lake)
    plan = plan.model_copy(update={"periods": [plan.periods[0].model_copy(update={"rows_per_user": 2})]})
    territory, sampled, vectors = np.array([0, 1, 2]), np.array([0, 2]), np.arange(12.0).reshape(3, 2, 2)
    pairs = Pairs(np.array([0, 0, 2]), np.array([5, 6, 7]), np.zeros(3, dtype="datetime64[us]"))
    found = BucketPairs(SimpleNamespace(territory=territory), sampled, pairs, np.zeros(3), np.array([1, 0, 3]), vectors)  # pyright: ignore
    monkeypatch.setattr(mtrec_ray.tuning.affinity, "read_pairs", lambda *_: found)
    rows = positives(0, data, plan)
    assert rows.embedding.tolist() == [vectors[0, 0].tolist(), vectors[0, 1].tolist(), vectors[2, 1].tolist()]
    assert rows.territory.tolist() == [0, 0, 2]
    assert rows.title_index.tolist() == [6, 5, 7]
    assert rows.offsets.tolist() == [0, 1, 2, 3]


def test_planted_tastes_across_regions_are_found(tmp_path):
    settings: dict[str, Any] = {"users": 6000, "territories": 12, "titles": 200, "days": 60, "num_evaluation_days": 1}
    settings |= {"user_width": 24, "title_width": 24, "size_exponent": 0.5, "taste_groups": "shuffled"}
    lake = build_here(tmp_path / "lake", num_buckets=4, **settings)
    document = {"lake": lake.uri, "name": "affinity", "kind": "baseline", "model": {"d": 32}}
    document["optim"] = {"epochs": 4, "batch_pairs": 4096, "lr": 2e-3}
    calendar = lake.manifest.calendar
    data = TrialData(lake, calendar, (0, 1, 2, 3), calendar.day_bounds(0), held_back=False)
    evidence = gradient_evidence(validate_config(PropensityConfig, document), data)
    world = SyntheticSource(SyntheticConfig.model_validate(settings)).world
    assert adjusted_rand_score(world.taste_group, evidence.clusters(4)) >= 0.8
    assert adjusted_rand_score(world.taste_group, world.region) < 0.3


def test_evidence_is_of_a_model_without_a_prior(trial_lake):
    """Whose dot product starts at full strength, as no gain of zero is put before it."""
    embeddings = trial_lake.manifest.embeddings.model_copy(update={"interaction_width": 16})
    lake = Lake(trial_lake.uri, trial_lake.manifest.model_copy(update={"embeddings": embeddings}))
    _, data = plan_and_data(lake)
    found = [gradient_evidence(small_config(lake, model={"d": 16, "prior": prior}), data) for prior in (True, False)]
    assert np.array_equal(found[0].vectors, found[1].vectors)

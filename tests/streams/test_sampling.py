"""Samples and splits: decided by seeded hashes alone."""

import numpy as np
import pytest

from mtrec_ray.hashing import uniforms, user_keys
from mtrec_ray.streams.config import SampleConfig
from mtrec_ray.streams.sampling import TEST, TRAIN, VALIDATION, adaptive_rates, in_random_sample, split_of

KEYS = user_keys([f"user-{i}" for i in range(20_000)])


def test_uniforms_are_uniform_and_differ_between_salts():
    draw, other = uniforms(KEYS, "a", 1), uniforms(KEYS, "a", 2)
    counts = np.histogram(draw, bins=20, range=(0, 1))[0]
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(1000)
    assert abs(np.corrcoef(draw, other)[0, 1]) < 0.03


def test_split_fractions_are_as_configured_and_random_sample_holds_training_users_only():
    sample = SampleConfig(test_fraction=0.2, validation_fraction=0.1, random_fraction=0.5)
    split = split_of(KEYS, sample)
    fractions = np.bincount(split, minlength=3) / len(KEYS)
    assert fractions[[TRAIN, VALIDATION, TEST]] == pytest.approx([0.7, 0.1, 0.2], abs=0.01)
    chosen = in_random_sample(KEYS, sample)
    assert (split[chosen] == TRAIN).all()
    assert chosen.sum() / (split == TRAIN).sum() == pytest.approx(0.5, abs=0.02)


def test_sample_seed_and_not_the_order_moves_the_sample_but_not_the_test_users():
    one, two = SampleConfig(seed=1), SampleConfig(seed=2)
    assert (split_of(KEYS, one) == split_of(KEYS, two)).all()
    assert (in_random_sample(KEYS, one) != in_random_sample(KEYS, two)).any()
    assert (in_random_sample(KEYS[::-1], one)[::-1] == in_random_sample(KEYS, one)).all()


@pytest.mark.parametrize(
    ("active", "addable", "wanted", "tau", "added"),
    [
        ([4000, 1000], [2000, 500], 500, 1.0, [400, 100]),
        ([4000, 1000], [2000, 500], 500, 0.5, [1000 / 3, 500 / 3]),
        ([4000, 1000], [2000, 500], 500, 0.0, [250, 250]),
        ([1000, 1000, 0], [10, 500, 0], 200, 0.0, [10, 190, 0]),
        ([5, 5], [3, 4], 100, 1.0, [3, 4]),
        ([5, 5], [3, 4], 0, 1.0, [0, 0]),
    ],
    ids=["proportional", "between", "equal", "one has too few", "all have too few", "none wanted"],
)
def test_tau_moves_the_added_set_from_proportional_to_equal_within_the_addable(active, addable, wanted, tau, added):
    rates = adaptive_rates(np.array(active), np.array(addable), wanted, tau)
    assert (rates * addable).tolist() == pytest.approx(added, rel=1e-9)
    assert rates.max() <= 1


def test_alpha_zero_and_control_without_effect_are_errors():
    with pytest.raises(ValueError, match="alpha = 0"):
        SampleConfig(alpha=0)
    with pytest.raises(ValueError, match="no effect"):
        SampleConfig(upsample="control", active_fraction=0)

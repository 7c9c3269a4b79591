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


def test_sample_seed_moves_the_sample_but_not_the_test_users():
    one, two = SampleConfig(seed=1), SampleConfig(seed=2)
    assert (split_of(KEYS, one) == split_of(KEYS, two)).all()
    assert (in_random_sample(KEYS, one) != in_random_sample(KEYS, two)).any()


def test_order_of_users_does_not_matter():
    sample = SampleConfig()
    assert (in_random_sample(KEYS[::-1], sample)[::-1] == in_random_sample(KEYS, sample)).all()


@pytest.mark.parametrize(("tau", "expected"), [(1.0, [400, 100]), (0.0, [250, 250]), (0.5, [333.3, 166.7])])
def test_tau_moves_the_added_set_from_proportional_to_equal(tau, expected):
    active, addable = np.array([4000, 1000]), np.array([2000, 500])
    rates = adaptive_rates(active, addable, 500, tau)
    assert rates * addable == pytest.approx(expected, abs=0.1)


def test_territory_with_too_few_addable_users_passes_its_surplus_on():
    rates = adaptive_rates(np.array([1000, 1000, 0]), np.array([10, 500, 0]), 200, tau=0.0)
    assert (rates * [10, 500, 0]).tolist() == pytest.approx([10, 190, 0])


def test_more_wanted_than_there_are_takes_everyone():
    assert adaptive_rates(np.array([5, 5]), np.array([3, 4]), 100, 1.0).tolist() == [1, 1]


def test_no_upsampling_adds_nobody():
    assert adaptive_rates(np.array([5, 5]), np.array([3, 4]), 0, 1.0).tolist() == [0, 0]


def test_alpha_zero_and_control_without_effect_are_errors():
    with pytest.raises(ValueError, match="alpha = 0"):
        SampleConfig(alpha=0)
    with pytest.raises(ValueError, match="no effect"):
        SampleConfig(upsample="control", active_fraction=0)

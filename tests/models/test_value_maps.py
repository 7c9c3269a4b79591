"""Closed-form maps: equal means and covariances, nothing moved without evidence, odd data refused by none."""

import pytest
import torch
from torch import Tensor

from mtrec_ray.models.value_maps import (
    FOLDS,
    ValueMaps,
    ValueStatistics,
    fit_value_maps,
    transport_maps,
    unlabelled_map,
)

WIDTH = 6


def fit(points: Tensor, values: Tensor, num_values: int, per_user: int = 1) -> ValueMaps:
    user = torch.arange(len(values)) // per_user
    return fit_value_maps(points, values, user, user % FOLDS, num_values)


def moved(maps: ValueMaps, points: Tensor, values: Tensor) -> Tensor:
    return (maps.weight[values] @ points.double()[:, :, None])[:, :, 0] + maps.bias[values]


def two_groups(users: int, apart: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Value 1 is `apart` standard deviations away and twice as wide in one direction."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(2, (users,), generator=generator)
    points = torch.randn(users, WIDTH, generator=generator, dtype=torch.float64)
    points[values == 1, 0] += apart
    points[values == 1, 1] *= 1 + apart
    return points, values


def test_one_dimension_by_hand():
    """Standard deviations 1 and 3, half of the users each: the barycentre's is 2."""
    statistics = ValueStatistics(torch.tensor([5.0, 5.0]), torch.zeros(2, 1), torch.tensor([[[1.0]], [[9.0]]]))
    torch.testing.assert_close(transport_maps(statistics), torch.tensor([[[2.0]], [[2 / 3]]]))


def test_people_who_were_not_fitted_have_one_mean_and_covariance():
    maps = fit(*two_groups(4000, 1.0), 2)
    points, values = two_groups(4000, 1.0, seed=1)
    after = moved(maps, points, values)
    men, women = after[values == 0], after[values == 1]
    assert (points[values == 1].mean(0) - points[values == 0].mean(0)).norm() > 0.9
    assert (men.mean(0) - women.mean(0)).norm() < 0.3
    assert (men.T.cov() - women.T.cov()).norm() < 1 < (points[values == 1].T.cov() - points[values == 0].T.cov()).norm()


def test_an_attribute_that_cannot_be_read_moves_nobody():
    points, _ = two_groups(800, 0.0)
    values = torch.randint(5, (800,), generator=torch.Generator().manual_seed(1))
    maps = fit(points, values, 5)
    assert (moved(maps, points, values) - points).norm(dim=1).mean() < 0.1
    assert maps.erased == 0
    assert maps.covariance_users >= 300


def test_users_who_do_not_tell_are_moved_alike_and_lose_the_direction():
    points, values = two_groups(3000, 1.0)
    maps = fit(points, values, 2)
    after = moved(maps, points, torch.full_like(values, 2))
    assert maps.erased == 1
    gap = after[values == 1].mean(0) - after[values == 0].mean(0)
    assert gap.norm() < 1e-6  # no linear attacker of these very users is left
    assert after.std(0).sum() < points.std(0).sum()


def test_chance_erases_nothing():
    points, _ = two_groups(2000, 0.0)
    values = torch.randint(9, (2000,), generator=torch.Generator().manual_seed(2))
    user = torch.arange(2000)
    within = ValueStatistics.of(points, values, user, 9)
    assert unlabelled_map(within)[1] == 0


@pytest.mark.parametrize(
    "odd", ["value of five", "value of nobody", "unknown for 90%", "constant direction", "one user", "copies"]
)
def test_odd_data_gives_finite_maps(odd):
    points, values = two_groups(400, 1.0)
    num_values = 3
    if odd == "value of five":
        values[:5] = 2
    if odd == "unknown for 90%":
        values[40:] = -1
    if odd == "constant direction":
        points[:, 3] = 7.0
        points = torch.cat([points, points[:, :1] + points[:, 1:2]], 1)  # and one that others determine
    if odd == "one user":
        points, values = points[:2], torch.tensor([0, 1])
    if odd == "copies":
        points = points[:4].repeat(100, 1)
    maps = fit(points, values, num_values)
    known = values >= 0
    assert maps.weight.isfinite().all()
    assert maps.bias.isfinite().all()
    after = moved(maps, points[known], values[known])
    assert after.isfinite().all()
    if odd == "constant direction":
        assert (after[:, 3] - 7.0).abs().max() < 1e-6  # it stays as it was


def test_a_users_vectors_count_as_one_user():
    """Eight copies of each vector tell no more than one."""
    points, values = two_groups(200, 0.3)
    once = fit(points, values, 2)
    often = fit(points.repeat_interleave(8, 0), values.repeat_interleave(8), 2, per_user=8)
    assert (once.mean_noise, once.covariance_users) == (often.mean_noise, often.covariance_users)
    torch.testing.assert_close(once.weight, often.weight)

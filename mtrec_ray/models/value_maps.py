"""Fit a map for each value of an attribute, so that users of all values become alike.

Legend: `V` values of the attribute, `S` vectors, several a user, `d` width, `r` directions in which vectors vary.

The map of a value is the Gaussian optimal transport from its users' distribution to the barycentre of all values
(Agueh and Carlier 2011), which makes means and covariances equal: the quadratic form of LEACE's oracle variant (Belrose
et al. 2023). What few users say of a value is not believed: means and covariances are shrunk by two constants, those
under which users of held-out folds are most likely, so an attribute that cannot be read is hardly moved.

A user who does not tell a value has a map without labels: it projects away the directions in which values differ by
more than chance (LEACE). It cannot write a value into a vector. The others can, in detail that only an attacker with
many vectors of each person sees.
"""

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

FOLDS = 4
MEAN_NOISE = (0.3, 1.0, 3.0, 10.0, 30.0)  # variance of a value's mean, times its users / the variance within values
COVARIANCE_USERS = (30.0, 100.0, 300.0, 1000.0, 3000.0, 1e9)  # users of a value whose covariance counts one half
FLAT = 1e-6  # of the largest variance: directions with less are constant and are left alone
RIDGE = 1e-3  # least variance of a value's users in any direction, over that within all values
BARYCENTRE_STEPS = 12  # 8 already agree to 1e-6 on MovieLens-1M


@dataclass(frozen=True)
class ValueMaps:
    """x -> weight x + bias for each value; the last row is of users who do not tell theirs."""

    weight: Tensor  # (V + 1, d, d) float64
    bias: Tensor  # (V + 1, d)
    mean_noise: float  # of `MEAN_NOISE`
    covariance_users: float  # of `COVARIANCE_USERS`
    erased: int  # directions that the last map projects away


@dataclass(frozen=True)
class ValueStatistics:
    """Mean and covariance of the users of each value, float64."""

    users: Tensor  # (V,)
    mean: Tensor  # (V, r)
    covariance: Tensor  # (V, r, r)

    @staticmethod
    def of(points: Tensor, values: Tensor, user: Tensor, num_values: int) -> "ValueStatistics":
        """Of (S, r) points, (S,) values and users; a value without users is as all are."""
        rows = [values == value for value in range(num_values)]
        rows = [own if bool(own.any()) else torch.ones_like(own) for own in rows]
        mean = torch.stack([points[own].mean(0) for own in rows])
        users = [user[values == value].unique().numel() for value in range(num_values)]
        covariance = [torch.cov(points[own].t(), correction=0) for own in rows]
        return ValueStatistics(mean.new_tensor(users), mean, torch.stack(covariance))

    @property
    def fraction(self) -> Tensor:
        """(V,) of the users who have the value."""
        return self.users / self.users.sum()

    @property
    def centre(self) -> Tensor:
        """(r,) mean over the users of all values."""
        return self.fraction @ self.mean

    @property
    def within(self) -> Tensor:
        """(r, r) covariance within the values."""
        return torch.einsum("v,vij->ij", self.fraction, self.covariance)

    def between(self) -> tuple[Tensor, Tensor]:
        """Variance of the values' means, ascending (r,), and its directions (r, r), one a column."""
        centred = self.mean - self.centre
        return torch.linalg.eigh(centred.t() @ (centred * self.fraction[:, None]))

    def shrunk(self, mean_noise: float, covariance_users: float) -> "ValueStatistics":
        """Shrunk statistics; `self` is in coordinates where `within` is the identity.

        In each direction a mean counts by the variance between values over that plus its own noise (empirical Bayes),
        a covariance by n / (n + `covariance_users`).
        """
        variance, directions = self.between()
        real = (variance - mean_noise * len(self.users) / self.users.sum()).clamp(min=0)  # (r,) beyond chance
        noise = mean_noise / self.users.clamp(min=0.1)[:, None]  # (V, 1)
        mean = (self.mean - self.centre) @ directions * (real / (real + noise)) @ directions.t()
        counts = (self.users / (self.users + covariance_users))[:, None, None]
        covariance = counts * self.covariance + (1 - counts) * self.within
        least = RIDGE * torch.eye(covariance.shape[-1], dtype=covariance.dtype)
        return ValueStatistics(self.users, self.centre + mean, covariance + least)

    def log_likelihood(self, model: "ValueStatistics") -> float:
        """Mean log density of these users' vectors under a Gaussian for each value."""
        inverse = torch.linalg.inv(torch.linalg.cholesky(model.covariance))  # (V, r, r)
        spread = ((inverse @ self.covariance) * inverse).sum((1, 2))
        offset = (inverse @ (self.mean - model.mean)[:, :, None]).square().sum((1, 2))
        log_volume = inverse.diagonal(dim1=1, dim2=2).log().sum(1)
        return float(self.fraction @ (log_volume - 0.5 * (spread + offset)))


def fit_value_maps(points: Tensor, values: Tensor, user: Tensor, fold: Tensor, num_values: int) -> ValueMaps:
    """Fit one attribute's maps.

    (S, d) points; (S,) values, -1 unknown; (S,) users; (S,) folds, the same for all vectors of a user.
    """
    known = values >= 0
    points, values, user, fold = points[known].double(), values[known], user[known], fold[known]
    variance, directions = torch.linalg.eigh(ValueStatistics.of(points, values, user, num_values).within)
    vary = variance > FLAT * variance.max()
    whiten = directions[:, vary] * variance[vary].rsqrt()  # (d, r)
    colour = directions[:, vary] * variance[vary].sqrt()  # (d, r)
    points = points @ whiten
    constants = choose_constants(points, values, user, fold, num_values)
    statistics = ValueStatistics.of(points, values, user, num_values)
    erase, erased = unlabelled_map(statistics)
    believed = statistics.shrunk(*constants)
    maps = torch.cat([transport_maps(believed), erase[None]])  # (V + 1, r, r)
    sources = torch.cat([believed.mean, statistics.centre[None]])  # (V + 1, r) are moved to the centre
    bias = statistics.centre - (maps @ sources[:, :, None])[:, :, 0]
    change = maps - torch.eye(maps.shape[-1], dtype=maps.dtype)
    weight = torch.eye(len(colour), dtype=maps.dtype) + colour @ change @ whiten.t()
    return ValueMaps(weight, bias @ colour.t(), *constants, erased)


def choose_constants(
    points: Tensor, values: Tensor, user: Tensor, fold: Tensor, num_values: int
) -> tuple[float, float]:
    """The shrinkage under which the users of held-out folds are most likely."""
    folds = [
        [
            ValueStatistics.of(points[part], values[part], user[part], num_values)
            for part in (fold != held_out, fold == held_out)
        ]
        for held_out in range(FOLDS)
        if 0 < int((fold == held_out).sum()) < len(fold)
    ]
    grid = list(product(MEAN_NOISE, COVARIANCE_USERS))
    if not folds:
        return grid[-1]
    scores = [sum(tested.log_likelihood(fitted.shrunk(*one)) for fitted, tested in folds) for one in grid]
    return grid[max(range(len(grid)), key=scores.__getitem__)]


def transport_maps(statistics: ValueStatistics) -> Tensor:
    """(V, r, r) Gaussian optimal transport from each value's covariance to their barycentre."""
    root, inverse = _powers(statistics.covariance, 0.5), _powers(statistics.covariance, -0.5)
    target = barycentre(statistics)
    return inverse @ _powers(root @ target @ root, 0.5) @ inverse


def barycentre(statistics: ValueStatistics) -> Tensor:
    """(r, r) covariance nearest to the values' in mean squared Wasserstein distance.

    By the fixed-point iteration of Alvarez-Esteban et al. (2016).
    """
    target = statistics.within
    for _ in range(BARYCENTRE_STEPS):
        root, inverse = _powers(target, 0.5), _powers(target, -0.5)
        mean = torch.einsum("v,vij->ij", statistics.fraction, _powers(root @ statistics.covariance @ root, 0.5))
        target = inverse @ mean @ mean @ inverse
    return target


def unlabelled_map(statistics: ValueStatistics) -> tuple[Tensor, int]:
    """(r, r) projection along directions in which values differ; their number.

    There the variance between values is larger than chance gives the means of so many users (Marchenko and Pastur).
    """
    variance, directions = statistics.between()
    num_values, width = statistics.mean.shape
    chance = (width**0.5 + (num_values - 1) ** 0.5) ** 2 / float(statistics.users.sum())
    erased = directions[:, variance > chance]
    return torch.eye(width, dtype=erased.dtype) - erased @ erased.t(), erased.shape[1]


def _powers(matrices: Tensor, exponent: float) -> Tensor:
    """Powers of symmetric positive matrices (..., r, r)."""
    variance, directions = torch.linalg.eigh((matrices + matrices.mT) / 2)
    variance = variance.clamp(min=1e-12) ** exponent
    return directions * variance[..., None, :] @ directions.mT

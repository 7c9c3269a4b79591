"""The planted world of the synthetic source: territories, tastes, attributes, events.

Legend: `N` users, `n` titles, `T` territories, `G` taste groups, `k` = 8 taste dimensions.

A user's taste z_u is normal in R^k, a title has v_t in R^k, and each taste group g has a matrix M_g that mixes the
identity with a random rotation. Among the titles offered in its territory, a user watches title t with probability

    softmax_t(taste_scale * z_u^T M_g v_t / sqrt(k) + popularity_t + LOCAL_BOOST * [t is local]).

Every number is a stateless hash of (user number, purpose, seed), and sums run in a fixed order without BLAS, so a user
is the same in whatever bucket, chunk or process it is generated.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import ndtr, ndtri

from mtrec_ray.columns import take_rows
from mtrec_ray.hashing import Salt, mix, uniforms
from mtrec_ray.sources.calendar import ACTIVE_DAYS

if TYPE_CHECKING:
    from mtrec_ray.sources.synthetic import SyntheticConfig

REGIONS = ("AMERICAS", "EUROPE", "ASIA_PACIFIC", "AFRICA_MIDDLE_EAST")
TASTE_WIDTH = 8
ROWS_PER_CHUNK = 4096  # Rows of logits or embeddings that are in memory in float64 at a time
GLOBAL = -1
DAY_US = 86_400_000_000
ATTRIBUTE_FREQUENCIES = {
    "gender": {"female": 0.48, "male": 0.52},
    "age": {"Under 18": 0.06, "18-24": 0.17, "25-34": 0.28, "35-44": 0.2, "45-49": 0.1, "50-55": 0.1, "56+": 0.09},
    "occupation": {"student": 0.2, "office": 0.3, "craft": 0.2, "care": 0.15, "retired": 0.15},
}
"""Values of each sensitive attribute and their frequency among users whose value is known."""
UNKNOWN_FRACTION = 0.1  # Users whose value of an attribute is unknown
GROUP_TASTE = 0.7  # How far the groups' tastes differ: 0 = one taste for all, 1 = nothing in common
LOCAL_FRACTION, LOCAL_BOOST = 0.3, 1.0
"""Titles offered in one territory only, and the logits by which its users prefer them."""
EMBEDDING_NOISE = 0.2  # Standard deviation of the noise in embeddings; that of the signal is 1
MIN_ACTIVE_FRACTION, MAX_ACTIVE_FRACTION = 0.3, 0.9  # Active users of a territory
INACTIVE_RATE = 0.05  # Events of an inactive user on an evaluation day, relative to an active one
ACTIVITY_SPREAD, MAX_ACTIVITY = 0.8, 40
"""Standard deviation of the logarithm of a user's events, and their limit as a multiple of the mean."""


@dataclass(frozen=True)
class World:
    """All planted numbers that are not a single user's."""

    config: "SyntheticConfig"
    user_fraction: np.ndarray  # (T,) fraction of all users, descending
    region: np.ndarray  # (T,) index into REGIONS
    taste_group: np.ndarray  # (T,) 0 to G - 1
    active_fraction: np.ndarray  # (T,) fraction of the territory's users
    title_taste: np.ndarray  # (n, k) v_t
    popularity: np.ndarray  # (n,) logits
    home: np.ndarray  # (n,) the only territory of a local title, GLOBAL for others
    group_matrix: np.ndarray  # (G, k, k) M_g
    user_lift: np.ndarray  # (k, user_width) maps z_u to the user embedding
    title_lift: np.ndarray  # (k, title_width)
    attribute_direction: np.ndarray  # (attributes, k) orthonormal


@dataclass(frozen=True)
class PlantedUsers:
    """Some users of the world; each is the same whatever the others."""

    world: World
    numbers: np.ndarray  # (N,) uint64
    territory: np.ndarray  # (N,) index
    taste: np.ndarray  # (N, k) z_u, standard normal
    active: np.ndarray  # (N,) bool: has events in the last ACTIVE_DAYS; others have none then

    @staticmethod
    def draw(world: World, numbers: np.ndarray) -> "PlantedUsers":
        seed, ends = world.config.seed, np.cumsum(world.user_fraction)
        territory = np.searchsorted(ends, uniforms(numbers, seed, "territory"), side="right")
        territory = np.minimum(territory, len(ends) - 1)
        taste = normals(numbers[:, None], seed, "taste", _counter(TASTE_WIDTH))
        active = uniforms(numbers, seed, "active") < world.active_fraction[territory]
        return PlantedUsers(world, numbers, territory, taste, active)

    def attribute_codes(self) -> np.ndarray:
        """(N, attributes) index of each value, -1 = unknown.

        The value is given by the quantile of `correlation * (z_u . direction) + sqrt(1 - correlation^2) * noise`.
        """
        seed, correlation, codes = self.world.config.seed, self.world.config.attribute_correlation, []
        for i, frequencies in enumerate(ATTRIBUTE_FREQUENCIES.values()):
            along = sum(self.taste[:, j] * self.world.attribute_direction[i, j] for j in range(TASTE_WIDTH))
            noise = normals(self.numbers, seed, "attribute", i)
            quantile = ndtr(correlation * along + np.sqrt(1 - correlation**2) * noise)
            code = np.searchsorted(np.cumsum(list(frequencies.values()))[:-1], quantile, side="right")
            codes.append(np.where(uniforms(self.numbers, seed, "attribute unknown", i) < UNKNOWN_FRACTION, -1, code))
        return np.stack(codes, axis=1)

    def title_logits(self) -> np.ndarray:
        """(N, n) planted affinity; -inf where the title is not offered in the user's territory."""
        config, groups = self.world.config, self.world.taste_group[self.territory]
        logits = np.empty((len(groups), len(self.world.home)))
        for group in np.unique(groups):
            mixed = product(self.world.title_taste, self.world.group_matrix[group].T)  # (n, k) M_g v_t
            logits[groups == group] = product(self.taste[groups == group], np.ascontiguousarray(mixed.T))
        logits *= config.taste_scale / np.sqrt(TASTE_WIDTH)
        logits += self.world.popularity + LOCAL_BOOST * (self.world.home != GLOBAL)
        offered = (self.world.home == GLOBAL) | (self.world.home == np.arange(config.territories)[:, None])  # (T, n)
        logits[~offered[self.territory]] = -np.inf
        return logits

    def draw_events(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(events,) user row, title index, microseconds since the window's start; sorted."""
        config = self.world.config
        rate = np.exp(ACTIVITY_SPREAD * normals(self.numbers, config.seed, "rate") - ACTIVITY_SPREAD**2 / 2)
        rate = np.minimum(rate * config.events_per_user, MAX_ACTIVITY * config.events_per_user)
        drawn = [self._window_events(rate)]
        for day in range(config.num_evaluation_days):
            daily = rate / config.days * config.evaluation_boost * np.where(self.active, 1, INACTIVE_RATE)
            row = np.repeat(np.arange(len(rate)), self._event_counts(daily, f"day {day}"))
            drawn.append((row, (config.days + day + self._event_uniforms(row, f"day {day}")) * DAY_US))
        user_row = np.concatenate([row for row, _ in drawn])
        time_us = np.floor(np.concatenate([time for _, time in drawn])).astype(np.int64)
        order = np.lexsort((time_us, user_row))
        user_row, time_us = user_row[order], time_us[order]
        return user_row, self._draw_titles(user_row), time_us

    def _window_events(self, rate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(events,) user row and microseconds; in the last ACTIVE_DAYS of active users only."""
        days, active = self.world.config.days, self.active
        early_days = max(days - ACTIVE_DAYS, 0)
        counts = self._event_counts(rate, "window")
        counts = np.where(active, np.maximum(counts, 1), counts if early_days else 0)
        row = np.repeat(np.arange(len(active)), counts)
        is_first = np.diff(row, prepend=-1) > 0
        start = np.where(is_first & active[row], early_days, 0)
        end = np.where(active[row], days, early_days)
        return row, (start + (end - start) * self._event_uniforms(row, "window")) * DAY_US

    def _draw_titles(self, user_row: np.ndarray) -> np.ndarray:
        """(events,) title index, by inverting cumulative probabilities in 32-bit integers."""
        chance = np.floor(self._event_uniforms(user_row, "title") * 2.0**32).astype(np.uint64)
        title_index = np.empty(len(user_row), np.int64)
        for start in range(0, len(self.numbers), ROWS_PER_CHUNK):
            chunk = take_rows(self, slice(start, start + ROWS_PER_CHUNK), unchanged=["world"])
            first, last = np.searchsorted(user_row, [start, start + len(chunk.numbers)])
            logits = chunk.title_logits()
            ends = np.cumsum(np.exp(logits - logits.max(axis=1, keepdims=True)), axis=1)  # (N, n)
            ends = np.floor(ends / ends[:, -1:] * 2.0**32).astype(np.uint64)  # the last one is exactly 2^32
            row = np.arange(len(ends), dtype=np.uint64)[:, None] << np.uint64(33)
            target = ((user_row[first:last] - start).astype(np.uint64) << np.uint64(33)) + chance[first:last]
            title_index[first:last] = np.searchsorted((row + ends).ravel(), target, side="right") % ends.shape[1]
        return title_index

    def _event_counts(self, rate: np.ndarray, purpose: str) -> np.ndarray:
        """(N,) random whole numbers with the means `rate`."""
        return np.floor(rate + uniforms(self.numbers, self.world.config.seed, "count", purpose)).astype(np.int64)

    def _event_uniforms(self, row: np.ndarray, purpose: str) -> np.ndarray:
        """(events,) uniform numbers that depend on the user and the event's rank alone."""
        starts = np.searchsorted(row, np.arange(len(self.numbers)))
        rank = (np.arange(len(row)) - starts[row]).astype(np.uint64)
        return uniforms(mix(self.numbers, self.world.config.seed, "event", purpose)[row], rank)


def make_world(config: "SyntheticConfig") -> World:
    """Draw the world of a config."""
    seed, territories, titles = config.seed, config.territories, config.titles
    size = np.arange(1, territories + 1.0) ** -config.size_exponent
    turn = np.arange(territories) % (2 * len(REGIONS))
    region = np.minimum(turn, 2 * len(REGIONS) - 1 - turn)  # 0 1 2 3 3 2 1 0 ...: all regions get large and small ones
    shuffled = np.argsort(np.argsort(_draw(territories, seed, "taste group"), kind="stable")) % len(REGIONS)
    is_local = _draw(titles, seed, "local title") < LOCAL_FRACTION
    home = np.floor(_draw(titles, seed, "home") * territories).astype(np.int64)
    draws = [_normal_matrix(TASTE_WIDTH, TASTE_WIDTH, seed, f"group {group}") for group in range(len(REGIONS))]
    rotations = np.stack([np.linalg.qr(draw)[0] for draw in draws])
    directions = _normal_matrix(TASTE_WIDTH, len(ATTRIBUTE_FREQUENCIES), seed, "attributes")
    active = _draw(territories, seed, "active share")
    return World(
        config,
        user_fraction=size / size.sum(),
        region=region,
        taste_group={"regions": region, "shuffled": shuffled, "one": np.zeros_like(region)}[config.taste_groups],
        active_fraction=MIN_ACTIVE_FRACTION + (MAX_ACTIVE_FRACTION - MIN_ACTIVE_FRACTION) * active,
        title_taste=_normal_matrix(titles, TASTE_WIDTH, seed, "title taste"),
        popularity=config.popularity_spread * _normal_matrix(titles, 1, seed, "popularity")[:, 0],
        home=np.where(is_local, home, GLOBAL),
        group_matrix=np.sqrt(1 - GROUP_TASTE) * np.eye(TASTE_WIDTH) + np.sqrt(GROUP_TASTE) * rotations,
        user_lift=_normal_matrix(TASTE_WIDTH, config.user_width, seed, "user lift") / np.sqrt(TASTE_WIDTH),
        title_lift=_normal_matrix(TASTE_WIDTH, config.title_width, seed, "title lift") / np.sqrt(TASTE_WIDTH),
        attribute_direction=np.linalg.qr(directions)[0].T,
    )


def embed(seed: int, keys: np.ndarray, taste: np.ndarray, lift: np.ndarray) -> np.ndarray:
    """(N, width) float16: taste times `lift` plus uniform noise; the territory does not show."""
    result = np.empty((len(keys), lift.shape[1]), np.float16)
    for start in range(0, len(keys), ROWS_PER_CHUNK):
        rows = slice(start, start + ROWS_PER_CHUNK)
        drawn = uniforms(keys[rows, None], seed, "embedding", _counter(lift.shape[1])) - 0.5
        result[rows] = product(taste[rows], lift) + EMBEDDING_NOISE * np.sqrt(12) * drawn
    return result


def product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(N, k) @ (k, m) in a fixed order: BLAS rounds a row by the rows around it."""
    total = left[:, :1] * right[0]
    for j in range(1, right.shape[0]):
        total += left[:, j : j + 1] * right[j]
    return total


def normals(keys: np.ndarray, *salts: Salt | np.ndarray) -> np.ndarray:
    """Standard normal numbers, one for each broadcast element of keys and salts."""
    return ndtri(uniforms(keys, *salts) + 2.0**-54)


def _normal_matrix(rows: int, columns: int, seed: int, purpose: str) -> np.ndarray:
    return normals(_counter(rows)[:, None], seed, purpose, _counter(columns))


def _draw(count: int, seed: int, purpose: str) -> np.ndarray:
    return uniforms(_counter(count), seed, purpose)


def _counter(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.uint64)

"""The planted world of the synthetic source: who likes what, and the events that follow from it.

Legend: `N` users, `n` titles, `T` territories, `G` taste groups, `k` = 8 taste dimensions.

A user's taste z_u is normal in R^k, a title has v_t in R^k, each taste group g a matrix M_g that mixes the identity
with a rotation of its own. In its territory, among the titles offered there, a user watches title t with probability

    softmax_t(taste_scale * z_u^T M_g v_t / sqrt(k) + popularity_t + local_boost * [t is local]).

Every number is a stateless hash of (user number, purpose, seed), and sums run in a fixed order without BLAS, so a user
is the same in whatever bucket, chunk or process it is generated.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import ndtr, ndtri

from mtrec_ray.hashing import Salt, mix, uniforms
from mtrec_ray.sources.synthetic_config import REGIONS, SyntheticConfig

TASTE_WIDTH = 8
CHUNK = 4096
"""Users whose title probabilities are held at a time."""
DAY_US = 86_400_000_000
GLOBAL = -1
ATTRIBUTE_SHARES = {
    "gender": {"female": 0.48, "male": 0.52},
    "age": {
        "Under 18": 0.06,
        "18-24": 0.17,
        "25-34": 0.28,
        "35-44": 0.2,
        "45-49": 0.1,
        "50-55": 0.1,
        "56+": 0.09,
    },
    "occupation": {"student": 0.2, "office": 0.3, "craft": 0.2, "care": 0.15, "retired": 0.15},
}
"""Values of each sensitive attribute and how common they are among users that tell."""


@dataclass(frozen=True)
class World:
    """What is planted, the same in every process for one config."""

    seed: int
    territory_share: np.ndarray
    """(T,) share of the users, falling with the rank."""
    region: np.ndarray
    """(T,) index into REGIONS."""
    taste_group: np.ndarray
    """(T,) index of the group whose M_g holds there."""
    active_share: np.ndarray
    """(T,) planted share of active users."""
    title_taste: np.ndarray
    """(n, k)"""
    popularity: np.ndarray
    """(n,) logits."""
    home: np.ndarray
    """(n,) the only territory of a local title, GLOBAL for one offered everywhere."""
    group_matrix: np.ndarray
    """(G, k, k) M_g."""
    user_lift: np.ndarray
    """(k, user_width) what the user embeddings show of z_u."""
    title_lift: np.ndarray
    attribute_direction: np.ndarray
    """(attributes, k) orthonormal."""


def make_world(config: SyntheticConfig) -> World:
    """Everything that is not a user's own, drawn once in each process."""
    return _draw_world(config.model_dump_json())


@lru_cache(maxsize=4)
def _draw_world(config_json: str) -> World:
    config = SyntheticConfig.model_validate_json(config_json)
    seed, territories, titles = config.seed, config.territories, config.titles
    share = np.arange(1, territories + 1.0) ** -config.size_exponent
    region = _snake(territories)
    low, high = config.active_share_low, config.active_share_high
    is_local = _draw(titles, seed, "local title") < config.local_title_share
    home = np.floor(_draw(titles, seed, "home") * territories).astype(np.int64)
    return World(
        seed,
        share / share.sum(),
        region,
        region if config.taste_groups == "regions" else _shuffled_groups(territories, seed),
        low + (high - low) * _draw(territories, seed, "active share"),
        _normal_matrix(titles, TASTE_WIDTH, seed, "title taste"),
        config.popularity_spread * _normal_matrix(titles, 1, seed, "popularity")[:, 0],
        np.where(is_local, home, GLOBAL),
        _group_matrices(config.group_taste, seed),
        _normal_matrix(TASTE_WIDTH, config.user_width, seed, "user lift") / np.sqrt(TASTE_WIDTH),
        _normal_matrix(TASTE_WIDTH, config.title_width, seed, "title lift") / np.sqrt(TASTE_WIDTH),
        np.linalg.qr(_normal_matrix(TASTE_WIDTH, len(ATTRIBUTE_SHARES), seed, "attributes"))[0].T,
    )


def territory_index(world: World, numbers: np.ndarray) -> np.ndarray:
    """(N,) territory of each user number."""
    ends = np.cumsum(world.territory_share)
    drawn = np.searchsorted(ends, uniforms(numbers, world.seed, "territory"), side="right")
    return np.minimum(drawn, len(ends) - 1)


def user_taste(world: World, numbers: np.ndarray) -> np.ndarray:
    """(N, k) z_u, standard normal."""
    return _normals(numbers[:, None], world.seed, "taste", _counter(TASTE_WIDTH))


def is_active(world: World, numbers: np.ndarray, territory: np.ndarray) -> np.ndarray:
    """(N,) whether the user watches anything in the last `active_days` of the window."""
    return uniforms(numbers, world.seed, "active") < world.active_share[territory]


def attribute_codes(config: SyntheticConfig, world: World, numbers: np.ndarray, taste: np.ndarray) -> np.ndarray:
    """(N, attributes) index of each value, -1 = unknown.

    The value falls by the quantile of `correlation * (z_u . direction) + sqrt(1 - correlation^2) * noise`.
    """
    correlation = config.attribute_correlation
    codes = []
    for i, shares in enumerate(ATTRIBUTE_SHARES.values()):
        told_by_taste = sum(taste[:, j] * world.attribute_direction[i, j] for j in range(TASTE_WIDTH))
        own = _normals(numbers, world.seed, "attribute", i)
        quantile = ndtr(correlation * told_by_taste + np.sqrt(1 - correlation**2) * own)
        code = np.searchsorted(np.cumsum(list(shares.values()))[:-1], quantile, side="right")
        unknown = uniforms(numbers, world.seed, "attribute unknown", i) < config.unknown_attribute_share
        codes.append(np.where(unknown, -1, code))
    return np.stack(codes, axis=1)


def embeddings(keys: np.ndarray, taste: np.ndarray, lift: np.ndarray, noise: float, seed: int) -> np.ndarray:
    """(N, width) float16: the lifted taste and uniform noise of standard deviation `noise`; shows no territory."""
    result = np.empty((len(keys), lift.shape[1]), np.float16)
    for start in range(0, len(keys), CHUNK):
        rows = slice(start, start + CHUNK)
        drawn = uniforms(keys[rows, None], seed, "embedding", _counter(lift.shape[1])) - 0.5
        result[rows] = _product(taste[rows], lift) + noise * np.sqrt(12) * drawn
    return result


def draw_events(
    config: SyntheticConfig, world: World, numbers: np.ndarray, territory: np.ndarray, taste: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All events of some users: (events,) user row, title index, and microseconds since the window's start."""
    active = is_active(world, numbers, territory)
    spread = config.activity_spread
    rate = np.exp(spread * _normals(numbers, world.seed, "rate") - spread**2 / 2) * config.events_per_user
    rate = np.minimum(rate, 40 * config.events_per_user)
    drawn = [_window_events(config, world, numbers, active, rate)]
    for day in range(config.num_evaluation_days):
        daily = rate / config.days * config.evaluation_boost * np.where(active, 1, config.inactive_rate)
        row = np.repeat(np.arange(len(numbers)), _count(daily, numbers, world.seed, f"day {day}"))
        drawn.append((row, (config.days + day + _own_uniform(world, numbers, row, f"day {day}")) * DAY_US))
    user_row = np.concatenate([row for row, _ in drawn])
    moment_us = np.floor(np.concatenate([moment for _, moment in drawn])).astype(np.int64)
    order = np.lexsort((moment_us, user_row))
    user_row, moment_us = user_row[order], moment_us[order]
    return user_row, _draw_titles(config, world, numbers, territory, taste, user_row), moment_us


def _window_events(
    config: SyntheticConfig, world: World, numbers: np.ndarray, active: np.ndarray, rate: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Active users: the whole window, the first event in its active part. Others: only what lies before that part."""
    early_days = max(config.days - config.active_days, 0)
    counts = _count(rate, numbers, world.seed, "window")
    counts = np.where(active, np.maximum(counts, 1), counts if early_days else 0)
    row = np.repeat(np.arange(len(numbers)), counts)
    is_first = np.concatenate([[True], row[1:] != row[:-1]]) if len(row) else np.zeros(0, bool)
    start = np.where(is_first & active[row], early_days, 0)
    end = np.where(active[row], config.days, early_days)
    return row, (start + (end - start) * _own_uniform(world, numbers, row, "window")) * DAY_US


def _draw_titles(
    config: SyntheticConfig,
    world: World,
    numbers: np.ndarray,
    territory: np.ndarray,
    taste: np.ndarray,
    user_row: np.ndarray,
) -> np.ndarray:
    """(events,) title index, by inverting each user's cumulative probabilities (32-bit integers, so exactly)."""
    chance = np.floor(_own_uniform(world, numbers, user_row, "title") * 2.0**32).astype(np.uint64)
    title_index = np.empty(len(user_row), np.int64)
    num_titles = len(world.home)
    for start in range(0, len(numbers), CHUNK):
        stop = min(start + CHUNK, len(numbers))
        first, last = np.searchsorted(user_row, [start, stop])
        ends = _cumulative(title_logits(config, world, territory[start:stop], taste[start:stop]))  # (N, n)
        row = np.arange(stop - start, dtype=np.uint64)[:, None] << np.uint64(33)
        wanted = ((user_row[first:last] - start).astype(np.uint64) << np.uint64(33)) + chance[first:last]
        title_index[first:last] = np.searchsorted((row + ends).ravel(), wanted, side="right") % num_titles
    return title_index


def title_logits(config: SyntheticConfig, world: World, territory: np.ndarray, taste: np.ndarray) -> np.ndarray:
    """(N, n) planted affinity; -inf where the title is not offered in the user's territory."""
    logits = np.empty((len(territory), len(world.home)))
    for group in np.unique(world.taste_group[territory]):
        rows = np.flatnonzero(world.taste_group[territory] == group)
        seen = _product(world.title_taste, world.group_matrix[group].T)  # (n, k) M_g v_t
        logits[rows] = _product(taste[rows], np.ascontiguousarray(seen.T))
    logits *= config.taste_scale / np.sqrt(TASTE_WIDTH)
    logits += world.popularity + config.local_boost * (world.home != GLOBAL)
    offered = (world.home == GLOBAL) | (world.home == np.arange(len(world.territory_share))[:, None])  # (T, n)
    logits[~offered[territory]] = -np.inf
    return logits


def _cumulative(logits: np.ndarray) -> np.ndarray:
    """(N, n) uint64 in [0, 2^32]: cumulative softmax, its last value exactly 2^32."""
    weight = np.exp(logits - logits.max(axis=1, keepdims=True))
    ends = np.cumsum(weight, axis=1)
    return np.floor(ends / ends[:, -1:] * 2.0**32).astype(np.uint64)


def _count(rate: np.ndarray, numbers: np.ndarray, seed: int, purpose: str) -> np.ndarray:
    """Whole numbers with the given means."""
    return np.floor(rate + uniforms(numbers, seed, "count", purpose)).astype(np.int64)


def _own_uniform(world: World, numbers: np.ndarray, row: np.ndarray, purpose: str) -> np.ndarray:
    """A fresh uniform number for each of a user's events, whichever other users there are."""
    starts = np.searchsorted(row, np.arange(len(numbers)))
    ordinal = (np.arange(len(row)) - starts[row]).astype(np.uint64)
    return uniforms(mix(numbers, world.seed, "event", purpose)[row], ordinal)


def _group_matrices(strength: float, seed: int) -> np.ndarray:
    """(G, k, k): sqrt(1 - strength) * identity + sqrt(strength) * a rotation of each group's own."""
    matrices = []
    for group in range(len(REGIONS)):
        rotation = np.linalg.qr(_normal_matrix(TASTE_WIDTH, TASTE_WIDTH, seed, f"group {group}"))[0]
        matrices.append(np.sqrt(1 - strength) * np.eye(TASTE_WIDTH) + np.sqrt(strength) * rotation)
    return np.stack(matrices)


def _snake(count: int) -> np.ndarray:
    """0 1 2 3 3 2 1 0 0 1 ...: each region gets its share of large and small territories."""
    turn = np.arange(count) % (2 * len(REGIONS))
    return np.minimum(turn, 2 * len(REGIONS) - 1 - turn)


def _shuffled_groups(count: int, seed: int) -> np.ndarray:
    """Equally many territories for each group, at random: planted groups that the regions do not show."""
    groups = np.empty(count, np.int64)
    groups[np.argsort(_draw(count, seed, "taste group"), kind="stable")] = np.arange(count) % len(REGIONS)
    return groups


def _product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(N, k) @ (k, m), summed in one fixed order: BLAS may round a row differently with other neighbours."""
    total = left[:, :1] * right[0]
    for j in range(1, right.shape[0]):
        total += left[:, j : j + 1] * right[j]
    return total


def _normals(keys: np.ndarray, *salts: Salt | np.ndarray) -> np.ndarray:
    return ndtri(uniforms(keys, *salts) + 2.0**-54)


def _normal_matrix(rows: int, columns: int, seed: int, purpose: str) -> np.ndarray:
    return _normals(_counter(rows)[:, None], seed, purpose, _counter(columns))


def _draw(count: int, seed: int, purpose: str) -> np.ndarray:
    return uniforms(_counter(count), seed, purpose)


def _counter(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.uint64)

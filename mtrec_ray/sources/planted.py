"""The planted world of the synthetic source: who lives where, likes what, and shows how much of it.

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

from mtrec_ray.hashing import Salt, uniforms
from mtrec_ray.sources.synthetic_config import REGIONS, SyntheticConfig

TASTE_WIDTH = 8
CHUNK = 4096
"""Users whose wide rows are held at a time."""
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
"""Values of each sensitive attribute, and how common each is among users whose value is known."""


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
    return normals(numbers[:, None], world.seed, "taste", _counter(TASTE_WIDTH))


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
        own = normals(numbers, world.seed, "attribute", i)
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
        result[rows] = product(taste[rows], lift) + noise * np.sqrt(12) * drawn
    return result


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


def product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(N, k) @ (k, m), summed in one fixed order: BLAS may round a row differently with other neighbours."""
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

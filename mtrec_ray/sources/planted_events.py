"""Events of the planted world: how many each user has, when, and of which titles (see `planted`)."""

import numpy as np

from mtrec_ray.hashing import mix, uniforms
from mtrec_ray.sources.planted import GLOBAL, TASTE_WIDTH, USERS_PER_CHUNK, World, is_active, normals, product
from mtrec_ray.sources.synthetic_config import SyntheticConfig

DAY_US = 86_400_000_000


def draw_events(
    config: SyntheticConfig, world: World, numbers: np.ndarray, territory: np.ndarray, taste: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Events of some users: (events,) user row, title index, and microseconds since the window's start."""
    active = is_active(world, numbers, territory)
    spread = config.activity_spread
    rate = np.exp(spread * normals(numbers, world.seed, "rate") - spread**2 / 2) * config.events_per_user
    rate = np.minimum(rate, 40 * config.events_per_user)
    drawn = [_window_events(config, world, numbers, active, rate)]
    for day in range(config.num_evaluation_days):
        daily = rate / config.days * config.evaluation_boost * np.where(active, 1, config.inactive_rate)
        row = np.repeat(np.arange(len(numbers)), _event_counts(daily, numbers, world.seed, f"day {day}"))
        drawn.append((row, (config.days + day + _event_uniforms(world, numbers, row, f"day {day}")) * DAY_US))
    user_row = np.concatenate([row for row, _ in drawn])
    time_us = np.floor(np.concatenate([time for _, time in drawn])).astype(np.int64)
    order = np.lexsort((time_us, user_row))
    user_row, time_us = user_row[order], time_us[order]
    return user_row, _draw_titles(config, world, numbers, territory, taste, user_row), time_us


def _window_events(
    config: SyntheticConfig, world: World, numbers: np.ndarray, active: np.ndarray, rate: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(events,) user row and microseconds: in the last `active_days`, active users have their first, others none."""
    early_days = max(config.days - config.active_days, 0)
    counts = _event_counts(rate, numbers, world.seed, "window")
    counts = np.where(active, np.maximum(counts, 1), counts if early_days else 0)
    row = np.repeat(np.arange(len(numbers)), counts)
    is_first = np.concatenate([[True], row[1:] != row[:-1]]) if len(row) else np.zeros(0, bool)
    start = np.where(is_first & active[row], early_days, 0)
    end = np.where(active[row], config.days, early_days)
    return row, (start + (end - start) * _event_uniforms(world, numbers, row, "window")) * DAY_US


def _draw_titles(
    config: SyntheticConfig,
    world: World,
    numbers: np.ndarray,
    territory: np.ndarray,
    taste: np.ndarray,
    user_row: np.ndarray,
) -> np.ndarray:
    """(events,) title index, by exactly inverting each user's cumulative probabilities as 32-bit integers."""
    chance = np.floor(_event_uniforms(world, numbers, user_row, "title") * 2.0**32).astype(np.uint64)
    title_index = np.empty(len(user_row), np.int64)
    num_titles = len(world.home)
    for start in range(0, len(numbers), USERS_PER_CHUNK):
        stop = min(start + USERS_PER_CHUNK, len(numbers))
        first, last = np.searchsorted(user_row, [start, stop])
        ends = _cumulative(title_logits(config, world, territory[start:stop], taste[start:stop]))  # (N, n)
        row = np.arange(stop - start, dtype=np.uint64)[:, None] << np.uint64(33)
        target = ((user_row[first:last] - start).astype(np.uint64) << np.uint64(33)) + chance[first:last]
        title_index[first:last] = np.searchsorted((row + ends).ravel(), target, side="right") % num_titles
    return title_index


def title_logits(config: SyntheticConfig, world: World, territory: np.ndarray, taste: np.ndarray) -> np.ndarray:
    """(N, n) planted affinity; -inf where the title is not offered in the user's territory."""
    logits = np.empty((len(territory), len(world.home)))
    for group in np.unique(world.taste_group[territory]):
        rows = np.flatnonzero(world.taste_group[territory] == group)
        mixed = product(world.title_taste, world.group_matrix[group].T)  # (n, k) M_g v_t
        logits[rows] = product(taste[rows], np.ascontiguousarray(mixed.T))
    logits *= config.taste_scale / np.sqrt(TASTE_WIDTH)
    logits += world.popularity + config.local_boost * (world.home != GLOBAL)
    offered = (world.home == GLOBAL) | (world.home == np.arange(len(world.user_fraction))[:, None])  # (T, n)
    logits[~offered[territory]] = -np.inf
    return logits


def _cumulative(logits: np.ndarray) -> np.ndarray:
    """(N, n) uint64 in [0, 2^32]: cumulative softmax, its last value exactly 2^32."""
    weight = np.exp(logits - logits.max(axis=1, keepdims=True))
    ends = np.cumsum(weight, axis=1)
    return np.floor(ends / ends[:, -1:] * 2.0**32).astype(np.uint64)


def _event_counts(rate: np.ndarray, numbers: np.ndarray, seed: int, purpose: str) -> np.ndarray:
    """(N,) random whole numbers with the given means."""
    return np.floor(rate + uniforms(numbers, seed, "count", purpose)).astype(np.int64)


def _event_uniforms(world: World, numbers: np.ndarray, row: np.ndarray, purpose: str) -> np.ndarray:
    """(events,) uniform numbers that depend on the user and the event's rank alone."""
    starts = np.searchsorted(row, np.arange(len(numbers)))
    ordinal = (np.arange(len(row)) - starts[row]).astype(np.uint64)
    return uniforms(mix(numbers, world.seed, "event", purpose)[row], ordinal)

"""Events of the planted world: how many, when, and of which titles (see `planted`)."""

import numpy as np

from mtrec_ray.hashing import mix, uniforms
from mtrec_ray.sources.planted import ROWS_PER_CHUNK, PlantedUsers, World, normals, title_logits

DAY_US = 86_400_000_000


def draw_events(world: World, users: PlantedUsers) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(events,) user row, title index, microseconds since the window's start; sorted."""
    config, spread = world.config, world.config.activity_spread
    rate = np.exp(spread * normals(users.numbers, config.seed, "rate") - spread**2 / 2) * config.events_per_user
    rate = np.minimum(rate, 40 * config.events_per_user)
    drawn = [_window_events(world, users, rate)]
    for day in range(config.num_evaluation_days):
        daily = rate / config.days * config.evaluation_boost * np.where(users.active, 1, config.inactive_rate)
        row = np.repeat(np.arange(len(rate)), _event_counts(world, users, daily, f"day {day}"))
        drawn.append((row, (config.days + day + _event_uniforms(world, users, row, f"day {day}")) * DAY_US))
    user_row = np.concatenate([row for row, _ in drawn])
    time_us = np.floor(np.concatenate([time for _, time in drawn])).astype(np.int64)
    order = np.lexsort((time_us, user_row))
    user_row, time_us = user_row[order], time_us[order]
    return user_row, _draw_titles(world, users, user_row), time_us


def _window_events(world: World, users: PlantedUsers, rate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(events,) user row and microseconds; only active users have some in `active_days`."""
    days, active = world.config.days, users.active
    early_days = max(days - world.config.active_days, 0)
    counts = _event_counts(world, users, rate, "window")
    counts = np.where(active, np.maximum(counts, 1), counts if early_days else 0)
    row = np.repeat(np.arange(len(active)), counts)
    is_first = np.concatenate([[True], row[1:] != row[:-1]]) if len(row) else np.zeros(0, bool)
    start = np.where(is_first & active[row], early_days, 0)
    end = np.where(active[row], days, early_days)
    return row, (start + (end - start) * _event_uniforms(world, users, row, "window")) * DAY_US


def _draw_titles(world: World, users: PlantedUsers, user_row: np.ndarray) -> np.ndarray:
    """(events,) title index, by inverting cumulative probabilities in 32-bit integers."""
    chance = np.floor(_event_uniforms(world, users, user_row, "title") * 2.0**32).astype(np.uint64)
    title_index = np.empty(len(user_row), np.int64)
    for start in range(0, len(users.numbers), ROWS_PER_CHUNK):
        chunk = users[start : start + ROWS_PER_CHUNK]
        first, last = np.searchsorted(user_row, [start, start + len(chunk.numbers)])
        ends = _cumulative(title_logits(world, chunk))  # (N, n)
        row = np.arange(len(ends), dtype=np.uint64)[:, None] << np.uint64(33)
        target = ((user_row[first:last] - start).astype(np.uint64) << np.uint64(33)) + chance[first:last]
        title_index[first:last] = np.searchsorted((row + ends).ravel(), target, side="right") % ends.shape[1]
    return title_index


def _cumulative(logits: np.ndarray) -> np.ndarray:
    """(N, n) uint64 in [0, 2^32]: cumulative softmax, its last value exactly 2^32."""
    weight = np.exp(logits - logits.max(axis=1, keepdims=True))
    ends = np.cumsum(weight, axis=1)
    return np.floor(ends / ends[:, -1:] * 2.0**32).astype(np.uint64)


def _event_counts(world: World, users: PlantedUsers, rate: np.ndarray, purpose: str) -> np.ndarray:
    """(N,) random whole numbers with the means `rate`."""
    return np.floor(rate + uniforms(users.numbers, world.config.seed, "count", purpose)).astype(np.int64)


def _event_uniforms(world: World, users: PlantedUsers, row: np.ndarray, purpose: str) -> np.ndarray:
    """(events,) uniform numbers that depend on the user and the event's rank alone."""
    starts = np.searchsorted(row, np.arange(len(users.numbers)))
    rank = (np.arange(len(row)) - starts[row]).astype(np.uint64)
    return uniforms(mix(users.numbers, world.config.seed, "event", purpose)[row], rank)

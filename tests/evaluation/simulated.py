"""Small evaluated states with known properties, for the tests of the state and of the report."""

import numpy as np

from mtrec_ray.evaluation.popularity_bias import DayTitles, TitleHistory
from mtrec_ray.evaluation.state import EvaluationSettings, EvaluationState

NUM_TITLES = 12
SETTINGS = EvaluationSettings(num_territories=3, num_titles=NUM_TITLES, num_bootstrap=60, titles=(2, 9))
HISTORY = TitleHistory(
    popularity=np.arange(1, 3 * NUM_TITLES + 1).reshape(3, NUM_TITLES), is_local=np.arange(NUM_TITLES) >= 8
)
DAY_TITLES = DayTitles.of(HISTORY, np.ones((3, NUM_TITLES), bool))


def chunks(day: int = 1, num_users: int = 60):
    """(territory, keys, taste, labels, candidates, titles): territory 2 has users and no positives."""
    for territory in range(3):
        rng = np.random.default_rng([day, territory])
        keys = rng.integers(0, 2**63, num_users).astype(np.uint64)
        titles = np.sort(rng.permutation(NUM_TITLES)[:10]) if territory else np.arange(NUM_TITLES)
        taste = rng.normal(-1, 1, (num_users, len(titles)))
        labels = (rng.random(taste.shape) < 1 / (1 + np.exp(-taste))) & (territory < 2)
        yield territory, keys, taste, labels, rng.random(taste.shape) < 0.9, titles


def state(day: int = 1, noise: float = 1.0, seed: int = 0, part: slice = slice(None)) -> EvaluationState:
    """A model that sees tastes through noise: less noise, better model."""
    result = EvaluationState(SETTINGS, DAY_TITLES)
    for territory, keys, taste, labels, candidates, titles in chunks(day):
        error = np.random.default_rng([seed, day, territory]).normal(0, noise, taste.shape)
        logits = (taste + error).astype(np.float32)
        result.add(territory, keys[part], logits[part], labels[part], candidates[part], titles)
    return result

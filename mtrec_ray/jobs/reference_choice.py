"""Fit references and choose their settings, as carefully as those of runs.

What is made as large as possible is PR-AUC x NDCG@10, each the mean over territories. Popularity is blended in, as
users without a history have nothing else and a sum over long histories is not comparable between users.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse as sp

from mtrec_ray.evaluation.pr_auc import count_scores
from mtrec_ray.evaluation.ranking import ranking_metrics
from mtrec_ray.evaluation.references import (
    Blend,
    RawModel,
    Settings,
    TitleFactors,
    TitleSimilarities,
    choose_settings,
    ease_weights,
    ials_factors,
    lengths,
    title_similarities,
)
from mtrec_ray.evaluation.score_counts import GRID, ScoreCounts
from mtrec_ray.files import finite
from mtrec_ray.jobs.reference_counts import POPULARITY, ReferenceCounts

KNN, OWN_KNN, EASE, IALS = "item-knn", "item-knn-own", "ease", "ials"
MAX_TITLES = 20_000  # of titles x titles: EASE's inverse, and the most popular titles that item-kNN knows
MAX_CHOICE_TITLES = 4000  # that EASE knows while its penalty is chosen
MAX_CHOICE_USERS = 100_000  # that iALS knows while its settings are chosen

KNN_GRID: dict[str, Sequence[Any]] = {
    "title_power": (0.5, 0.35),
    "shrinkage": (10, 0, 100),
    "neighbours": (None, 500, 100),  # None: all
}
GRIDS: dict[str, dict[str, Sequence[Any]]] = {
    KNN: KNN_GRID,
    OWN_KNN: KNN_GRID,
    EASE: {"penalty": (100, 30, 300, 1000)},
    IALS: {"factors": (64, 16, 128), "alpha": (10, 1, 40), "regularization": (1, 0.1, 10)},
}
BLEND_GRID: dict[str, Sequence[Any]] = {
    "popularity_weight": (0.1, 0.01, 0.3, 1, 3, 10, 30),
    "normalise": ("max", "length", "none"),
    "exclude_seen": (True, False),
}


def fit_model(name: str, settings: Settings, counts: ReferenceCounts, *, choosing: bool) -> RawModel:
    """Fit on all training users or, to choose settings, without those chosen on and on less."""
    without = choosing and bool(counts.tuned_grams)
    if name == IALS:
        rows = counts.histories[~counts.tuned] if without else counts.histories
        rows = rows[:MAX_CHOICE_USERS] if choosing else rows
        return TitleFactors(ials_factors(rows, **settings), settings["alpha"], settings["regularization"])
    grams = counts.grams
    if without:
        grams = [all_users - tuned for all_users, tuned in zip(grams, counts.tuned_grams, strict=True)]
    if name == OWN_KNN:
        return TitleSimilarities([title_similarities(gram, **settings) for gram in grams])
    gram = sp.csr_matrix(sum(grams[1:], grams[0]))
    if name == KNN:
        return TitleSimilarities([title_similarities(gram, **settings)])
    return ease_weights(gram, settings["penalty"], MAX_CHOICE_TITLES if choosing else MAX_TITLES)


@dataclass
class Tuning:
    """Scores the users whom settings are chosen on."""

    name: str
    counts: ReferenceCounts
    log_popularity: Mapping[str, Mapping[int, np.ndarray]]
    own: Settings = field(default_factory=dict)  # settings of the model behind `raw`
    raw: list[np.ndarray] = field(default_factory=list)  # of each chunk

    def measure(self, own: Settings, blended: Settings) -> float:
        """PR-AUC x NDCG@10, means over territories; NaN without positives."""
        if own != self.own:
            model = fit_model(self.name, own, self.counts, choosing=True)
            self.raw = [
                model.raw(users.territory, users.history, users.title_index)
                for users in (chunk.users for chunk in self.counts.chunks)
                if users.history is not None
            ]
            self.own = own
        blend, popularity = self.blend(blended), self.log_popularity[blended["popularity"]]
        pr_auc: dict[tuple[int, int], ScoreCounts] = {}
        ndcg: dict[tuple[int, int], list[np.ndarray]] = {}
        for chunk, raw in zip(self.counts.chunks, self.raw, strict=True):
            users, cell = chunk.users, (chunk.users.territory, chunk.day)
            assert users.history is not None
            scores = blend.scores(
                raw, users.history, users.title_index, popularity[chunk.day][users.territory, users.title_index]
            )
            weights = np.ones((1, len(users.keys)), dtype=np.float32)
            count_scores(pr_auc.setdefault(cell, ScoreCounts(GRID, 0)), scores, users.labels, users.candidates, weights)
            ndcg.setdefault(cell, []).append(ranking_metrics(scores, users.labels, users.candidates)[:, 0])
        found = {cell: (counts.pr_auc()[0], _mean(np.concatenate(ndcg[cell]))) for cell, counts in pr_auc.items()}
        of_days = [[value for (g, _), value in found.items() if g == own] for own in {g for g, _ in found}]
        of_territories = np.array([[_mean(np.array(column)) for column in zip(*days, strict=True)] for days in of_days])
        return float(np.prod([_mean(column) for column in of_territories.T])) if len(of_territories) else float("nan")

    def blend(self, settings: Settings) -> Blend:
        best = [
            Blend.best_raw(raw, lengths(chunk.users.history), settings["normalise"])
            for raw, chunk in zip(self.raw, self.counts.chunks, strict=True)
            if chunk.users.history is not None
        ]
        best = np.concatenate([*best, np.zeros(0)])
        return Blend(
            unit=float(best.mean()) if len(best) else 1.0,
            normalise=settings["normalise"],
            popularity_weight=settings["popularity_weight"],
            exclude_seen=settings["exclude_seen"],
        )


def _mean(values: np.ndarray) -> float:
    """Mean of the finite values, or NaN."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")


def fit_reference(
    name: str, counts: ReferenceCounts, log_popularity: Mapping[str, Mapping[int, np.ndarray]]
) -> tuple[RawModel, Blend, Settings]:
    """Choose the settings of one reference on `counts.chunks`, and fit it with them.

    `log_popularity`: row of popularity -> day (0: the window) -> (territories, titles).
    """
    tuning = Tuning(name, counts, log_popularity)
    first: Settings = {"popularity": POPULARITY} | {key: values[0] for key, values in BLEND_GRID.items()}
    own, _ = choose_settings(GRIDS[name], lambda settings: tuning.measure(settings, first))
    grid: dict[str, Sequence[Any]] = {"popularity": list(log_popularity)} | BLEND_GRID
    blended, value = choose_settings(grid, lambda settings: tuning.measure(own, settings), passes=2)
    kind = "training users without their last discoveries" if counts.tuned_grams else "validation users"
    num_users = len({int(key) for chunk in counts.chunks for key in chunk.users.keys})
    chosen_on = {"users": kind, "num_users": num_users, "pr_auc x ndcg@10": value}
    settings = own | blended | {"chosen_on": finite(chosen_on)}
    return fit_model(name, own, counts, choosing=False), tuning.blend(blended), settings

"""Reference models: by hand, against least squares and `implicit`, blends with popularity, choice of settings."""

import math

import numpy as np
import pytest
import scipy.sparse as sp

from mtrec_ray.evaluation.references import (
    SEEN_PENALTY,
    SPREAD,
    Blend,
    TitleFactors,
    TitleSimilarities,
    choose_settings,
    ease_weights,
    ials_factors,
    title_similarities,
)

ALL = np.arange(3)


def histories(*rows: list[int]) -> sp.csr_matrix:
    return sp.csr_matrix(np.array(rows, dtype=np.float64))


@pytest.fixture(scope="module")
def random_histories() -> sp.csr_matrix:
    return sp.csr_matrix((np.random.default_rng(0).random((60, 8)) < 0.3).astype(np.float64))


def gram_of(history: sp.csr_matrix) -> sp.csr_matrix:
    return sp.csr_matrix(history.T @ history)


class TestItemKnn:
    watched = histories([1, 1, 0], [1, 1, 1], [1, 0, 0], [0, 0, 1])

    def test_similarity_is_users_in_common_over_powers_of_popularity(self):
        found = title_similarities(gram_of(self.watched), shrinkage=1.0, title_power=0.5, neighbours=None).toarray()
        expected = np.zeros((3, 3))  # users: 3, 2, 2
        expected[0, 1] = expected[1, 0] = 2 / (np.sqrt(3 * 2) + 1)
        expected[0, 2] = expected[2, 0] = 1 / (np.sqrt(3 * 2) + 1)
        expected[1, 2] = expected[2, 1] = 1 / (np.sqrt(2 * 2) + 1)
        np.testing.assert_allclose(found, expected, rtol=1e-6)

    def test_the_power_is_that_of_the_scored_title(self):
        found = title_similarities(gram_of(self.watched), shrinkage=0.0, title_power=0.0, neighbours=None)
        assert found[0, 1] == pytest.approx(2 / np.sqrt(3))
        assert found[1, 0] == pytest.approx(2 / np.sqrt(2))

    def test_a_watched_title_keeps_its_nearest(self):
        found = title_similarities(gram_of(self.watched), shrinkage=0.0, title_power=0.5, neighbours=1)
        assert found.toarray().argmax(axis=1).tolist() == [1, 0, 1]
        assert found.nnz == 3

    def test_a_score_sums_over_the_history_in_the_users_territory(self):
        one, other = (sp.csr_matrix(np.full((3, 3), value, np.float32)) for value in (1.0, 5.0))
        model, history = TitleSimilarities([one, other]), histories([1, 1, 0], [0, 0, 0])
        np.testing.assert_array_equal(model.raw(0, history, ALL), [[2, 2, 2], [0, 0, 0]])
        np.testing.assert_array_equal(model.raw(1, history, ALL[1:]), [[10, 10], [0, 0]])


class TestEase:
    def test_weights_are_ridge_regressions_of_each_title_on_the_others(self, random_histories):
        penalty, watched = 5.0, random_histories.toarray()
        model, width = ease_weights(gram_of(random_histories), penalty, max_titles=100), watched.shape[1]
        for title in range(width):
            others = np.arange(width) != title
            augmented = np.vstack([watched[:, others], np.sqrt(penalty) * np.eye(width - 1)])
            expected = np.linalg.lstsq(augmented, np.concatenate([watched[:, title], np.zeros(width - 1)]), rcond=None)[
                0
            ]
            np.testing.assert_allclose(model.weights[others, title], expected, atol=1e-5)
        assert not model.weights.diagonal().any()
        expected = watched @ model.weights
        np.testing.assert_allclose(model.raw(0, random_histories, np.arange(width)), expected, atol=1e-5)

    def test_titles_beyond_the_limit_and_without_users_neither_count_nor_score(self, random_histories):
        watched = np.pad(random_histories.toarray(), ((0, 0), (0, 1)))
        watched[:, 3] = 0
        watched[0, 3] = 1
        history = sp.csr_matrix(watched)
        model = ease_weights(gram_of(history), 5.0, max_titles=7)
        assert model.titles.tolist() == [0, 1, 2, 4, 5, 6, 7]
        own = ease_weights(gram_of(sp.csr_matrix(watched[:, model.titles])), 5.0, max_titles=100)
        np.testing.assert_allclose(model.weights, own.weights, atol=1e-6)
        scores = model.raw(0, history, np.array([8, 4, 3]))
        np.testing.assert_allclose(scores[:, 1], watched[:, model.titles] @ own.weights[:, 3], atol=1e-5)
        assert not scores[:, [0, 2]].any()

    def test_a_badly_conditioned_matrix_is_inverted_in_double_precision(self):
        watched = np.kron((np.random.default_rng(1).random((60, 5)) < 0.5), np.ones((200, 1)))
        gram = sp.csr_matrix(watched.T @ watched)
        inverse = np.linalg.inv(gram.toarray() + 0.01 * np.eye(5))
        expected = -inverse / np.diag(inverse)
        np.fill_diagonal(expected, 0.0)
        np.testing.assert_allclose(ease_weights(gram, 0.01, 100).weights, expected, atol=1e-6)


class TestIals:
    @pytest.mark.parametrize("row", [[1, 0, 1, 0, 0, 0], [1, 1, 1, 0, 1, 0]], ids=["shorter than wide", "longer"])
    def test_a_users_factors_solve_its_weighted_least_squares(self, row):
        titles = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
        model, row = TitleFactors(titles, alpha=4.0, regularization=0.5), np.array(row)
        root = np.sqrt(np.where(row, 4.0, 1.0))[:, None]
        augmented = np.vstack([root * titles, np.sqrt(0.5) * np.eye(3)])
        user = np.linalg.lstsq(augmented, np.concatenate([root[:, 0] * row, np.zeros(3)]), rcond=None)[0]
        found = model.raw(0, histories(row.tolist(), [0] * 6), np.array([5, 0]))
        np.testing.assert_allclose(found, np.stack([titles[[5, 0]] @ user, np.zeros(2)]), rtol=1e-4)

    def test_factors_are_those_of_implicit(self, random_histories):
        als = pytest.importorskip("implicit.cpu.als")
        factors = ials_factors(random_histories, factors=4, alpha=3.0, regularization=0.1)
        np.testing.assert_array_equal(factors, ials_factors(random_histories, factors=4, alpha=3.0, regularization=0.1))
        theirs = als.AlternatingLeastSquares(factors=4, regularization=0.1, alpha=3.0, use_cg=False, num_threads=1)
        theirs.item_factors, theirs.user_factors = factors, np.zeros((60, 4), np.float32)
        users = theirs.recalculate_user(np.arange(60), random_histories.astype(np.float32))
        found = TitleFactors(factors, alpha=3.0, regularization=0.1).raw(0, random_histories, np.arange(8))
        np.testing.assert_allclose(found, users @ factors.T, atol=1e-4)


class TestBlend:
    raw = np.array([[1.0, 2.0, 4.0], [0.0, 0.0, 0.0]], dtype=np.float32)
    history = histories([0, 1, 1], [0, 0, 0])
    popularity = np.array([3.0, 2.0, 1.0], dtype=np.float32)

    @pytest.mark.parametrize(
        ("normalise", "unit", "first"),
        [
            ("none", 4.0, [1 / 4, 2 / 4, 4 / 4]),
            ("max", 1.0, [1 / 4, 2 / 4, 1]),
            ("length", 1.0, [0.5**0.5, 2**0.5, 8**0.5]),
        ],
    )
    def test_scores_are_alike_in_scale_and_popularity_is_added(self, normalise, unit, first):
        blend = Blend(unit, normalise, popularity_weight=0.5, exclude_seen=False)
        found = blend.scores(self.raw, self.history, ALL, self.popularity)
        np.testing.assert_allclose(found[0], SPREAD * np.array(first) + 0.5 * self.popularity, rtol=1e-6)
        np.testing.assert_allclose(found[1], 0.5 * self.popularity)  # without a history popularity alone
        np.testing.assert_array_equal(self.raw, [[1, 2, 4], [0, 0, 0]])

    def test_titles_of_the_history_come_last(self):
        columns = np.array([2, 0])
        blends = [Blend(1.0, "none", 0.0, exclude_seen) for exclude_seen in (True, False)]
        without, plain = (
            b.scores(self.raw[:, columns], self.history, columns, self.popularity[columns]) for b in blends
        )
        np.testing.assert_allclose(plain - without, [[SEEN_PENALTY, 0], [0, 0]])

    def test_the_unit_is_of_users_with_a_positive_score(self):
        assert Blend.best_raw(self.raw, np.array([2, 0]), "length").tolist() == pytest.approx([8**0.5])
        assert len(Blend.best_raw(np.zeros((2, 0), np.float32), np.zeros(2), "max")) == 0


class TestChoice:
    grid = {"a": (1, 2, 3), "b": (10, 20)}

    def test_settings_are_chosen_one_after_another(self):
        seen = []

        def measure(settings):
            seen.append(settings)
            return -((settings["a"] - 3) ** 2) - (settings["b"] - 20) ** 2

        assert choose_settings(self.grid, measure) == ({"a": 3, "b": 20}, 0)
        assert seen == [{"a": a, "b": 10} for a in (1, 2, 3)] + [{"a": 3, "b": 20}]

    def test_ties_and_nothing_to_measure_keep_the_first(self):
        assert choose_settings(self.grid, lambda settings: 1.0) == ({"a": 1, "b": 10}, 1.0)
        chosen, value = choose_settings(self.grid, lambda settings: float("nan"))
        assert chosen == {"a": 1, "b": 10}
        assert math.isnan(value)

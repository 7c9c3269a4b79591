"""One forward for a mixed batch: equal to each request alone under its own eliminator, bounded to what is offered."""

import itertools

import numpy as np
import pytest
import torch

from mtrec_ray.bundle.manifest import Bundle
from mtrec_ray.models.eliminators import StackedEliminators
from mtrec_ray.serving import engine as engine_module
from mtrec_ray.serving.engine import Engine, Query
from tests.serving.bundles import HISTORY, NUM_TITLES, SOUTH_ONLY, TITLE_IDS, USER_WIDTH, write_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    return Bundle.open(str(write_bundle(tmp_path_factory.mktemp("engine") / "bundle")))


@pytest.fixture
def engine(bundle) -> Engine:
    return Engine(bundle)


def every_case() -> list[Query]:
    """All combinations with all values, unknown ones too, short and long histories, shuffled."""
    rng = np.random.default_rng(0)
    cases = [
        Query(tuple(rng.integers(0, NUM_TITLES, 1 + place % 9).tolist()), values, combination, place % 2, 5)
        for place, (combination, values) in enumerate(
            itertools.product(range(4), itertools.product((-1, 0, 1), (-1, 0, 1, 2)))
        )
    ]
    return [cases[place] for place in rng.permutation(len(cases))]


def alone(bundle: Bundle, engine: Engine, query: Query) -> torch.Tensor:
    """(d,) by the backbone and the one eliminator, nothing stacked, nothing cached."""
    backbone, whole = bundle.backbone(), bundle.eliminators()
    history = torch.tensor([query.history[-HISTORY:]])
    combination = list(engine.combinations)[query.combination]
    if not combination:
        return backbone.user_vectors(history)[0]
    pack = StackedEliminators(
        whole.config, whole.attributes, [combination], width=whole.prompts.shape[-1], num_layers=whole.gate.shape[-1]
    )
    place = whole.combinations.index(combination)
    pack.load_state_dict({name: value[place : place + 1] for name, value in whole.state_dict().items()})
    return backbone.user_vectors(history, eliminators=pack.for_all(torch.tensor([query.values])))[0, 0]


def test_a_mixed_batch_equals_each_request_alone(bundle, engine):
    queries = every_case()
    vectors = engine.user_vectors(queries)
    for query, vector in zip(queries, vectors, strict=True):
        torch.testing.assert_close(vector, alone(bundle, engine, query), rtol=1e-4, atol=1e-5)


def test_the_cache_changes_nothing_even_when_it_overflows(bundle, engine):
    queries = every_case()
    first = engine.user_vectors(queries)
    assert torch.equal(engine.user_vectors(queries), first)
    assert len(engine.bank.row_of) == len({(query.combination, *query.values) for query in queries})
    engine, kept = Engine(bundle), []
    engine.bank.capacity = 20
    for start in range(0, len(queries), 6):
        torch.testing.assert_close(engine.user_vectors(queries[start : start + 6]), first[start : start + 6])
        kept.append(len(engine.bank.row_of))
        assert kept[-1] == len(engine.bank.of_key.matrix) <= 20
    assert kept[0] < kept[2] > kept[3]  # begun anew more than once


def test_what_is_offered_somewhere_alone_is_offered_nowhere_else(tmp_path):
    for offered, elsewhere in (({}, [[], []]), ({"t05": ["south"]}, [[5], []]), ({"t07": ["north"]}, [[], [7]])):
        engine = Engine(Bundle.open(str(write_bundle(tmp_path / "-".join(["only", *offered]), offered=offered))))
        assert engine.catalogue.everywhere == (not offered)
        for territory, missing in enumerate(elsewhere):
            (found,) = engine.recommend([Query((1, 2), (0, 0), 0, territory, NUM_TITLES)])
            assert set(range(NUM_TITLES)) - set(found.titles) == set(missing)


def test_answers_are_the_best_offered_titles_in_order(engine):
    queries = every_case()
    scores = engine.user_vectors(queries) @ engine.title_vectors
    not_in_north = [TITLE_IDS.index(title) for title in SOUTH_ONLY]
    for query, row, ranked in zip(queries, scores, engine.recommend(queries), strict=True):
        if query.territory == 0:
            row[not_in_north] = -torch.inf
        assert ranked.titles == row.argsort(descending=True)[:5].tolist()
        assert ranked.scores == sorted(ranked.scores, reverse=True)


def test_k_and_what_is_left_out_are_each_requests_own(engine):
    everything = tuple(range(NUM_TITLES))
    few, none, all_of_them = engine.recommend(
        [
            Query((1, 2), (0, 0), 0, 1, 3, exclude=everything[5:]),
            Query((1, 2), (0, 0), 1, 1, 3, exclude=everything),
            Query((1, 2), (0, 0), 2, 0, NUM_TITLES),
        ]
    )
    assert sorted([*few.titles, *few.titles])[::2] == sorted(few.titles)
    assert len(few.titles) == 3
    assert set(few.titles) <= set(range(5))
    assert none.titles == none.scores == []
    assert len(all_of_them.titles) == NUM_TITLES - len(SOUTH_ONLY)


def test_a_large_batch_is_scored_in_parts(engine, monkeypatch):
    queries = every_case()
    whole = engine.recommend(queries)
    monkeypatch.setattr(engine_module, "MAX_CELLS", 7 * NUM_TITLES)
    assert [ranked.titles for ranked in engine.recommend(queries)] == [ranked.titles for ranked in whole]


def test_popular_titles_end_where_there_are_no_more(engine):
    assert engine.most_popular(0, 3).titles == [10, 11, 12]
    assert engine.most_popular(0, 100).titles == list(range(10, 18))
    assert engine.most_popular(1, 3, frozenset({3, 5})).titles == [4, 6, 7]


def test_propensities_use_the_territorys_block(engine):
    embedding = np.random.default_rng(1).standard_normal(USER_WIDTH).astype(np.float32)
    north, south = (engine.propensities(embedding, territory, [0, 1, 2], 3) for territory in (0, 1))
    model = engine.two_tower
    user = model.user_vectors(torch.from_numpy(embedding)[None], torch.tensor([1]))
    expected = model.logits(user, engine.propensity_vectors[:3])[0].sigmoid()
    torch.testing.assert_close(torch.tensor(south.scores), expected)
    assert north.scores != south.scores
    best = engine.propensities(embedding, 0, None, NUM_TITLES)
    assert len(best.titles) == NUM_TITLES - len(SOUTH_ONLY)
    assert best.scores == sorted(best.scores, reverse=True)
    assert all(0 < score < 1 for score in best.scores)


def test_a_title_that_is_as_good_as_impossible_is_still_offered(engine, monkeypatch):
    monkeypatch.setattr(engine.two_tower, "logits", lambda *_: torch.full((1, NUM_TITLES), -200.0))
    found = engine.propensities(np.ones(USER_WIDTH, dtype=np.float32), 0, None, NUM_TITLES)
    assert found.scores == [0.0] * (NUM_TITLES - len(SOUTH_ONLY))

"""One forward for a mixed batch: equal to each request alone under its own eliminator, limited to offered titles."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from mtrec_ray.bundle.manifest import Bundle
from mtrec_ray.models.eliminators import StackedEliminators
from mtrec_ray.models.two_tower import TwoTower
from mtrec_ray.serving import engine as engine_module
from mtrec_ray.serving.engine import Engine, Query
from mtrec_ray.streams.scored_users import ScoringChunk
from mtrec_ray.trainers.propensity import PropensityScorer
from tests.serving.bundles import HISTORY, NUM_TITLES, SOUTH_ONLY, TITLE_IDS, USER_WIDTH, write_bundle

IN_NORTH = NUM_TITLES - len(SOUTH_ONLY)


@pytest.fixture(scope="module")
def bundle(bundle_uri) -> Bundle:
    return Bundle.open(bundle_uri)


@pytest.fixture
def engine(bundle) -> Engine:
    return Engine(bundle)


@pytest.fixture(scope="module")
def queries() -> list[Query]:
    """All combinations with all values, unknown ones too, short and long histories, shuffled."""
    rng = np.random.default_rng(0)
    values = itertools.product((-1, 0, 1), (-1, 0, 1, 2))
    cases = [
        Query(tuple(rng.integers(0, NUM_TITLES, 1 + index % 9).tolist()), values, combination, index % 2, 5)
        for index, (combination, values) in enumerate(itertools.product(range(4), values))
    ]
    return [cases[index] for index in rng.permutation(len(cases))]


def alone(bundle: Bundle, engine: Engine, query: Query) -> torch.Tensor:
    """(d,) by the backbone and the one eliminator, without stacking or caching."""
    backbone, stacked = bundle.backbone(), bundle.eliminators()
    assert isinstance(stacked, StackedEliminators)
    history = torch.tensor([query.history[-HISTORY:]])
    combination = list(engine.combinations)[query.combination]
    if not combination:
        return backbone.user_vectors(history)[0]
    shape = stacked.prompts.shape[-1], stacked.gate.shape[-1]
    one = StackedEliminators(stacked.config, stacked.attributes, [combination], *shape)
    index = stacked.combinations.index(combination)
    one.load_state_dict({name: value[index : index + 1] for name, value in stacked.state_dict().items()})
    return backbone.user_vectors(history, eliminators=one.for_all(torch.tensor([query.values])))[0, 0]


def test_mixed_batch_equals_each_request_alone(bundle, engine, queries):
    for query, vector in zip(queries, engine.user_vectors(queries), strict=True):
        torch.testing.assert_close(vector, alone(bundle, engine, query), rtol=1e-4, atol=1e-5)


def test_cache_changes_nothing_even_when_it_overflows(bundle, engine, queries):
    first = engine.user_vectors(queries)
    assert torch.equal(engine.user_vectors(queries), first)
    assert len(engine.bank.of_key.row_of) == len({(query.combination, *query.values) for query in queries})
    engine, sizes = Engine(bundle), []
    engine.bank.of_key.capacity = 20
    for start in range(0, len(queries), 6):
        torch.testing.assert_close(engine.user_vectors(queries[start : start + 6]), first[start : start + 6])
        sizes.append(len(engine.bank.of_key.row_of))
        assert sizes[-1] == engine.bank.of_key.table.length <= 20
    assert sizes[0] < sizes[2] > sizes[3]  # cleared more than once


@pytest.mark.parametrize(
    ("offered", "unavailable"), [({}, [[], []]), ({"t05": ["south"]}, [[5], []]), ({"t07": ["north"]}, [[], [7]])]
)
def test_titles_are_recommended_only_where_they_are_offered(tmp_path, offered, unavailable):
    engine = Engine(Bundle.open(str(write_bundle(tmp_path / "bundle", offered=offered))))
    assert engine.all_offered == (not offered)
    for territory, missing in enumerate(unavailable):
        (ranked,) = engine.recommend([Query((1, 2), (0, 0), 0, territory, NUM_TITLES)])
        assert set(range(NUM_TITLES)) - set(ranked.titles) == set(missing)


def test_answers_are_the_best_offered_titles_in_order(engine, queries):
    scores = engine.user_vectors(queries) @ engine.title_vectors
    not_in_north = [TITLE_IDS.index(title) for title in SOUTH_ONLY]
    for query, row, ranked in zip(queries, scores, engine.recommend(queries), strict=True):
        if query.territory == 0:
            row[not_in_north] = -torch.inf
        assert ranked.titles == row.argsort(descending=True)[:5].tolist()
        assert ranked.scores == sorted(ranked.scores, reverse=True)


def test_k_and_excluded_titles_belong_to_each_request(engine):
    everything = tuple(range(NUM_TITLES))
    few, none, all_offered = engine.recommend(
        [
            Query((1, 2), (0, 0), 0, 1, 3, exclude=everything[5:]),
            Query((1, 2), (0, 0), 1, 1, 3, exclude=everything),
            Query((1, 2), (0, 0), 2, 0, NUM_TITLES),
        ]
    )
    assert len(few.titles) == len(set(few.titles)) == 3
    assert set(few.titles) <= set(range(5))
    assert none.titles == none.scores == []
    assert len(all_offered.titles) == IN_NORTH


def test_large_batch_is_scored_in_parts(engine, queries, monkeypatch):
    expected = engine.recommend(queries)
    monkeypatch.setattr(engine_module, "MAX_CELLS", 7 * NUM_TITLES)
    assert [ranked.titles for ranked in engine.recommend(queries)] == [ranked.titles for ranked in expected]


def test_popular_titles_end_where_there_are_no_more(engine):
    assert engine.most_popular(0, 3).titles == [10, 11, 12]
    assert engine.most_popular(0, 100).titles == list(range(10, 18))
    assert engine.most_popular(1, 3, frozenset({3, 5})).titles == [4, 6, 7]


def test_propensities_use_the_block_and_the_input_of_the_territory(engine):
    embedding = np.random.default_rng(1).standard_normal(USER_WIDTH).astype(np.float32)
    north, south = (engine.propensities(embedding, territory, [0, 1, 2], 3) for territory in (0, 1))
    features, one = torch.from_numpy(embedding)[None], torch.tensor([1])
    assert engine.two_tower.one_hot is not None
    user = engine.two_tower.user_vectors(features, one, one)
    assert not torch.equal(user, engine.two_tower.user_vectors(features, one, torch.tensor([0])))
    expected = engine.two_tower.logits(user, engine.propensity_vectors[:3])[0].sigmoid()
    torch.testing.assert_close(torch.tensor(south.scores), expected)
    assert north.scores != south.scores
    best = engine.propensities(embedding, 0, None, NUM_TITLES)
    assert len(best.titles) == IN_NORTH
    assert best.scores == sorted(best.scores, reverse=True)
    assert all(0 < score < 1 for score in best.scores)


def test_title_of_propensity_zero_is_still_offered(engine, monkeypatch):
    monkeypatch.setattr(engine.two_tower, "logits", lambda *_: torch.full((1, NUM_TITLES), -200.0))
    found = engine.propensities(np.ones(USER_WIDTH, dtype=np.float32), 0, None, NUM_TITLES)
    assert found.scores == [0.0] * IN_NORTH


@pytest.mark.parametrize("aligned", [0, 4])
def test_propensities_are_those_of_the_evaluation_for_a_user_of_average_activity(engine, aligned):
    towers = replace(engine.two_tower.config, aligned_width=aligned, prior_shape=(2, NUM_TITLES, 3))
    model, rng = TwoTower(towers), np.random.default_rng(2)
    model.init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.get_buffer("title_prior").normal_()
        model.get_buffer("user_prior").copy_(torch.tensor([0.0, 1.0, -1.0]))  # activity 0 is average
        model.get_buffer("seen_prior").fill_(1.25)
        if model.gain is not None:
            model.gain.fill_(0.7)
    embeddings = rng.standard_normal((NUM_TITLES, towers.title_width)).astype(np.float16)
    scorer = PropensityScorer(model, embeddings, engine.group_of)
    engine.two_tower, engine.propensity_vectors = scorer.model, scorer.titles
    watched, embedding = [3, 11], rng.standard_normal((1, USER_WIDTH)).astype(np.float32)
    seen = np.isin(np.arange(NUM_TITLES), watched)[None]
    for territory in (0, 1):
        chunk = ScoringChunk(
            territory=territory,
            rows=np.zeros(1, dtype=np.int64),
            keys=np.zeros(1, dtype=np.uint64),
            embedding=embedding,
            activity=np.zeros(1, dtype=np.int64),
            seen=seen,
            title_index=np.arange(NUM_TITLES, dtype=np.int32),
            candidates=np.ones((1, NUM_TITLES), dtype=bool),
            labels=np.zeros((1, NUM_TITLES), dtype=bool),
        )
        expected = torch.from_numpy(scorer.score(chunk)[0]).sigmoid()
        titles = [11, 0, 3, 7]
        found = engine.propensities(embedding[0], territory, titles, 4, watched)
        torch.testing.assert_close(torch.tensor(found.scores), expected[titles])
        unwatched = engine.propensities(embedding[0], territory, titles, 4)
        assert [a == b for a, b in zip(found.scores, unwatched.scores, strict=True)] == [False, True, False, True]

"""Turns requests into queries: names become indices; invalid requests are refused."""

from typing import Any

import numpy as np

from mtrec_ray.combinations import Combination, combination_name
from mtrec_ray.serving.answers import Refused
from mtrec_ray.serving.engine import Engine, Query, Ranked
from mtrec_ray.serving.schemas import PropensityRequest, RecommendRequest
from mtrec_ray.serving.store import UserState

MAX_EMBEDDING = 65504.0  # largest float16, the stored type of embeddings: sums of such numbers do not overflow


def check_request(engine: Engine, request: RecommendRequest, has_store: bool, prefix: str) -> tuple[Combination, int]:
    """Combination and territory of a request, checked; `prefix` is of field names."""
    declared = engine.manifest.attributes
    if request.user_id is not None and not has_store:
        raise Refused(f"{prefix}user_id", "this endpoint has no online store: send a history")
    _check_k(engine, request.k, prefix)
    for name, value in request.attributes.items():
        _check_attribute(engine, name, f"{prefix}attributes")
        if value not in declared[name]:
            choices = ", ".join(map(repr, declared[name]))
            raise Refused(f"{prefix}attributes.{name}", f"not a value of {name}; choose from {choices}")
    for index, name in enumerate(request.ignore):
        _check_attribute(engine, name, f"{prefix}ignore[{index}]")
    combination = tuple(name for name in declared if name in request.ignore)
    if combination not in engine.combinations:
        choices = ", ".join(combination_name(one) for one in engine.combinations if one)
        message = f"no eliminator was trained for {combination_name(combination)}; choose from {choices}"
        raise Refused(f"{prefix}ignore", message)
    return combination, _territory(engine, request.territory, prefix)


def prepare_answer(
    engine: Engine,
    request: RecommendRequest,
    combination: Combination,
    territory: int,
    state: UserState | None,
    store_error: str | None,
) -> tuple[Query | None, dict[str, Any]]:
    """Query and answer of a checked request.

    The answer's titles are the query's or, without a query, popular ones. `state` is the user's: None if unknown, or if
    there is a `store_error`.
    """
    known = state or UserState()
    history = request.history if request.history is not None else known.history
    values = request.attributes if request.history is not None else known.attributes
    row_of = engine.row_of
    titles = tuple(row_of[title] for title in history if title in row_of)
    reason = None
    if request.user_id is not None and state is None:
        reason = store_error or "unknown user"
    elif not titles:
        reason = "no known title in the history"
    indices = {
        name: declared.index(values[name]) if values.get(name) in declared else -1
        for name, declared in engine.manifest.attributes.items()
    }
    exclude = frozenset(titles) if request.exclude_seen else frozenset()
    query, popular = None, Ranked([], [])
    if reason is None:
        number = engine.combinations[combination]
        query = Query(titles, tuple(indices.values()), number, territory, request.k, tuple(exclude))
    else:
        popular = engine.most_popular(territory, request.k, exclude)
    return query, {
        "titles": named_titles(engine, popular, "score"),
        "combination": combination_name(combination),
        "source": "model" if reason is None else "popularity",
        "reason": reason,
        "unknown_titles": len(history) - len(titles),
        "unknown_values": [name for name in combination if indices[name] < 0],
        "bundle_version": engine.version,
    }


def named_titles(engine: Engine, ranked: Ranked, score: str) -> list[dict[str, Any]]:
    """Titles as answers list them; `score` names the field of the score."""
    ids, names, pairs = engine.ids, engine.names, zip(ranked.titles, ranked.scores, strict=True)
    return [{"title_id": ids[title], "name": names[title], score: value} for title, value in pairs]


def propensity_inputs(
    engine: Engine, request: PropensityRequest, state: UserState | None
) -> tuple[np.ndarray, int, list[int] | None]:
    """(embedding, territory, titles) of a valid request."""
    if engine.two_tower is None:
        fix = "`mtrec bundle --propensity RUN` makes a bundle with one"
        raise Refused(None, f"this bundle has no propensity model: {fix}", 404)
    territory, row_of = _territory(engine, request.territory), engine.row_of
    _check_k(engine, request.k)
    if request.embedding is not None:
        with np.errstate(over="ignore"):  # infinite numbers are refused below
            embedding, field = np.array(request.embedding).astype(np.float32), "embedding"
    elif state is None or not state.embedding:
        raise Refused("user_id", "unknown user, or one without an embedding: send an embedding", 404)
    else:
        embedding, field = np.frombuffer(state.embedding, dtype="<f2").astype(np.float32), "user_id"
    if len(embedding) != (width := engine.two_tower.config.user_width):
        raise Refused(field, f"the embedding has {len(embedding)} numbers, the model takes {width}")
    if not (np.abs(embedding) <= MAX_EMBEDDING).all():
        raise Refused(field, f"the embedding contains NaN, infinity or a number beyond {MAX_EMBEDDING:g}")
    for index, title in enumerate(request.title_ids or ()):
        if title not in row_of:
            raise Refused(f"title_ids[{index}]", "no such title in the catalogue: leave it out")
        if engine.unavailable[territory, row_of[title]]:
            raise Refused(f"title_ids[{index}]", f"not offered in territory {request.territory!r}: leave it out")
    return embedding, territory, [row_of[title] for title in request.title_ids] if request.title_ids else None


def _check_k(engine: Engine, k: int, prefix: str = "") -> None:
    if k > (titles := len(engine.ids)):
        raise Refused(f"{prefix}k", f"k is {k}, but the catalogue has {titles} titles")


def _check_attribute(engine: Engine, name: str, field: str) -> None:
    if name not in (declared := engine.manifest.attributes):
        raise Refused(field, f"no attribute {name!r}; choose from {', '.join(declared) or 'none'}")


def _territory(engine: Engine, name: str, prefix: str = "") -> int:
    if name not in engine.territory_of:
        raise Refused(f"{prefix}territory", f"no territory {name!r}; GET /v1/combinations lists them")
    return engine.territory_of[name]

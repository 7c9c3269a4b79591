"""Turns requests into queries of an engine: names become indices, and what cannot be served is refused."""

from dataclasses import dataclass

import numpy as np

from mtrec_ray.combinations import Combination, combination_name
from mtrec_ray.serving.answers import Refused
from mtrec_ray.serving.engine import Engine, Query
from mtrec_ray.serving.schemas import PropensityRequest, RecommendRequest
from mtrec_ray.serving.store import UserState

MAX_EMBEDDING = 65504.0
"""Largest float16, the type that embeddings are stored in: sums of such numbers do not overflow."""


@dataclass(frozen=True)
class Resolved:
    """A checked request; without a `query`, it is answered with popular titles of the territory, for `reason`."""

    request: RecommendRequest
    combination: Combination
    territory: int
    query: Query | None
    exclude: frozenset[int]
    reason: str | None
    unknown_titles: int
    unknown_values: list[str]


def check(engine: Engine, request: RecommendRequest, store: bool, place: str) -> tuple[Combination, int]:
    """Combination and territory of a request, checked without the store; `place` is a prefix of field names."""
    if request.user_id is not None and not store:
        raise Refused(f"{place}user_id", "this endpoint has no online store: send a history")
    if request.k > len(engine.catalogue.ids):
        raise Refused(f"{place}k", f"k is {request.k}, the catalogue has {len(engine.catalogue.ids)} titles")
    for name, value in request.attributes.items():
        declared = engine.manifest.attributes.get(name)
        if declared is None:
            raise Refused(f"{place}attributes", f"no attribute {name!r}; there are {_listed(engine)}")
        if value not in declared:
            allowed = ", ".join(map(repr, declared))
            raise Refused(f"{place}attributes.{name}", f"not a value of {name}; choose one of {allowed}")
    return _combination(engine, request.ignore, place), _territory(engine, request.territory, place)


def resolve(
    engine: Engine,
    request: RecommendRequest,
    combination: Combination,
    territory: int,
    state: UserState | None,
    reason: str | None = None,
) -> Resolved:
    """Join a checked request and its user's state: None if unknown or, with a `reason`, if the store is away."""
    known = state or UserState()
    titles = request.history if request.history is not None else known.history
    values = request.attributes if request.history is not None else known.attributes
    row_of = engine.catalogue.row_of
    rows = tuple(row_of[title] for title in titles if title in row_of)
    if request.user_id is None:
        reason = None  # the store does not matter to it, only to other requests of its batch
    elif state is None:
        reason = reason or "unknown user"
    if reason is None and not rows:
        reason = "no known title in the history"
    declared = engine.manifest.attributes
    index = tuple(there.index(values[name]) if values.get(name) in there else -1 for name, there in declared.items())
    exclude = frozenset(rows) if request.exclude_seen else frozenset()
    query = None
    if reason is None:
        place = engine.combinations[combination]
        query = Query(rows, index, place, territory, request.k, tuple(exclude))
    return Resolved(
        request=request,
        combination=combination,
        territory=territory,
        query=query,
        exclude=exclude,
        reason=reason,
        unknown_titles=len(titles) - len(rows),
        unknown_values=[name for name, value in zip(declared, index, strict=True) if value < 0 and name in combination],
    )


def propensity_inputs(
    engine: Engine, request: PropensityRequest, state: UserState | None
) -> tuple[np.ndarray, int, list[int] | None]:
    """(embedding, territory, titles) of a checked request."""
    if engine.two_tower is None:
        fix = "this bundle has no propensity model: `mtrec bundle --propensity RUN` makes one that has"
        raise Refused(None, fix, 404)
    width, row_of = engine.two_tower.config.user_width, engine.catalogue.row_of
    territory = _territory(engine, request.territory, "")
    if request.k > len(row_of):
        raise Refused("k", f"k is {request.k}, the catalogue has {len(row_of)} titles")
    if request.embedding is not None:
        with np.errstate(over="ignore"):  # what becomes infinite is refused below
            embedding, field = np.array(request.embedding).astype(np.float32), "embedding"
    elif state is None or not state.embedding:
        raise Refused("user_id", "no such user, or one without an embedding: give an embedding", 404)
    else:
        embedding, field = np.frombuffer(state.embedding, dtype="<f2").astype(np.float32), "user_id"
    if len(embedding) != width:
        raise Refused(field, f"the embedding has {len(embedding)} numbers, this model takes {width}")
    if not (np.abs(embedding) <= MAX_EMBEDDING).all():
        raise Refused(field, f"the embedding holds NaN, infinity or a number beyond {MAX_EMBEDDING:g}")
    if request.title_ids is None:
        return embedding, territory, None
    for place, title in enumerate(request.title_ids):
        if title not in row_of:
            raise Refused(f"title_ids[{place}]", "no such title in the catalogue: leave it out")
        if engine.catalogue.elsewhere[territory, row_of[title]]:
            raise Refused(f"title_ids[{place}]", f"not offered in territory {request.territory!r}: leave it out")
    return embedding, territory, [row_of[title] for title in request.title_ids]


def _combination(engine: Engine, ignore: list[str], place: str) -> Combination:
    for position, name in enumerate(ignore):
        if name not in engine.manifest.attributes:
            raise Refused(f"{place}ignore[{position}]", f"no attribute {name!r}; there are {_listed(engine)}")
    wanted = tuple(name for name in engine.manifest.attributes if name in ignore)
    if wanted not in engine.combinations:
        there = ", ".join(combination_name(combination) for combination in engine.combinations if combination)
        message = f"nothing was trained to ignore {combination_name(wanted)}; there are {there}"
        raise Refused(f"{place}ignore", message)
    return wanted


def _territory(engine: Engine, name: str, place: str) -> int:
    if name not in engine.catalogue.territory_of:
        raise Refused(f"{place}territory", f"no territory {name!r}; GET /v1/combinations lists them")
    return engine.catalogue.territory_of[name]


def _listed(engine: Engine) -> str:
    return ", ".join(engine.manifest.attributes) or "none"

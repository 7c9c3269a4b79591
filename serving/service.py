"""What the routes do, apart from HTTP: from requests to answers as plain data."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np

from mtrec_ray.bundle.manifest import ListAudit
from mtrec_ray.combinations import Combination, combination_name
from mtrec_ray.serving.batcher import Batcher
from mtrec_ray.serving.engine import Engine, Query, Ranked
from mtrec_ray.serving.guard import MAYBE_STORED, Refused
from mtrec_ray.serving.pointer import LiveEngine
from mtrec_ray.serving.schemas import EventsRequest, PropensityRequest, RecommendRequest
from mtrec_ray.serving.store import Store, StoreUnavailable, UserState
from mtrec_ray.serving.telemetry import Telemetry

Answer = dict[str, Any]  # JSON with the fields of the class in `serving.schemas` that the route names
Prepared = tuple[Query | None, Answer]  # without a query, the answer has popular titles
Item = TypeVar("Item")

ANSWERS_AT_ONCE = 64  # answers of a batch that are prepared or written before other requests get a turn
EXAMPLE_USERS, EXAMPLE_TITLES = 6, 2000
MAX_EMBEDDING = 65504.0  # largest float16, the stored type of embeddings: sums of such numbers do not overflow
UNAVAILABLE = "store unavailable"


class Service:
    """One replica's engine, store and batcher."""

    def __init__(self, live: LiveEngine, store: Store | None, telemetry: Telemetry) -> None:
        self.live, self.store, self.telemetry = live, store, telemetry
        self.batcher = Batcher(telemetry.batch)

    async def recommend(self, requests: list[RecommendRequest], many: bool) -> list[Answer]:
        """Recommendations, in order; Refused names the index of a request if `many`."""
        engine, prepared = self.live.engine, list[Prepared]()
        for index, request in enumerate(requests):
            try:
                _check(engine, request, self.store is not None)
            except Refused as refused:
                refused.field = f"requests[{index}].{refused.field}" if many else refused.field
                raise
        states, missing = await self._states([r.user_id for r in requests if r.user_id is not None])
        async for request in _in_turns(requests):
            state = states.get(request.user_id or "")
            if request.history is not None:
                state = UserState(tuple(request.history), request.attributes)
            prepared.append(_prepare(engine, request, state, missing))
        with self.telemetry.stage("model"):
            queries = [query for query, _ in prepared if query is not None]
            ranked = iter(await self.batcher.recommend(engine, queries))
        async for query, answer in _in_turns(prepared):
            if query is not None:
                answer["titles"] = _named(engine, next(ranked), "score")
            else:
                self.telemetry.degraded.inc(1, {"reason": answer["reason"]})
        return [answer for _, answer in prepared]

    async def propensities(self, request: PropensityRequest) -> Answer:
        """Propensities of one user; raises Refused."""
        engine, state = self.live.engine, None
        if request.user_id is not None:
            if self.store is None:
                raise Refused("user_id", "this endpoint has no online store: send an embedding")
            states, missing = await self._states([request.user_id])
            if missing == UNAVAILABLE:
                raise Refused(None, "the online store cannot be reached: try again", 503)
            state = states.get(request.user_id)
        embedding, territory, titles = _propensity_inputs(engine, request, state)
        with self.telemetry.stage("propensity"):
            watched = {engine.row_of[title] for title in (state.history if state else ()) if title in engine.row_of}
            ranked = engine.propensities(embedding, territory, titles, request.k, watched)
        named = _named(engine, ranked, "propensity")
        return {"titles": named, "group": engine.group_of[territory], "bundle_version": engine.version}

    async def append(self, user_id: str, request: EventsRequest, key: str | None) -> Answer:
        """Store what a user watched, once per idempotency `key`; raises Refused."""
        row_of = self.live.engine.row_of
        known = [event.title_id for event in request.events if event.title_id in row_of]
        if self.store is None:
            raise Refused(None, "this endpoint has no online store: start it with --store", 404)
        if not known:
            raise Refused("events", "none of these titles is in the catalogue: nothing was stored")
        try:
            length = await self.store.append(user_id, known, key)
        except StoreUnavailable as error:
            raise Refused(None, f"the online store did not answer: {MAYBE_STORED}", 503) from error
        unknown = len(request.events) - len(known)
        return {"stored": len(known), "unknown_titles": unknown, "history_length": length}

    def combinations(self) -> Answer:
        """What requests can ask for, with metrics and audit; the backbone first."""
        engine, manifest = self.live.engine, self.live.engine.manifest
        metrics, audit, list_audit = manifest.metrics, manifest.audit, manifest.list_audit
        return {
            "bundle_version": manifest.version,
            "attributes": manifest.attributes,
            "territories": manifest.territories,
            "exclude_seen": manifest.exclude_seen,
            "combinations": [
                {
                    "name": (name := combination_name(combination)),
                    "ignore": combination,
                    "metrics": metrics.get(name, {}),
                    "audit": audit.get(name, {}),
                    "list_audit": list_audit.get(name, ListAudit()),
                    "warnings": engine.warnings[combination, manifest.exclude_seen],
                }
                for combination in [(), *manifest.combinations]
            ],
        }

    async def examples(self) -> Answer:
        """Some users and titles, for the page of an endpoint that only this machine can reach."""
        engine, users = self.live.engine, list[str]()
        if self.store is not None:
            with suppress(StoreUnavailable):  # the page works without examples
                users = await self.store.sample(EXAMPLE_USERS)
        pairs = zip(engine.ids[:EXAMPLE_TITLES], engine.names[:EXAMPLE_TITLES], strict=True)
        return {"users": users, "titles": [{"title_id": title, "name": name} for title, name in pairs]}

    async def _states(self, user_ids: list[str]) -> tuple[dict[str, UserState], str]:
        """States of users, and why others have none."""
        if not user_ids or self.store is None:
            return {}, "unknown user"
        unique = list(dict.fromkeys(user_ids))
        try:
            with self.telemetry.stage("store"):
                states = await self.store.get(unique)
        except StoreUnavailable:
            self.telemetry.error(UNAVAILABLE)
            return {}, UNAVAILABLE
        return {user: state for user, state in zip(unique, states, strict=True) if state is not None}, "unknown user"


async def _in_turns(items: Iterable[Item]) -> AsyncIterator[Item]:
    for number, item in enumerate(items, 1):
        yield item
        if number % ANSWERS_AT_ONCE == 0:
            await asyncio.sleep(0)


def _check(engine: Engine, request: RecommendRequest, has_store: bool) -> None:
    """Refuse what the bundle does not have."""
    declared = engine.manifest.attributes
    if request.user_id is not None and not has_store:
        raise Refused("user_id", "this endpoint has no online store: send a history")
    _check_k(engine, request.k)
    for name, value in request.attributes.items():
        _check_attribute(engine, name, "attributes")
        if value not in declared[name]:
            choices = ", ".join(map(repr, declared[name]))
            raise Refused(f"attributes.{name}", f"not a value of {name}; choose from {choices}")
    for index, name in enumerate(request.ignore):
        _check_attribute(engine, name, f"ignore[{index}]")
    combination = _combination(engine, request)
    if combination not in engine.combinations:
        choices = ", ".join(combination_name(one) for one in engine.combinations if one)
        message = f"no eliminator was trained for {combination_name(combination)}; choose from {choices}"
        raise Refused("ignore", message)
    _territory(engine, request.territory)


def _prepare(engine: Engine, request: RecommendRequest, state: UserState | None, missing: str) -> Prepared:
    """Query and answer of a checked request."""
    known, row_of, declared = state or UserState(), engine.row_of, engine.manifest.attributes
    combination, territory = _combination(engine, request), engine.territory_of[request.territory]
    titles = tuple(row_of[title] for title in known.history if title in row_of)
    reason = None if titles else "no known title in the history"
    if state is None:
        reason = missing
    chosen = known.attributes
    values = {name: names.index(chosen[name]) if chosen.get(name) in names else -1 for name, names in declared.items()}
    exclude_seen = engine.manifest.exclude_seen if request.exclude_seen is None else request.exclude_seen
    exclude = frozenset(titles) if exclude_seen else frozenset()
    query = None
    if reason is None:
        number = engine.combinations[combination]
        query = Query(titles, tuple(values.values()), number, territory, request.k, exclude)
    return query, {
        "titles": [] if query else _named(engine, engine.most_popular(territory, request.k, exclude), "score"),
        "combination": combination_name(combination),
        "source": "model" if reason is None else "popularity",
        "reason": reason,
        "unknown_titles": len(known.history) - len(titles),
        "unknown_values": [name for name in combination if values[name] < 0],
        "warnings": engine.warnings[combination, exclude_seen] if query else [],  # popular titles are nobody's own
        "bundle_version": engine.version,
    }


def _named(engine: Engine, ranked: Ranked, score: str) -> list[dict[str, Any]]:
    """Titles as answers list them; `score` names the field of the score."""
    ids, names, pairs = engine.ids, engine.names, zip(ranked.titles, ranked.scores, strict=True)
    return [{"title_id": ids[title], "name": names[title], score: value} for title, value in pairs]


def _propensity_inputs(
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


def _combination(engine: Engine, request: RecommendRequest) -> Combination:
    return tuple(name for name in engine.manifest.attributes if name in request.ignore)


def _check_k(engine: Engine, k: int) -> None:
    if k > (titles := len(engine.ids)):
        raise Refused("k", f"k is {k}, but the catalogue has {titles} titles")


def _check_attribute(engine: Engine, name: str, field: str) -> None:
    if name not in (declared := engine.manifest.attributes):
        raise Refused(field, f"no attribute {name!r}; choose from {', '.join(declared) or 'none'}")


def _territory(engine: Engine, name: str) -> int:
    if name not in engine.territory_of:
        raise Refused("territory", f"no territory {name!r}; GET /v1/combinations lists them")
    return engine.territory_of[name]

"""What the routes do, apart from HTTP: from requests to answers as plain data."""

import asyncio
from contextlib import suppress
from typing import Any

from mtrec_ray.combinations import combination_name
from mtrec_ray.serving.answers import MAYBE_STORED, Refused
from mtrec_ray.serving.batcher import Batcher
from mtrec_ray.serving.pointer import LiveEngine
from mtrec_ray.serving.queries import check_request, named_titles, prepare_answer, propensity_inputs
from mtrec_ray.serving.schemas import EventsRequest, PropensityRequest, RecommendRequest
from mtrec_ray.serving.store import Store, StoreUnavailable, UserState
from mtrec_ray.serving.telemetry import Telemetry

Answer = dict[str, Any]  # JSON with the fields of the class in `serving.schemas` that the route names
ANSWERS_AT_ONCE = 64  # answers of a batch that are prepared or written before other requests get a turn
EXAMPLE_USERS, EXAMPLE_TITLES = 6, 2000


class Service:
    """One replica's engine, store and batcher."""

    def __init__(self, live: LiveEngine, store: Store | None, telemetry: Telemetry) -> None:
        self.live, self.store, self.telemetry = live, store, telemetry
        self.batcher = Batcher(telemetry.batch)

    async def recommend(self, requests: list[RecommendRequest], many: bool) -> list[Answer]:
        """Recommendations, in order; Refused names the index of a request if `many`."""
        engine, has_store = self.live.engine, self.store is not None
        checked = [
            check_request(engine, request, has_store, f"requests[{index}]." if many else "")
            for index, request in enumerate(requests)
        ]
        states, store_error = await self._states([r.user_id for r in requests if r.user_id is not None])
        prepared = []
        for number, (request, indices) in enumerate(zip(requests, checked, strict=True), 1):
            state = states.get(request.user_id or "")
            prepared.append(prepare_answer(engine, request, *indices, state, store_error))
            await _let_others_run(number)
        with self.telemetry.stage("model"):
            queries = [query for query, _ in prepared if query is not None]
            ranked = iter(await self.batcher.recommend(engine, queries))
        for number, (query, answer) in enumerate(prepared, 1):
            if query is not None:
                answer["titles"] = named_titles(engine, next(ranked), "score")
            else:
                self.telemetry.degraded.inc(1, {"reason": answer["reason"]})
            await _let_others_run(number)
        return [answer for _, answer in prepared]

    async def propensities(self, request: PropensityRequest) -> Answer:
        """Propensities of one user; raises Refused."""
        engine, state = self.live.engine, None
        if request.user_id is not None:
            if self.store is None:
                raise Refused("user_id", "this endpoint has no online store: send an embedding")
            states, store_error = await self._states([request.user_id])
            if store_error is not None:
                raise Refused(None, "the online store cannot be reached: try again", 503)
            state = states.get(request.user_id)
        embedding, territory, titles = propensity_inputs(engine, request, state)
        with self.telemetry.stage("propensity"):
            ranked = engine.propensities(embedding, territory, titles, request.k)
        part = engine.manifest.propensity
        assert part is not None
        return {
            "titles": named_titles(engine, ranked, "propensity"),
            "group": part.group_of_territory[territory],
            "bundle_version": engine.version,
        }

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
        manifest = self.live.engine.manifest
        names = {combination_name(combination): combination for combination in [(), *manifest.combinations]}
        return {
            "bundle_version": manifest.version,
            "attributes": manifest.attributes,
            "territories": manifest.territories,
            "combinations": [
                {
                    "name": name,
                    "ignore": combination,
                    "metrics": manifest.metrics.get(name, {}),
                    "audit": manifest.audit.get(name, {}),
                }
                for name, combination in names.items()
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

    async def _states(self, user_ids: list[str]) -> tuple[dict[str, UserState], str | None]:
        """States of known users, and the reason if the store could not be reached."""
        if not user_ids or self.store is None:
            return {}, None
        unique = list(dict.fromkeys(user_ids))
        try:
            with self.telemetry.stage("store"):
                states = await self.store.get(unique)
        except StoreUnavailable:
            self.telemetry.error("store unavailable")
            return {}, "store unavailable"
        return {user: state for user, state in zip(unique, states, strict=True) if state is not None}, None


async def _let_others_run(number: int) -> None:
    if number % ANSWERS_AT_ONCE == 0:
        await asyncio.sleep(0)

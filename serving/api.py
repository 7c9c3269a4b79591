"""The ASGI app of a replica: routes, API documentation and the page."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Header, Request, Response
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from mtrec_ray.serving import schemas
from mtrec_ray.serving.guard import GUARD_BODY, Guard, json_answer, refused_of
from mtrec_ray.serving.service import Service
from mtrec_ray.serving.store import StoreUnavailable

RECOMMEND = "/v1/recommend"
JSON_TYPES = (b"application/json", b"application/json; charset=utf-8", b"application/json;charset=utf-8")
MAX_FAST_BYTES = 100_000
PAGE = Path(__file__).parent / "page"
PAGE_HEADERS = {
    "content-security-policy": "default-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
DESCRIPTION = """Recommendations that ignore, request by request, the attributes a user wants ignored.

Who asks to be ignored may expect that the profile which ranks titles tells an attacker no more of the attribute than
chance, as far as the bundle's audit can measure; other attributes and taste itself stay. Lists also tell of a user by
the watched titles that they leave out; `exclude_seen: false` keeps those in. Where the audit found that something still
leaks, or did not look, `warnings` of the answer say so.
"""
PROBLEMS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": schemas.Problem, "description": "Not served; `message` names the fix."},
    "5XX": {"model": schemas.Problem, "description": "With 503, try again after the seconds in Retry-After."},
}


def build_api(service: Service, keys: tuple[str, ...], requests_per_s: float) -> Any:
    """The ASGI app of a replica."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        coroutines = (service.live.follow(service.telemetry.bundle), service.telemetry.keep_reporting())
        working = asyncio.gather(*coroutines, return_exceptions=True)
        yield
        working.cancel()
        with suppress(asyncio.CancelledError):
            await working
        if service.store is not None:
            await service.store.close()

    app = FastAPIOffline(  # /docs and /redoc without a CDN, which a cluster may not reach
        title="mtrec",
        description=DESCRIPTION,
        version=service.live.engine.version,
        lifespan=lifespan,
        responses=PROBLEMS,
    )
    _add_routes(app, service)
    if not keys:

        @app.get("/v1/examples", include_in_schema=False)
        async def examples() -> Response:
            return json_answer(await service.examples())

    async def leave_to_guard(_: Request, error: Exception) -> Response:
        raise refused_of(error)

    for kind in (RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, leave_to_guard)
    return Guard(FastRecommend(app, service), keys, requests_per_s, service.telemetry.error)


class FastRecommend:
    """Answers valid requests of the busiest route, `POST /v1/recommend`, without FastAPI.

    FastAPI takes three times as long to read such a request and to write its answer. Invalid or long ones take its
    route, and those that Ray's own proxy has read: their 99th percentile was a fifth longer here.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, app = (scope.get("extensions") or {}).get(GUARD_BODY, b""), self.app
        if 0 < len(body) <= MAX_FAST_BYTES and _is_json_recommend(scope):
            with suppress(ValidationError):  # FastAPI writes the message
                request = schemas.RecommendRequest.model_validate_json(body)
                app = await _recommend(self.service, request)
        await app(scope, receive, send)


def _is_json_recommend(scope: Scope) -> bool:
    if scope["method"] != "POST" or scope["path"].removeprefix(scope.get("root_path", "")) != RECOMMEND:
        return False
    types = [value.lower() for name, value in scope["headers"] if name == b"content-type"]
    return len(types) == 1 and types[0] in JSON_TYPES


async def _recommend(service: Service, request: schemas.RecommendRequest) -> Response:
    with service.telemetry.stage("recommend"):
        (answer,) = await service.recommend([request], many=False)
    return json_answer(answer)


def _add_routes(app: FastAPI, service: Service) -> None:
    @app.post(RECOMMEND, response_model=schemas.Recommendation)
    async def recommend(request: schemas.RecommendRequest) -> Response:
        """Titles for one user or one history."""
        return await _recommend(service, request)

    @app.post("/v1/recommend:batch", response_model=schemas.RecommendationBatch)
    async def recommend_batch(batch: schemas.RecommendBatch) -> Response:
        """Up to 1,000 requests in one call, answered in order."""
        with service.telemetry.stage("recommend:batch"):
            return json_answer({"responses": await service.recommend(batch.requests, many=True)})

    @app.post("/v1/propensity", response_model=schemas.Propensities)
    async def propensity(request: schemas.PropensityRequest) -> Response:
        """First-discovery propensities, by the block of the territory's group."""
        return json_answer(await service.propensities(request))

    @app.get("/v1/combinations", response_model=schemas.Combinations)
    async def combinations() -> Response:
        """The combinations of attributes that can be ignored, with accuracy and audit of each."""
        return json_answer(service.combinations())

    @app.put("/v1/users/{user_id:path}/events", response_model=schemas.EventsStored)
    async def append(
        user_id: Annotated[str, InPath(min_length=1, max_length=256)],
        request: schemas.EventsRequest,
        idempotency_key: Annotated[str | None, Header(min_length=1, max_length=64)] = None,
    ) -> Response:
        """Store what a user watched; the next recommendation takes it into account.

        Send a new `Idempotency-Key` with each call: after an error, the call can be repeated with the same key without
        storing the events twice.
        """
        return json_answer(await service.append(user_id, request, idempotency_key))

    @app.get("/healthz")
    async def healthz() -> Response:
        """The process answers."""
        return json_answer({"status": "ok"})

    @app.get("/readyz")
    async def readyz() -> Response:
        """Ready to answer; while `store` is `unavailable`, stored users get popular titles."""
        store = None
        if service.store is not None:
            try:
                await service.store.ping()
                store = "reachable"
            except StoreUnavailable:
                store = "unavailable"
        return json_answer({"status": "ready", "bundle_version": service.live.engine.version, "store": store})

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(PAGE / "index.html", headers=PAGE_HEADERS)

    app.mount("/page", StaticFiles(directory=PAGE))

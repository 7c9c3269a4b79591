"""The ASGI app of a replica: routes, API documentation and the page."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Header, Request, Response
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

from mtrec_ray.serving.answers import Refused, json_answer, refused_of
from mtrec_ray.serving.config import LimitsConfig
from mtrec_ray.serving.fast_path import RecommendFastPath
from mtrec_ray.serving.guard import PAGE_FILES, Guard
from mtrec_ray.serving.schemas import (
    Combinations,
    EventsRequest,
    EventsStored,
    Problem,
    Propensities,
    PropensityRequest,
    Recommendation,
    RecommendationBatch,
    RecommendBatch,
    RecommendRequest,
)
from mtrec_ray.serving.service import Service
from mtrec_ray.serving.store import StoreUnavailable

PAGE = Path(__file__).parent / "page"
PAGE_HEADERS = {
    "content-security-policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
READY = (
    "Requests are answered. `store` is null (none is configured), `reachable` or `unavailable`: then requests "
    "with a user id are answered with popular titles."
)
REFUSALS = {
    400: "The body is not JSON.",
    401: "No valid API key was sent.",
    404: "Not found.",
    413: "The body is too long.",
    422: "A field is not valid; the message names the fix.",
    429: "Too many requests with this API key.",
    503: "Too busy; try again after the seconds in Retry-After.",
}


def build_api(service: Service, keys: tuple[str, ...], limits: LimitsConfig) -> Any:
    """The ASGI app of a replica."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        telemetry = service.telemetry
        coroutines = (service.live.follow(telemetry.bundle), telemetry.keep_reporting())
        tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if service.store is not None:
            await service.store.close()

    app = FastAPIOffline(  # /docs and /redoc without a CDN, which a cluster may not reach
        title="mtrec",
        description="Recommendations that ignore, request by request, the attributes a user wants ignored.",
        version=service.live.engine.version,
        lifespan=lifespan,
    )
    _add_routes(app, service)
    add_page(app)
    if not keys:

        @app.get("/v1/examples", include_in_schema=False)
        async def examples() -> Response:
            return json_answer(await service.examples())

    async def refuse(_: Request, error: Exception) -> Response:
        refused = refused_of(error)
        service.telemetry.error(str(refused.status))
        return refused.answer()

    for kind in (Refused, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, refuse)
    return Guard(RecommendFastPath(app, service), keys, limits, service.telemetry.error)


def _answers(model: Any) -> dict[int | str, dict[str, Any]]:
    """The answers of a route, for the OpenAPI document."""
    refusals = {status: {"model": Problem, "description": text} for status, text in REFUSALS.items()}
    return {200: {"model": model}, **refusals}


def _add_routes(app: FastAPI, service: Service) -> None:
    @app.post("/v1/recommend", responses=_answers(Recommendation))
    async def recommend(request: RecommendRequest) -> Response:
        """Titles for one user or one history."""
        with service.telemetry.stage("recommend"):
            (answer,) = await service.recommend([request], many=False)
        return json_answer(answer)

    @app.post("/v1/recommend:batch", responses=_answers(RecommendationBatch))
    async def recommend_batch(batch: RecommendBatch) -> Response:
        """Up to 1,000 requests in one call, answered in order."""
        with service.telemetry.stage("recommend:batch"):
            return json_answer({"responses": await service.recommend(batch.requests, many=True)})

    @app.post("/v1/propensity", responses=_answers(Propensities))
    async def propensity(request: PropensityRequest) -> Response:
        """First-discovery propensities, by the block of the territory's group."""
        return json_answer(await service.propensities(request))

    @app.get("/v1/combinations", responses=_answers(Combinations))
    async def combinations() -> Response:
        """The combinations of attributes that can be ignored, with accuracy and audit of each."""
        return json_answer(service.combinations())

    @app.put("/v1/users/{user_id:path}/events", responses=_answers(EventsStored))
    async def append(
        user_id: Annotated[str, InPath(min_length=1, max_length=256)],
        request: EventsRequest,
        idempotency_key: Annotated[str | None, Header(min_length=1, max_length=64)] = None,
    ) -> Response:
        """Store what a user watched; the next recommendation takes it into account.

        Send a new `Idempotency-Key` with each call: after an error, the call can be repeated with the same key without
        storing the events twice.
        """
        return json_answer(await service.append(user_id, request, idempotency_key))

    @app.get("/healthz", responses={200: {"description": "The process answers."}})
    async def healthz() -> Response:
        return json_answer({"status": "ok"})

    @app.get("/readyz", responses={200: {"description": READY}})
    async def readyz() -> Response:
        store = None
        if service.store is not None:
            try:
                await service.store.ping()
                store = "reachable"
            except StoreUnavailable:
                store = "unavailable"
        return json_answer({"status": "ready", "bundle_version": service.live.engine.version, "store": store})


def add_page(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(PAGE / "index.html", media_type="text/html", headers=PAGE_HEADERS)

    @app.get("/favicon.ico", include_in_schema=False)
    async def no_icon() -> Response:
        return Response(status_code=204)

    @app.get("/page/{name}", include_in_schema=False)
    async def page_file(name: str) -> Response:
        if name not in PAGE_FILES:
            raise Refused(None, "no such file", 404)
        return FileResponse(PAGE / name, media_type=PAGE_FILES[name], headers=PAGE_HEADERS)

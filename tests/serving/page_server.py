"""The page with a scripted API in this process, to provoke what a real model seldom does.

Requests and answers have the types of `serving.schemas`, so that the script cannot differ from the API.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from mtrec_ray.bundle.manifest import Leakage, Metric
from mtrec_ray.serving.answers import Refused, refused_of
from mtrec_ray.serving.api import add_page
from mtrec_ray.serving.schemas import (
    CombinationInfo,
    Combinations,
    Recommendation,
    RecommendationBatch,
    RecommendBatch,
    RecommendRequest,
    ScoredTitle,
)
from tests.serving.bundles import leakage, metric

NAMES = {f"t{number:02}": f"Title {number}" for number in range(1, 14)} | {"t14": "<img src=x onerror=alert(1)>"}
USER, SLOW, OWN_TITLE = "ada", "slow", "t14"
"""Two stored users, and the title that only the second gets, first in the list."""
RANKINGS = {
    "none": (1, 2, 3, 4, 5, 6, 7, 8, 9, 10),
    "gender": (1, 5, 2, 3, 11, 4, 7, 12, 8, 9),
    "age": (2, 1, 3, 4, 5, 6, 7, 8, 9, 13),
    "gender+age": (11, 1, 5, 12, 2, 3, 13, 4, 7, 8),
}
"""Combination -> numbers of its titles, best first. Ignoring gender: 6 and 10 drop out, 11 and 12 come in."""
ATTRIBUTES = {"gender": ["female", "male"], "age": ["under 25", "25-49", "50+"], "home_country": ["a", "b"]}
VERSION = "bundle-1"


def combinations() -> Combinations:
    """Gender is hidden, age leaks, the country was not audited and cannot be ignored."""
    hidden = Leakage.model_validate(leakage(0.516))
    leaking = Leakage.model_validate(leakage(0.712) | {"leaks": True})
    audits = {
        "none": (0.60, {"gender": leaking, "age": leaking}),
        "gender": (0.588, {"gender": hidden, "age": leaking}),
        "age": (0.60, {"gender": leaking, "age": leaking}),
        "gender+age": (0.54, {}),
    }
    return Combinations(
        bundle_version=VERSION,
        attributes=ATTRIBUTES,
        territories=["T001", "T002", "closed"],
        combinations=[
            CombinationInfo(
                name=name,
                ignore=[] if name == "none" else name.split("+"),
                metrics={"ndcg@10": Metric(**metric(ndcg))},
                audit=audit,
            )
            for name, (ndcg, audit) in audits.items()
        ],
    )


@dataclass
class ScriptedApi:
    """A recommender with faults to set; `batches` are the requests it received."""

    api_key: str | None = None
    busy: int = 0
    """Number of next requests that get 503."""
    examples: bool = True
    users: list[str] = field(default_factory=list)
    """Example users."""
    version: str = VERSION
    waits: dict[str, threading.Event] = field(default_factory=dict)
    """User -> event to wait for before the answer."""
    batches: list[RecommendBatch] = field(default_factory=list)

    def recommend(self, request: RecommendRequest, index: int) -> Recommendation:
        if request.user_id in self.waits:
            assert self.waits[request.user_id].wait(timeout=20), f"{request.user_id} waited too long"
        if request.territory == "closed":
            raise Refused(f"requests[{index}].territory", "no territory 'closed'; choose from T001, T002")
        known = request.user_id in (USER, SLOW) or any(t in NAMES for t in request.history or [])
        name = "+".join(request.ignore) or "none"
        own = [OWN_TITLE] if request.user_id == SLOW else []
        ids = own + [f"t{number:02}" for number in RANKINGS[name if known else "none"]]
        return Recommendation(
            titles=[ScoredTitle(title_id=title_id, name=NAMES[title_id], score=1.0) for title_id in ids[: request.k]],
            combination=name,
            source="model" if known else "popularity",
            reason=None if known else ("unknown user" if request.user_id else "no known title in the history"),
            unknown_titles=sum(title not in NAMES for title in request.history or []),
            unknown_values=[a for a in request.ignore if request.history and a not in request.attributes],
            bundle_version=self.version,
        )


def app_of(api: ScriptedApi) -> FastAPI:
    """The page with the scripted API, which answers errors as the real one does."""
    app = FastAPI()
    add_page(app)

    @app.middleware("http")
    async def admit(request: Request, call_next: Any) -> Response:
        if request.url.path.startswith("/v1/"):
            if api.api_key and request.headers.get("authorization") != f"Bearer {api.api_key}":
                return Refused(None, "an API key is needed", 401).answer()
            if api.busy > 0:
                api.busy -= 1
                return Refused(None, "too many requests at once: try again", 503).answer()
        return await call_next(request)

    @app.exception_handler(Refused)
    @app.exception_handler(HTTPException)
    @app.exception_handler(RequestValidationError)
    async def refuse(_: Request, error: Exception) -> Response:
        return refused_of(error).answer()

    @app.get("/v1/combinations")
    def list_combinations() -> Combinations:
        return combinations().model_copy(update={"bundle_version": api.version})

    @app.get("/v1/examples")
    def examples() -> dict[str, Any]:
        if not api.examples:
            raise HTTPException(404)
        titles = [{"title_id": title_id, "name": name} for title_id, name in NAMES.items()]
        return {"users": api.users, "titles": titles}

    @app.post("/v1/recommend:batch")
    def recommend(batch: RecommendBatch) -> RecommendationBatch:
        api.batches.append(batch)
        return RecommendationBatch(responses=[api.recommend(one, index) for index, one in enumerate(batch.requests)])

    return app


@contextmanager
def serve(api: ScriptedApi) -> Iterator[str]:
    """The base URL, while the block runs."""
    server = uvicorn.Server(uvicorn.Config(app_of(api), port=0, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()

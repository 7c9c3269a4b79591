"""The page with the API around a scripted service, to provoke what a real model seldom does."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import uvicorn

from mtrec_ray.serving.api import build_api
from mtrec_ray.serving.guard import TOO_MANY, Guard, Refused
from mtrec_ray.serving.pointer import LiveEngine
from mtrec_ray.serving.schemas import Combinations, Recommendation, RecommendRequest, ScoredTitle
from mtrec_ray.serving.service import Service
from mtrec_ray.serving.telemetry import Telemetry
from tests.serving.bundles import leakage, metric

NAMES = {f"t{number:02}": f"Title {number}" for number in range(1, 14)} | {"t14": "<img src=x onerror=alert(1)>"}
USER, SLOW, OWN_TITLE = "ada", "slow", "t14"  # two stored users, and the title that the second gets first
RANKINGS = {
    "none": (1, 2, 3, 4, 5, 6, 7, 8, 9, 10),
    "gender": (1, 5, 2, 3, 11, 4, 7, 12, 8, 9),
    "age": (2, 1, 3, 4, 5, 6, 7, 8, 9, 13),
    "gender+age": (11, 1, 5, 12, 2, 3, 13, 4, 7, 8),
}
"""Combination -> numbers of its titles, best first. Ignoring gender: 6 and 10 drop out, 11 and 12 come in."""
ATTRIBUTES = {"gender": ["female", "male"], "age": ["under 25", "25-49", "50+"], "home_country": ["a", "b"]}
VERSION = "bundle-1"


class ScriptedService(Service):
    """A recommender with faults to set."""

    def __init__(self) -> None:
        self.version = VERSION
        self.busy = 0  # number of next requests that get 503
        self.has_examples, self.users = True, list[str]()  # example users
        self.waits: dict[str | None, threading.Event] = {}  # user -> event to wait for before the answer
        self.batches: list[list[RecommendRequest]] = []  # what was requested
        live = SimpleNamespace(engine=SimpleNamespace(version=VERSION), follow=lambda _: asyncio.sleep(0))
        super().__init__(cast(LiveEngine, live), None, Telemetry())
        self.api: Guard = build_api(self, (), 200.0)

    def require(self, key: str) -> None:
        self.api.buckets = Guard(self.api, (key,), 200.0, print).buckets

    async def recommend(self, requests: list[RecommendRequest], many: bool) -> list[Any]:
        if self.busy > 0:
            self.busy -= 1
            raise Refused(None, TOO_MANY, 503)
        self.batches.append(requests)
        return [await asyncio.to_thread(self.answer, one, index) for index, one in enumerate(requests)]

    def answer(self, request: RecommendRequest, index: int) -> Recommendation:
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

    def combinations(self) -> Any:
        """Gender is hidden, age leaks, the country was not audited and cannot be ignored."""
        hidden, leaking = leakage(0.516), leakage(0.712) | {"leaks": True}
        audits = {
            "none": (0.60, {"gender": leaking, "age": leaking}),
            "gender": (0.588, {"gender": hidden, "age": leaking}),
            "age": (0.60, {"gender": leaking, "age": leaking}),
            "gender+age": (0.54, {}),
        }
        found = [
            {
                "name": name,
                "ignore": [] if name == "none" else name.split("+"),
                "metrics": {"ndcg@10": metric(ndcg)},
                "audit": audit,
            }
            for name, (ndcg, audit) in audits.items()
        ]
        territories = ["T001", "T002", "closed"]
        document = {"bundle_version": self.version, "attributes": ATTRIBUTES, "territories": territories}
        return Combinations.model_validate(document | {"combinations": found})

    async def examples(self) -> dict[str, Any]:
        if not self.has_examples:
            raise Refused(None, "Not Found", 404)
        titles = [{"title_id": title_id, "name": name} for title_id, name in NAMES.items()]
        return {"users": self.users, "titles": titles}


@contextmanager
def serve(service: ScriptedService) -> Iterator[str]:
    """The base URL, while the block runs."""
    server = uvicorn.Server(uvicorn.Config(service.api, port=0, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()

"""The page's files and a scripted API over HTTP in this process, to provoke what a real model does seldom.

Requests are read and answers are built with `serving.schemas`, so that the script cannot drift from the API.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from pydantic import ValidationError

import mtrec_ray.serving as serving
from mtrec_ray.serving.schemas import (
    CombinationInfo,
    Combinations,
    Problem,
    Recommendation,
    RecommendationBatch,
    RecommendBatch,
    RecommendRequest,
    ScoredTitle,
)

PAGE = Path(serving.__file__).parent / "page"
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
CSP = "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"

NAMES = {
    "t01": "The Long Harbour",
    "t02": "Paper Lanterns",
    "t03": "Midnight at the Observatory",
    "t04": "Salt Road",
    "t05": "A Quiet Orchard",
    "t06": "Second Violin",
    "t07": "Eleven Winters",
    "t08": "The Cartographer's Daughter",
    "t09": "Low Tide",
    "t10": "Northbound",
    "t11": "Kitchen Stories of Lake Como",
    "t12": "Glass Mountain",
    "t13": "The Understudy",
    "t14": "<img src=x onerror=alert(1)>",
}
USERS = ["ada", "grace", "alan"]
SLOW, OWN_TITLE = "slow", "t14"
"""A user not among the examples, and the title that they alone get, first in their list."""
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

    def figures(value: float, low: float, high: float) -> dict[str, float | int | str]:
        interval = {"balanced_accuracy_low": value - 0.04, "balanced_accuracy_high": value + 0.04}
        about = {"attacker": "boosting", "num_users": 1416, "auc": 0.5, "auc_null_high": 0.54}
        return {"balanced_accuracy": value, **interval, "null_low": low, "null_high": high, **about}

    open_gender, hidden_gender = figures(0.712, 0.468, 0.531), figures(0.516, 0.468, 0.531)
    open_age, hidden_age = figures(0.55, 0.29, 0.375), figures(0.41, 0.29, 0.375)
    info = {
        "none": ([], 0.60, {"gender": open_gender, "age": open_age}),
        "gender": (["gender"], 0.588, {"gender": hidden_gender, "age": open_age}),
        "age": (["age"], 0.60, {"gender": open_gender, "age": hidden_age}),
        "gender+age": (["gender", "age"], 0.54, {}),
    }
    return Combinations(
        bundle_version=VERSION,
        attributes=ATTRIBUTES,
        territories=["T001", "T002", "closed"],
        combinations=[
            CombinationInfo(
                name=name,
                ignore=ignore,
                metrics={"ndcg@10": ndcg, "ndcg@10_low": ndcg - 0.02, "ndcg@10_high": ndcg + 0.02},
                audit=audit,
            )
            for name, (ignore, ndcg, audit) in info.items()
        ],
    )


class Refused(Exception):
    """Becomes the answer's status and `Problem`."""

    def __init__(self, status: int, field: str | None, message: str) -> None:
        super().__init__(message)
        self.status, self.field, self.message = status, field, message


@dataclass
class ScriptedApi:
    """A recommender that knows ten users, with faults to set; `batches` is what it was asked."""

    api_key: str | None = None
    busy: int = 0
    """How many of the next requests are answered by 503."""
    retry_after: str = "1"
    examples: bool = True
    version: str = VERSION
    served_as: str | None = None
    """A combination named in the answers instead of the one asked for."""
    withdrawn: str | None = None
    """A combination that is listed and yet refused."""
    waits: dict[str, threading.Event] = field(default_factory=dict)
    """User -> what must happen before their answer is sent."""
    batches: list[RecommendBatch] = field(default_factory=list)

    def answer(self, path: str, body: bytes) -> str:
        """JSON of the answer; raises Refused."""
        if path == "/v1/combinations":
            return combinations().model_copy(update={"bundle_version": self.version}).model_dump_json()
        if path == "/v1/examples" and self.examples:
            titles = [{"title_id": title_id, "name": name} for title_id, name in NAMES.items()]
            return json.dumps({"users": USERS, "titles": titles})
        if path != "/v1/recommend:batch":
            raise Refused(404, None, f"nothing at {path}")
        try:
            batch = RecommendBatch.model_validate_json(body)
        except ValidationError as error:
            raise Refused(422, ".".join(map(str, error.errors()[0]["loc"])), error.errors()[0]["msg"]) from error
        self.batches.append(batch)
        found = [self.recommend(request, place) for place, request in enumerate(batch.requests)]
        return RecommendationBatch(responses=found).model_dump_json()

    def recommend(self, request: RecommendRequest, place: int) -> Recommendation:
        if request.user_id in self.waits:
            assert self.waits[request.user_id].wait(timeout=20), f"nobody let {request.user_id} go"
        if request.territory == "closed":
            raise Refused(422, f"requests[{place}].territory", "territory 'closed' is unknown; known: T001, T002")
        known = request.user_id in (*USERS, SLOW) or any(t in NAMES for t in request.history or [])
        name = "+".join(request.ignore) or "none"
        if name not in RANKINGS or name == self.withdrawn:
            raise Refused(422, f"requests[{place}].ignore", f"nothing was trained to ignore {name}; there is gender")
        own = [OWN_TITLE] if request.user_id == SLOW else []
        ids = own + [f"t{number:02}" for number in RANKINGS[name if known else "none"]]
        return Recommendation(
            titles=[ScoredTitle(title_id=title_id, name=NAMES[title_id], score=1.0) for title_id in ids[: request.k]],
            combination=self.served_as or name,
            source="model" if known else "popularity",
            reason=None if known else ("unknown user" if request.user_id else "no known title in the history"),
            unknown_titles=sum(title not in NAMES for title in request.history or []),
            unknown_values=[a for a in request.ignore if request.history and a not in request.attributes],
            bundle_version=self.version,
        )


def _handler(api: ScriptedApi) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path in FILES:
                name, kind = FILES[self.path]
                self.reply(200, kind, (PAGE / name).read_bytes(), {"Content-Security-Policy": CSP})
            elif self.path == "/favicon.ico":
                self.reply(204, "image/x-icon", b"", {})
            else:
                self.api_reply(b"")

        def do_POST(self) -> None:
            self.api_reply(self.rfile.read(int(self.headers["Content-Length"])))

        def api_reply(self, body: bytes) -> None:
            headers = {}
            try:
                if api.api_key and self.headers.get("Authorization") != f"Bearer {api.api_key}":
                    headers["WWW-Authenticate"] = "Bearer"
                    raise Refused(401, None, "an API key is needed")
                if api.busy > 0:
                    api.busy -= 1
                    headers["Retry-After"] = api.retry_after
                    raise Refused(503, None, "too many requests wait")
                status, text = 200, api.answer(self.path, body)
            except Refused as refused:
                status, text = refused.status, Problem(field=refused.field, message=refused.message).model_dump_json()
            self.reply(status, "application/json", text.encode(), headers)

        def reply(self, status: int, kind: str, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def handle(self) -> None:
            try:
                super().handle()
            except ConnectionError:
                return  # the page gave up an overtaken question

        def log_message(self, format: str, *args: object) -> None:
            return

    return Handler


@contextmanager
def serve(api: ScriptedApi) -> Iterator[str]:
    """The base url, while the block runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(api))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

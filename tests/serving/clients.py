"""A client of the API without Ray Serve, and requests."""

from typing import Any

from starlette.testclient import TestClient

from mtrec_ray.serving.api import build_api
from mtrec_ray.serving.pointer import LiveEngine
from mtrec_ray.serving.schemas import Recommendation
from mtrec_ray.serving.service import Service
from mtrec_ray.serving.store import Store
from mtrec_ray.serving.telemetry import Telemetry

HISTORY = {"history": ["t01", "t02", "t03"], "territory": "north"}
ANN = {"user_id": "ann", "territory": "north"}


def client_of(
    bundle: str,
    store: Store | None = None,
    keys: tuple[str, ...] = (),
    root_path: str = "",
    requests_per_s: float = 200.0,
) -> TestClient:
    """A client that raises what the app lets through, which Ray would log."""
    service = Service(LiveEngine(bundle), store, Telemetry())
    return TestClient(build_api(service, keys, requests_per_s), root_path=root_path)


def recommend(client: TestClient, **request: Any) -> dict[str, Any]:
    answer = client.post("/v1/recommend", json=request)
    assert answer.status_code == 200, answer.text
    Recommendation.model_validate(answer.json(), strict=True)
    return answer.json()

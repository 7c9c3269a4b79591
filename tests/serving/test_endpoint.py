"""`mtrec serve` in a process: answers, metrics, a promotion under load, overload and its end."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import httpx
import lmdb
import msgpack
import pytest

from mtrec_ray.serving.config import PromoteConfig
from mtrec_ray.serving.promote import promote
from mtrec_ray.serving.store import UserState, open_store
from tests.benchmarks.endpoint_process import EndpointProcess, wait_for
from tests.serving.bundles import NUM_TITLES, write_bundle

pytestmark = pytest.mark.ray

REQUEST = {"user_id": "ann-0815", "territory": "north", "ignore": ["gender"]}
MAX_AT_PROXY = 16  # a few callers stay below it, although Serve frees a place only some time after its answer


def promote_to(bundle: Path, pointer: Path) -> None:
    promote(PromoteConfig(bundle=str(bundle), pointer=str(pointer)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("endpoint")
    promote_to(write_bundle(folder / "first"), folder / "live.json")
    write_bundle(folder / "second", 1)
    store = open_store(str(folder / "store"))
    store.put_many([("ann-0815", UserState(("t01", "t02"), {"gender": "F", "age": "old"}, "north", b""))])
    asyncio.run(store.close())
    with lmdb.open(str(folder / "store")) as env, env.begin(write=True) as transaction:
        transaction.put(b"broken", cast(bytes, msgpack.packb(("broken", None, [["t01"]], {}, None, b""))))
    return folder


@pytest.fixture(scope="module")
def endpoint(folder) -> Iterator[EndpointProcess]:
    """Afterwards its exit code is 0 and no log contains a value of a request."""
    settings = [f"store={folder / 'store'}"]
    with EndpointProcess(
        folder / "live.json", settings, folder / "log", {"MTREC_MAX_AT_PROXY": str(MAX_AT_PROXY)}
    ) as endpoint:
        yield endpoint
    assert endpoint.process.returncode == 0
    sessions = Path("/tmp/ray").glob(f"session_*_{endpoint.process.pid}/logs")
    logs = max(sessions)  # the last, as an earlier process may have had this pid
    files = [folder / "log", *(file for file in logs.rglob("*") if file.is_file())]
    assert any(file.is_relative_to(logs / "serve") for file in files)
    for text in ("ann-0815", "eve-0815", "t01", "Request failed."):  # Ray writes the last before an error's text
        assert not [file for file in files if text in file.read_text(errors="replace")], text


def test_endpoint_answers_from_its_store_and_documents_its_api(endpoint):
    with httpx.Client(base_url=endpoint.url) as client:
        answer = client.post("/v1/recommend", json=REQUEST).json()
        assert (answer["source"], answer["combination"], answer["bundle_version"]) == ("model", "gender", "v0")
        assert client.put("/v1/users/eve-0815/events", json={"events": [{"title_id": "t03"}]}).status_code == 200
        assert client.post("/v1/recommend", json=REQUEST | {"user_id": "eve-0815"}).json()["source"] == "model"
        examples = client.get("/v1/examples").json()
        assert set(examples["users"]) == {"ann-0815", "eve-0815", "broken"}
        assert len(examples["titles"]) == NUM_TITLES
        assert client.post("/v1/recommend", json=REQUEST | {"user_id": "broken"}).status_code == 500
        assert "page/page.js" in client.get("/").text
        assert client.get("/page/page.js").status_code == 200
        paths = client.get("/openapi.json").json()["paths"]
        assert {"/v1/recommend", "/v1/recommend:batch", "/v1/propensity", "/v1/combinations"} <= set(paths)


def test_prometheus_reads_metrics_without_user_ids(endpoint):
    assert httpx.post(f"{endpoint.url}/v1/recommend", json=REQUEST).status_code == 200
    wait_for(lambda: 'stage="recommend"' in endpoint.metrics(), 30)  # Ray gathers them every few seconds
    assert "ray_mtrec_stage_latency_ms_bucket_total" in endpoint.metrics()
    assert "ann-0815" not in endpoint.metrics()


def test_promotion_under_load_fails_no_request(endpoint, folder):
    async def load() -> Counter[tuple[int, str]]:
        seen: Counter[tuple[int, str]] = Counter()
        done = asyncio.Event()

        async def send(client: httpx.AsyncClient) -> None:
            while not done.is_set():
                answer = await client.post("/v1/recommend", json=REQUEST)
                document = answer.json()
                seen[answer.status_code, document.get("bundle_version") or document["message"]] += 1

        async with httpx.AsyncClient(base_url=endpoint.url, timeout=30) as client:
            sending = [asyncio.create_task(send(client)) for _ in range(4)]
            await asyncio.sleep(1)
            await asyncio.to_thread(promote_to, folder / "second", folder / "live.json")
            await asyncio.to_thread(wait_for, lambda: seen[200, "v1"] > 20, 20)
            done.set()
            await asyncio.gather(*sending)
        return seen

    assert set(asyncio.run(load())) == {(200, "v0"), (200, "v1")}


def test_requests_above_the_limit_of_the_proxy_are_refused_at_once(endpoint):
    async def send_at_once(count: int) -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=endpoint.url, timeout=30) as client:
            return await asyncio.gather(*(client.post("/v1/recommend", json=REQUEST) for _ in range(count)))

    answers = asyncio.run(send_at_once(10 * MAX_AT_PROXY))
    refused = [answer for answer in answers if answer.status_code != 200]
    assert 0 < len(refused) < len(answers)
    assert {(answer.status_code, answer.headers["retry-after"]) for answer in refused} == {(503, "1")}
    assert {answer.json()["message"] for answer in refused} == {"too many requests at once: try again"}
    few = MAX_AT_PROXY // 2
    wait_for(lambda: {answer.status_code for answer in asyncio.run(send_at_once(few))} == {200}, 5)

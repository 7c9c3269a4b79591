"""The endpoint as a newcomer starts it: `mtrec serve`, its page in a browser, a promotion under load, and its end."""

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import httpx
import lmdb
import msgpack
import pytest

from mtrec_ray.config import validate_config
from mtrec_ray.errors import UserError
from mtrec_ray.serving.config import PromoteConfig, ServeConfig, check_port
from mtrec_ray.serving.promote import promote
from mtrec_ray.serving.store import UserState, open_store
from tests.serving.bundles import write_bundle

pytestmark = pytest.mark.ray

REQUEST = {"user_id": "ann-0815", "territory": "north", "ignore": ["gender"]}
READY_S = 300  # a replica imports torch, and the machine may be busy
MAX_AT_PROXY = 16  # a few callers stay below it, though a place is free only a moment after its answer


def promote_to(bundle: Path, pointer: Path) -> None:
    promote(validate_config(PromoteConfig, {"bundle": str(bundle), "pointer": str(pointer)}))


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
def endpoint(folder) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mtrec_ray", "serve", str(folder / "live.json"), "--store", str(folder / "store")]
    command += ["--port", str(port), "--set", "poll_s=0.2"]
    env = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    env |= {"RAY_AUTH_MODE": "disabled", "MTREC_MAX_AT_PROXY": str(MAX_AT_PROXY)}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=env)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(url, process, folder / "log")
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        ended = process.wait(timeout=120)
    assert ended == 0
    logs = max(Path("/tmp/ray").glob(f"session_*_{process.pid}/logs"))  # the last: an earlier process had this pid too
    written = [folder / "log", *(file for file in logs.rglob("*") if file.is_file())]
    assert any(file.is_relative_to(logs / "serve") for file in written)
    for value in (
        "ann-0815",
        "eve-0815",
        "t01",
        "Request failed.",
    ):  # the last: Ray, before an error's text
        assert not [file for file in written if value in file.read_text(errors="replace")], value


def wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + READY_S
    while time.monotonic() < until:
        assert process.poll() is None, log.read_text()
        try:
            if httpx.get(f"{url}/readyz").status_code == 200 and "serving bundle" in log.read_text():
                return  # and a signal ends it in order
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(0.5)
    pytest.fail(log.read_text())


def test_it_answers_with_its_documents_and_its_store(endpoint):
    with httpx.Client(base_url=endpoint) as client:
        answer = client.post("/v1/recommend", json=REQUEST).json()
        assert (answer["source"], answer["combination"], answer["bundle_version"]) == ("model", "gender", "v0")
        assert client.put("/v1/users/eve-0815/events", json={"events": [{"title_id": "t03"}]}).status_code == 200
        assert client.post("/v1/recommend", json=REQUEST | {"user_id": "eve-0815"}).json()["source"] == "model"
        assert set(client.get("/v1/examples").json()["users"]) == {"ann-0815", "eve-0815", "broken"}
        assert client.post("/v1/recommend", json=REQUEST | {"user_id": "broken"}).status_code == 500
        paths = client.get("/openapi.json").json()["paths"]
        assert {"/v1/recommend", "/v1/recommend:batch", "/v1/propensity", "/v1/combinations"} <= set(paths)


def test_prometheus_finds_the_figures_where_the_log_says(endpoint, folder):
    assert httpx.post(f"{endpoint}/v1/recommend", json=REQUEST).status_code == 200
    (place,) = re.findall(r"http://\S+/metrics", (folder / "log").read_text())
    until = time.monotonic() + 30  # told once a second, and gathered every few seconds
    while 'stage="recommend"' not in (figures := httpx.get(place).text):
        assert time.monotonic() < until
        time.sleep(0.5)
    assert "ray_mtrec_stage_latency_ms_bucket_total" in figures
    assert "ann-0815" not in figures


def test_a_port_that_is_taken_is_refused(endpoint):
    taken = ServeConfig(bundle="bundle", port=httpx.URL(endpoint).port or 0)
    with pytest.raises(UserError, match=f"port {taken.port} of host '127.0.0.1': Address already in use; stop what"):
        check_port(taken)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    check_port(taken.model_copy(update={"port": port}))


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium: apt-get install chromium")
def test_the_page_shows_what_the_switches_do(endpoint):
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        problems: list[str] = []
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(endpoint)
        switch = page.get_by_role("switch").first
        switch.wait_for()
        page.get_by_role("button", name="ann-0815").click()
        page.locator("#ignoring li").first.wait_for()
        assert page.locator("#ignoring-title").inner_text() == "Ignoring gender"  # the first is on from the start
        switch.focus()
        page.keyboard.press("Space")
        page.locator("#ignoring-title", has_text="Ignoring nothing").wait_for()
        page.get_by_role("switch").nth(1).press("Space")
        page.locator("#ignoring-title", has_text="Ignoring age").wait_for()
        page.locator("#readings li").first.wait_for()
        browser.close()
    assert not problems


def test_a_promotion_under_load_fails_no_request(endpoint, folder):
    async def load() -> Counter[tuple[int, str]]:
        seen: Counter[tuple[int, str]] = Counter()
        done = asyncio.Event()

        async def ask(client: httpx.AsyncClient) -> None:
            while not done.is_set():
                answer = await client.post("/v1/recommend", json=REQUEST)
                says = answer.json()
                seen[answer.status_code, says.get("bundle_version") or says["message"]] += 1

        async with httpx.AsyncClient(base_url=endpoint, timeout=30) as client:
            asking = [asyncio.create_task(ask(client)) for _ in range(4)]
            await asyncio.sleep(1)
            await asyncio.to_thread(promote_to, folder / "second", folder / "live.json")
            for _ in range(100):
                await asyncio.sleep(0.2)
                if seen[200, "v1"] > 20:
                    break
            done.set()
            await asyncio.gather(*asking)
        return seen

    seen = asyncio.run(load())
    assert set(seen) == {(200, "v0"), (200, "v1")}


def test_what_the_proxy_cannot_pass_on_is_refused_at_once_and_not_for_long(endpoint):
    async def ask_at_once(count: int) -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=endpoint, timeout=30) as client:
            return await asyncio.gather(*(client.post("/v1/recommend", json=REQUEST) for _ in range(count)))

    answers = asyncio.run(ask_at_once(10 * MAX_AT_PROXY))
    refused = [answer for answer in answers if answer.status_code != 200]
    assert 0 < len(refused) < len(answers)
    assert {(answer.status_code, answer.headers["retry-after"]) for answer in refused} == {(503, "1")}
    assert {answer.json()["message"] for answer in refused} == {"too many requests at once: try again"}
    until = time.monotonic() + 5  # a place is free when Ray has done with its request, a moment after the answer
    while (seen := {answer.status_code for answer in asyncio.run(ask_at_once(MAX_AT_PROXY // 2))}) != {200}:
        assert time.monotonic() < until, seen

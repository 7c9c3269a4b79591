"""A bundle, a store, a client and a browser for all tests, and a real Redis server."""

import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from starlette.testclient import TestClient

from mtrec_ray.serving.store import Store, UserState, open_store
from tests.serving.bundles import USER_WIDTH, write_bundle
from tests.serving.clients import client_of
from tests.serving.page_server import ScriptedService, serve
from tests.serving.redis_server import RedisServer

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WAIT_MS = 20_000


@pytest.fixture(scope="session")
def bundle_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_bundle(tmp_path_factory.mktemp("serving") / "bundle"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = open_store(str(tmp_path_factory.mktemp("api") / "store"))
    embedding = b"\x00\x3c" * USER_WIDTH  # ones
    users = {
        "ann": UserState(("t01", "t02", "gone"), {"gender": "F", "age": "old"}, "north", embedding),
        "bob": UserState(("t09",), {"gender": "M"}, "south"),
        "new": UserState(territory="south"),
    }
    store.put_many(users.items())
    return store


@pytest.fixture(scope="module")
def client(bundle_uri: str, store: Store) -> TestClient:
    return client_of(bundle_uri, store)  # not entered, because leaving would close the store of other tests


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed (Debian: apt-get install redis-server)")
    server = RedisServer(program, tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """Until it is closed, its event loop runs, and no other can."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")
    if (chromium := shutil.which("chromium")) is None:
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    sync_api.expect.set_options(timeout=WAIT_MS)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def api() -> ScriptedService:
    return ScriptedService()


@pytest.fixture
def visit(browser: "Browser", api: ScriptedService) -> "Iterator[Callable[..., Page]]":
    """Opens the page; afterwards no visit may have called another host or left an error in the console."""
    contexts, hosts, errors = [], set(), []

    def open_page(width: int = 1280, scheme: Any = "light") -> "Page":
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.set_default_timeout(WAIT_MS)
        page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
        page.goto(url)
        return page

    with serve(api) as url:
        yield open_page
        for context in contexts:
            context.close()
    assert hosts == {urlsplit(url).netloc}
    assert [error for error in errors if not error.startswith("Failed to load resource")] == []

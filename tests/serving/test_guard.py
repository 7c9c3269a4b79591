"""Keys, limits, broken bodies and logs of the API, its documentation and its page."""

import asyncio
import json
import logging
import re
from typing import Any

import pytest
import redis
from starlette.types import Message, Receive, Scope, Send

from mtrec_ray.serving import guard
from mtrec_ray.serving.guard import PUBLIC
from tests.serving.clients import HISTORY, client_of


@pytest.mark.parametrize("body", [b"{", b"[]", b"null", b"\xff\xfe", b'{"history": "t01"}', b'{"territory": NaN}'])
def test_broken_body_is_refused(client, body):
    answer = client.post("/v1/recommend", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)
    assert set(answer.json()) == {"field", "message"}


def test_body_without_json_content_type_is_refused(client):
    answer = client.post("/v1/recommend", content=json.dumps(HISTORY))
    problem = {"field": None, "message": "send the header content-type: application/json"}
    assert (answer.status_code, answer.json()) == (422, problem)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": "Basic secret"}, 401),
        ({"x-api-key": "öther"}, 401),
        ({"authorization": "Bearer secret"}, 200),
        ({"x-api-key": "other"}, 200),
    ],
)
def test_api_keys_are_required_and_compared(bundle_uri, headers, status):
    client = client_of(bundle_uri, keys=("secret", "other"))
    sent = {name.encode(): value.encode() for name, value in headers.items()}
    answer = client.post("/v1/recommend", json=HISTORY, headers=sent)
    assert answer.status_code == status
    assert answer.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)
    assert client.get("/v1/examples", headers=sent).status_code == (401 if status == 401 else 404)


@pytest.mark.parametrize("root_path", ["", "/mtrec", "/v1"])
def test_only_public_paths_need_no_key_behind_any_prefix(bundle_uri, root_path):
    client = client_of(bundle_uri, keys=("secret",), root_path=root_path)
    for path in ("/v1/recommend", "/v1/recommend:batch", "/v1/propensity", "/v2", "/page/other", "/healthz/x"):
        assert client.post(root_path + path, json=HISTORY).status_code == 401, path
    for path in PUBLIC - {""}:
        assert client.get(root_path + path).status_code in (200, 204), path
    sent = {"x-api-key": "secret"}
    assert client.post(f"{root_path}/v1/recommend", json=HISTORY, headers=sent).status_code == 200


@pytest.mark.parametrize("root_path", ["", "/mtrec"])
def test_api_documentation_needs_no_other_host(bundle_uri, root_path):
    client = client_of(bundle_uri, keys=("secret",), root_path=root_path)
    for path in ("/docs", "/redoc"):
        files = re.findall(r'(?:src|href)="([^"]+)"', client.get(root_path + path).text)
        assert any(file.endswith(".js") for file in files)
        assert {client.get(file).status_code for file in files} == {200}


def test_each_key_has_its_own_rate(bundle_uri):
    client = client_of(bundle_uri, keys=("a", "b"), requests_per_s=1.0)
    answers = [client.get("/v1/combinations", headers={"x-api-key": key}) for key in "aaab"]
    assert [answer.status_code for answer in answers] == [200, 200, 429, 200]
    assert answers[2].headers["retry-after"] == "1"


def test_long_body_is_refused_with_and_without_content_length(client, monkeypatch):
    monkeypatch.setattr(guard, "MAX_BODY_BYTES", 200)
    assert client.post("/v1/recommend", json=HISTORY).status_code == 200
    body = json.dumps({**HISTORY, "history": ["t01"] * 100}).encode()
    parts = (body[start : start + 50] for start in range(0, len(body), 50))
    assert [client.post("/v1/recommend", content=content).status_code for content in (body, parts)] == [413, 413]


def test_body_of_a_long_declared_length_is_not_read(bundle_uri):
    app: Any = client_of(bundle_uri).app
    headers, codes = [(b"content-length", b"%d" % (guard.MAX_BODY_BYTES + 1))], []

    async def receive() -> Message:
        pytest.fail("the body was read")

    async def send(message: Message) -> None:
        codes.extend([message["status"]] if "status" in message else [])

    scope = {"type": "http", "method": "POST", "path": "/v1/recommend", "headers": headers}
    asyncio.run(app(scope, receive, send))
    assert codes == [413]


def test_too_many_requests_in_flight_get_503(client, monkeypatch):
    monkeypatch.setattr(guard, "MAX_IN_FLIGHT", 1)
    client.app.in_flight = 1
    busy = client.post("/v1/recommend", json=HISTORY)
    assert (busy.status_code, busy.headers["retry-after"]) == (503, "1")
    assert client.get("/healthz").status_code == 200
    client.app.in_flight = 0
    assert client.post("/v1/recommend", json=HISTORY).status_code == 200
    assert client.app.in_flight == 0


def test_request_counts_as_in_flight_from_its_admission(bundle_uri, monkeypatch):
    monkeypatch.setattr(guard, "MAX_IN_FLIGHT", 1)
    monkeypatch.setattr(guard, "MAX_BODY_BYTES", 8)
    app: Any = client_of(bundle_uri).app
    scope = {"type": "http", "method": "POST", "path": "/v1/recommend", "headers": []}

    async def work() -> list[int]:
        codes, rest = [], asyncio.Event()

        async def slow() -> Message:
            await rest.wait()
            return {"type": "http.request", "body": b"x" * 9}

        async def send(message: Message) -> None:
            codes.extend([message["status"]] if "status" in message else [])

        first = asyncio.create_task(app({**scope}, slow, send))
        await asyncio.sleep(0)
        await asyncio.wait_for(app({**scope}, slow, send), timeout=5)
        assert app.in_flight == 1
        rest.set()
        await first
        return codes

    assert asyncio.run(work()) == [503, 413]
    assert app.in_flight == 0


@pytest.mark.parametrize("has_started", [False, True])
def test_error_is_counted_and_answered_unless_an_answer_has_started(has_started):
    sent, counted = [], []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if has_started:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    async def send(message: Message) -> None:
        sent.append(message.get("status"))

    guarded = guard.Guard(app, (), 1.0, counted.append)
    asyncio.run(guarded({"type": "http", "method": "GET", "path": "/v1/x", "headers": []}, receive, send))
    assert sent == ([200] if has_started else [500, None])
    assert counted == ["500"]
    assert guarded.in_flight == 0


def test_no_value_of_a_request_is_logged(bundle_uri, caplog, monkeypatch):
    def broken(*_):
        raise RuntimeError("F t01 ann") from redis.ResponseError("RPUSH mtrec:history:ann t01")

    with caplog.at_level(logging.DEBUG), client_of(bundle_uri) as client:
        client.post("/v1/recommend", json={**HISTORY, "attributes": {"gender": "F"}, "ignore": ["gender"]})
        client.post("/v1/recommend", json={**HISTORY, "attributes": {"gender": "t0815"}})
        monkeypatch.setattr("mtrec_ray.serving.engine.Engine.recommend", broken)
        failed = client.post("/v1/recommend", json=HISTORY)
    assert (failed.status_code, failed.json()) == (500, {"field": None, "message": "internal error"})
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("mtrec")]
    assert ours == ["a request failed: RuntimeError"]
    assert not [record for record in caplog.records if "t01" in logging.Formatter().format(record)]


def test_page_is_served_with_a_strict_policy(client):
    for path, kind in (("/", "text/html"), ("/page/page.css", "text/css"), ("/page/page.js", "text/javascript")):
        answer = client.get(path)
        assert answer.status_code == 200, path
        assert answer.headers["content-type"].startswith(kind)
    assert "default-src 'self'" in client.get("/").headers["content-security-policy"]
    for path in ("/page/../engine.py", "/page/engine.py", "/nothing"):
        assert client.get(path).status_code == 404

"""One request at a time against a server that follows a script."""

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from r2rank_jax.data.teacher.language_model.endpoint import AskError, Endpoint, open_endpoint
from r2rank_jax.data.teacher.language_model.settings import TeacherSettings
from r2rank_jax.errors import DataError

KEY = "sk-very/secret+42"
BODY = {"model": "m", "messages": [{"role": "user", "content": "é \ud800"}], "max_tokens": 5}
SAID = {"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]}


class Scripted(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.path, dict(self.headers), json.loads(body)))  # type: ignore[attr-defined]
        self.close_connection = True
        self.server.script(self)  # type: ignore[attr-defined]

    do_GET = do_POST


def reply(status=200, body=None, kind="application/json", length=None, **headers):
    data = body if isinstance(body, bytes) else json.dumps(SAID if body is None else body).encode()

    def script(handler):
        handler.send_response(status)
        all_headers = {"Content-Type": kind, "Content-Length": str(len(data) if length is None else length)} | headers
        for name, value in all_headers.items():
            if value:
                handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(data)

    return script


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # no proxy listens here
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Scripted)
    server.daemon_threads = True
    server.seen, server.script = [], reply()  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def endpoint(server):
    def make(host="127.0.0.1", **settings):
        times = {"timeout_s": 0.5, "stall_s": 0.2} | settings
        return open_endpoint(f"http://{host}:{server.server_port}/v1/", KEY, TeacherSettings(model="m", **times))

    return make


def failure(endpoint, server, script):
    server.script = script
    with pytest.raises(AskError) as caught:
        endpoint.ask(BODY)
    return caught.value


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_the_request_that_the_endpoint_receives(server, endpoint, host):
    """The environment's proxies are not used, the key is in one header, and the body is unchanged."""
    assert endpoint(host).ask(BODY).content == "yes"
    assert endpoint(host, stream=True).ask(BODY).content == "yes", "an endpoint may ignore `stream`"
    (path, headers, body), (_, _, streamed) = server.seen
    assert path == "/v1/chat/completions" and body == BODY
    assert headers["Authorization"] == f"Bearer {KEY}" and headers["Content-Type"] == "application/json"
    assert streamed == BODY | {"stream": True, "stream_options": {"include_usage": True}}


def test_no_key_no_header(server, endpoint):
    Endpoint(endpoint().url, False, 1.0, 1.0).ask(BODY)
    assert "Authorization" not in server.seen[0][1]


@pytest.mark.parametrize(
    ("script", "reason", "retry", "billed"),
    [
        (reply(429, {}, Retry_After="7"), "status 429", True, False),
        (reply(500, {}), "status 500", True, False),
        (reply(503, b"", kind="text/html"), "status 503", True, False),
        (reply(504, {}), "status 504", True, True),
        (reply(400, {}), "status 400", False, False),
        (reply(401, {}), "status 401", False, False),
        (reply(200, b"{", length=100), "cut off", True, True),
        (reply(200, json.dumps(SAID).encode()[:-4]), "not JSON", True, True),
        (reply(200, {"choices": []}), "no choices", True, True),
        (reply(200, b"<html>", kind="text/html"), "wrong content type", True, True),
        (reply(200, b"", kind=""), "wrong content type", True, True),
        (lambda handler: None, "cut off", True, True),
        (lambda handler: time.sleep(1), "timed out", True, True),
        (lambda handler: handler.wfile.write(b"SPAM\r\n\r\n"), "cut off", True, True),
    ],
)
def test_each_failure(server, endpoint, script, reason, retry, billed):
    error = failure(endpoint(), server, script)
    assert (error.reason, error.retry, error.billed) == (reason, retry, billed)
    assert error.after_s == (7 if reason == "status 429" else 0)
    assert bool(error.remedy) == (reason == "status 401")


def events(*parts, wait_s=0.0, count=1):
    def script(handler):
        reply(200, b"", kind="text/event-stream", length="")(handler)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for part in parts * count:
                handler.wfile.write(part)
                handler.wfile.flush()
                time.sleep(wait_s)

    return script


def test_streams(server, endpoint):
    event = b'data: {"choices": [{"delta": {"content": "y\xc3\xa9s"}}]}\n\n'
    server.script = events(event[:40], event[40:61], event[61:], event, b"data: [DONE]\n\n", b"data: {never read")
    assert endpoint(stream=True).ask(BODY).content == "yésyés", "parts may end anywhere, even within a character"
    assert failure(endpoint(stream=True), server, events(event)).reason == "cut off"
    assert failure(endpoint(stream=True), server, events(event, wait_s=0.4, count=2)).reason == "stalled"
    awake = events(b": awake\n\n", wait_s=0.05, count=100)
    assert failure(endpoint(stream=True), server, awake).reason == "timed out", "comments do not extend the time limit"


def test_a_refused_connection_costs_nothing():
    with pytest.raises(AskError) as caught:
        open_endpoint("http://127.0.0.1:9", KEY, TeacherSettings(model="m")).ask(BODY)
    assert (caught.value.reason, caught.value.billed, caught.value.retry) == ("no connection", False, True)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(server, endpoint, status):
    """It would send the key to another host."""
    other = f"http://127.0.0.1:{server.server_port}/elsewhere"
    error = failure(endpoint(), server, reply(status, {}, Location=other))
    assert error.reason == f"status {status}" and "redirect" in error.remedy and len(server.seen) == 1


def test_the_key_is_removed_from_every_response(server, endpoint):
    echo = {"error": f"no such key {KEY}, {KEY}"}
    error = failure(endpoint(), server, reply(401, echo))
    slashed = failure(endpoint(), server, reply(500, json.dumps(echo).replace("/", "\\/").encode()))
    assert "no such key [key], [key]" in str(error) and "[key]" in str(slashed)
    message = {"content": f"It is {KEY}.", "reasoning": KEY}
    server.script = reply(200, {"model": KEY, "choices": [{"message": message, "finish_reason": KEY}]})
    answer = endpoint().ask(BODY)
    assert answer.content == "It is [key]." and KEY not in repr(answer) + repr(endpoint()) + str(error) + str(slashed)


@pytest.mark.parametrize(
    ("url", "key", "message"),
    [
        ("localhost:8000/v1", "", "an address such as http://localhost:8000/v1, got 'localhost:8000/v1'"),
        ("ftp://host/v1", "", "got 'ftp://host/v1'"),
        ("http://host:99999/v1", "", "an address such as"),
        ("https://user:hunter2@host/v1", "", "without user, password"),
        ("https://host/v1?api-key=hunter2", "", "without user, password"),
        ("http://host/v1", "hunter2\nX-Header: 1", "printable ASCII without spaces"),
        ("http://host/v1", "hunter2é", "printable ASCII without spaces"),
    ],
)
def test_an_unusable_address_or_key_is_refused_without_repeating_a_secret(url, key, message):
    with pytest.raises(DataError, match=message) as caught:
        open_endpoint(url, key, TeacherSettings(model="m"))
    assert "hunter2" not in str(caught.value)


def test_addresses():
    for url in ("http://h:1/v1", "http://h:1/v1/", "http://h:1/v1/chat/completions"):
        assert open_endpoint(url, " k \n", TeacherSettings(model="m")).url == "http://h:1/v1/chat/completions"
    assert open_endpoint("http://h", " k \n", TeacherSettings(model="m")).key == "k"

"""A local server that drops connections, changes its file, refuses ranges and reports wrong sizes."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CONTENT = bytes(range(256)) * 4000  # 1,024,000 bytes


class Server(ThreadingHTTPServer):
    """Serves `content` at every path; each request takes one step of `script`, if any is left.

    A step: {"status": 503}, {"cut": bytes after which the connection ends}, {"announce": another length},
    {"start": another first byte}, {"location": where to}.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.etag, self.ranges = CONTENT, '"one"', True
        self.script, self.seen = [], []
        self.files = {}
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        asked = (self.headers.get("Range"), self.headers.get("If-Range"))
        server.seen.append((self.path, *asked))  # type: ignore[attr-defined]
        step = server.script.pop(0) if server.script else {}  # type: ignore[attr-defined]
        content = server.files.get(self.path, server.content if not server.files else None)  # type: ignore[attr-defined]
        if content is None:
            return self.answer(404, {})
        if "status" in step or "location" in step:
            return self.answer(step.get("status", 302), {k: v for k, v in step.items() if k[0].isupper()})
        start, status = 0, 200
        if asked[0] and server.ranges and asked[1] == server.etag:  # type: ignore[attr-defined]
            start, status = int(asked[0].removeprefix("bytes=").rstrip("-")), 206
        headers = {"ETag": server.etag} if server.etag else {}  # type: ignore[attr-defined]
        if status == 206 and start >= len(content):
            return self.answer(416, headers | {"Content-Range": f"bytes */{len(content)}"})
        body = content[start:]
        if status == 206:
            first = step.get("start", start)
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        headers["Content-Length"] = str(step.get("announce", len(body)))
        self.answer(status, headers, body[: step.get("cut", len(body))])
        self.close_connection = True

    def answer(self, status, headers, body=b""):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", "0")
        self.end_headers()
        self.wfile.write(body)

"""An OpenAI-compatible endpoint that fails in many ways, and logs what it would bill.

    FAULT_SERVER_KEY=secret python benchmarks/fault_server.py --log server.jsonl --faults 0.3

Prints its port, then serves until it is stopped. Faults and flaws depend on a hash of the messages and on how often
they were sent, so that two runs agree; from the fourth time on, a request is answered. The log has a line per request:
a hash of its messages, how often they were sent, the response, and the billed tokens.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

FAULTS = ("429", "429 now", "500", "stall", "cut", "bad json", "no choices", "html", "hang up")
FLAWS = ("empty", "no verdict", "contradicts the label", "leaks the label", "too long", "foreign title", "duplicate")
UNBILLED = ("429", "429 now", "500", "401")
MOST_FAULTS = 3  # per request


def case_of(messages: list[dict[str, str]]) -> str:
    """Name a request by a hash of its messages."""
    return hashlib.sha256(json.dumps(messages).encode()).hexdigest()[:16]


def chance(*what: object) -> float:
    """Return a number in [0, 1) that depends only on these values."""
    return int.from_bytes(hashlib.sha256(repr(what).encode()).digest()[:6], "big") / 2**48


def flaw_of(case: str, share: float) -> str | None:
    """Return the flaw of the answer to a request; None if it has none."""
    drawn = chance("flaw", case)
    return FLAWS[int(drawn / share * len(FLAWS))] if drawn < share else None


def answer(case: str, prompt: str, share: float) -> str:
    """Write the teacher's answer. It follows the label that the prompt shows, apart from its flaw."""
    match = "went on to choose" in prompt
    flaw = flaw_of(case, share)
    if flaw == "empty":
        return ""
    verdict = match != (flaw == "contradicts the label")
    reasons = f"Case {case}: the history speaks {'for' if match else 'against'} it."
    reasons += {
        "leaks the label": " The label says so.",
        "too long": " Again and again." * 100,
        "foreign title": ' Compare "A Film That Never Was".',
    }.get(flaw or "", "")
    if flaw == "duplicate":
        reasons = "It is what it is."
    return reasons if flaw == "no verdict" else f"{reasons}\n\nVERDICT: {'MATCH' if verdict else 'MISMATCH'}"


class Handler(BaseHTTPRequestHandler):
    """Handles one connection."""

    protocol_version = "HTTP/1.1"
    server: FaultServer

    def log_message(self, *_: Any) -> None:
        """Print nothing on stderr."""

    def do_POST(self) -> None:
        """Answer a chat completion, or fail as drawn."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        case = case_of(body["messages"])
        prompt = "\n".join(message["content"] for message in body["messages"])
        text = answer(case, prompt, self.server.flaws)
        usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": len(text.split()) + 20}
        fault = self.server.note(case, usage, self.headers["Authorization"])
        time.sleep(self.server.latency_s)
        self.close_connection = True
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client was killed
            self._serve(fault, body.get("stream", False), case, text, usage)

    def _serve(self, fault: str | None, stream: bool, case: str, text: str, usage: dict[str, int]) -> None:
        if fault in UNBILLED:
            retry = {"Retry-After": "0.3"} if fault == "429" else {}
            status = int((fault or "").split()[0])
            self._whole(status, "application/json", json.dumps({"error": self.headers["Authorization"]}), **retry)
        elif fault == "hang up":
            return
        elif fault == "html":
            self._whole(200, "text/html", "<html>Please log in</html>")
        elif stream:
            self._stream(fault, case, text, usage)
        elif fault == "bad json":
            self._whole(200, "application/json", '{"choices": [{"message": {"content": "It')
        elif fault == "no choices":
            self._whole(200, "application/json", json.dumps({"choices": [], "usage": usage}))
        else:
            message = {"role": "assistant"} | _with_thinking(case, text)
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            text = json.dumps({"model": "fault-1", "choices": [choice], "usage": usage})
            self._whole(200, "application/json", text, fault=fault)

    def _whole(self, status: int, kind: str, text: str, fault: str | None = None, **headers: str) -> None:
        data = text.encode()
        self.send_response(status)
        for name, value in ({"Content-Type": kind, "Content-Length": str(len(data))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if fault in ("cut", "stall"):
            data = data[: len(data) // 2]
        self.wfile.write(data)
        self.wfile.flush()
        if fault == "stall":
            time.sleep(self.server.stall_s)

    def _stream(self, fault: str | None, case: str, text: str, usage: dict[str, int]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.end_headers()
        self.wfile.write(b": awake\n\n")
        if fault == "no choices":
            deltas = []
        else:
            parts = _with_thinking(case, text)
            step = max(1, len(text) // 3)
            deltas = [{name: text[i : i + step]} for name, text in parts.items() for i in range(0, len(text), step)]
            deltas = deltas or [{"content": ""}]
        for place, delta in enumerate(deltas):
            if fault in ("cut", "stall", "bad json") and place == len(deltas) // 2:
                self.wfile.write(b'data: {"choices": [{"delta": {"con\n\n' if fault == "bad json" else b'data: {"cho')
                self.wfile.flush()
                time.sleep(self.server.stall_s if fault == "stall" else 0)
                return
            finish = "stop" if place == len(deltas) - 1 else None
            self._event({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], "model": "fault-1"})
        self._event({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, event: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        self.wfile.flush()


def _with_thinking(case: str, text: str) -> dict[str, str]:
    """Return the answer alone, with its reasoning in a separate field, or with its reasoning in tags."""
    form = int(case, 16) % 3
    if form == 0:
        return {"content": text}
    return (
        {"reasoning_content": "Hm.", "content": text} if form == 1 else {"content": f"<think>\nHm.\n</think>\n{text}"}
    )


class FaultServer(ThreadingHTTPServer):
    """The server and its log."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, key: str, log: Path, options: argparse.Namespace):
        super().__init__(("127.0.0.1", 0), Handler)
        self.key, self.faults, self.flaws = key, options.faults, options.flaws
        self.latency_s, self.stall_s = options.latency_s, options.stall_s
        self._log = log.open("a", encoding="utf-8")
        self._times: Counter[str] = Counter()
        self._lock = threading.Lock()

    def note(self, case: str, usage: dict[str, int], authorization: str | None) -> str | None:
        """Log a request and return its fault; None if it is answered."""
        with self._lock:
            self._times[case] += 1
            times = self._times[case]
            drawn = chance("fault", case, times)
            fault = FAULTS[int(drawn / self.faults * len(FAULTS))] if drawn < self.faults else None
            fault = None if times > MOST_FAULTS else fault
            if authorization != f"Bearer {self.key}":
                fault = "401"
            billed = 0 if fault in UNBILLED else usage["prompt_tokens"] + usage["completion_tokens"]
            record = {"case": case, "times": times, "got": fault or "answer", "billed": billed}
            self._log.write(json.dumps(record) + "\n")
            self._log.flush()
        return fault


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--faults", type=float, default=0.3, help="share of requests that fail")
    parser.add_argument("--flaws", type=float, default=0.01, help="share of answers that the filters must refuse")
    parser.add_argument("--latency-s", type=float, default=0.02)
    parser.add_argument("--stall-s", type=float, default=4.0, help="duration of a stall")
    options = parser.parse_args()
    server = FaultServer(os.environ["FAULT_SERVER_KEY"], options.log, options)
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()

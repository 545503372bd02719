"""An OpenAI-compatible endpoint that fails in every way it can, and keeps books of what it would bill.

    FAULT_SERVER_KEY=secret python benchmarks/fault_server.py --log server.jsonl --faults 0.3

Prints its port, then serves until it is ended. Faults and flaws are drawn from a hash of the messages and of how often
they came, so that two runs of it agree; from the fourth time on a request is answered. Every request is one line of the
log: which messages, for the how-manieth time, what it got, and what it is billed.
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
PATIENCE = 3  # times that a request may meet a fault


def case_of(messages: list[dict[str, str]]) -> str:
    """Name of a request: a hash of its messages."""
    return hashlib.sha256(json.dumps(messages).encode()).hexdigest()[:16]


def chance(*what: object) -> float:
    """A number in [0, 1) that belongs to these values."""
    return int.from_bytes(hashlib.sha256(repr(what).encode()).digest()[:6], "big") / 2**48


def flaw_of(case: str, share: float) -> str | None:
    """What is wrong with the answer to a request, if anything is."""
    drawn = chance("flaw", case)
    return FLAWS[int(drawn / share * len(FLAWS))] if drawn < share else None


def answer(case: str, prompt: str, share: float) -> str:
    """What the teacher says: it follows the label that the prompt shows, but for its flaws."""
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
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: FaultServer

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""

    def do_POST(self) -> None:
        """Answer a chat completion, or fail to."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        case = case_of(body["messages"])
        prompt = "\n".join(message["content"] for message in body["messages"])
        said = answer(case, prompt, self.server.flaws)
        usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": len(said.split()) + 20}
        fault = self.server.note(case, usage, self.headers["Authorization"])
        time.sleep(self.server.latency_s)
        self.close_connection = True
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client was killed
            self._serve(fault, body.get("stream", False), case, said, usage)

    def _serve(self, fault: str | None, stream: bool, case: str, said: str, usage: dict[str, int]) -> None:
        if fault in UNBILLED:
            retry = {"Retry-After": "0.3"} if fault == "429" else {}
            status = int((fault or "").split()[0])
            self._whole(status, "application/json", json.dumps({"error": self.headers["Authorization"]}), **retry)
        elif fault == "hang up":
            return
        elif fault == "html":
            self._whole(200, "text/html", "<html>Please log in</html>")
        elif stream:
            self._stream(fault, case, said, usage)
        elif fault == "bad json":
            self._whole(200, "application/json", '{"choices": [{"message": {"content": "It')
        elif fault == "no choices":
            self._whole(200, "application/json", json.dumps({"choices": [], "usage": usage}))
        else:
            message = {"role": "assistant"} | _with_thinking(case, said)
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

    def _stream(self, fault: str | None, case: str, said: str, usage: dict[str, int]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.end_headers()
        self.wfile.write(b": awake\n\n")
        if fault == "no choices":
            deltas = []
        else:
            parts = _with_thinking(case, said)
            step = max(1, len(said) // 3)
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


def _with_thinking(case: str, said: str) -> dict[str, str]:
    """Plain, with thinking in a field of its own, or with thinking in tags."""
    form = int(case, 16) % 3
    if form == 0:
        return {"content": said}
    return (
        {"reasoning_content": "Hm.", "content": said} if form == 1 else {"content": f"<think>\nHm.\n</think>\n{said}"}
    )


class FaultServer(ThreadingHTTPServer):
    """The server with its books."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, key: str, log: Path, given: argparse.Namespace):
        super().__init__(("127.0.0.1", 0), Handler)
        self.key, self.faults, self.flaws = key, given.faults, given.flaws
        self.latency_s, self.stall_s = given.latency_s, given.stall_s
        self._log = log.open("a", encoding="utf-8")
        self._times: Counter[str] = Counter()
        self._lock = threading.Lock()

    def note(self, case: str, usage: dict[str, int], authorization: str | None) -> str | None:
        """Log a request; returns the fault that it meets."""
        with self._lock:
            self._times[case] += 1
            times = self._times[case]
            drawn = chance("fault", case, times)
            fault = FAULTS[int(drawn / self.faults * len(FAULTS))] if drawn < self.faults else None
            fault = None if times > PATIENCE else fault
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
    parser.add_argument("--faults", type=float, default=0.3, help="share of requests that meet a fault")
    parser.add_argument("--flaws", type=float, default=0.01, help="share of answers that a filter must refuse")
    parser.add_argument("--latency-s", type=float, default=0.02)
    parser.add_argument("--stall-s", type=float, default=4.0, help="silence of a stall")
    given = parser.parse_args()
    server = FaultServer(os.environ["FAULT_SERVER_KEY"], given.log, given)
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()

"""Send one request to an OpenAI-compatible endpoint, and classify the ways in which it can fail.

The key is sent in one header and appears nowhere else: `repr` hides it, it is removed from every text that the endpoint
returns, and redirects are refused because they would send the key to another host.
"""

from __future__ import annotations

import email.utils
import http.client
import ipaddress
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from r2rank_jax.data.teacher.language_model.answers import Answer, BrokenAnswer, parse_completion, parse_stream
from r2rank_jax.data.teacher.language_model.settings import TeacherSettings
from r2rank_jax.errors import DataError

PATH = "/chat/completions"
MAX_BYTES = 64 * 2**20  # of one answer
HIDDEN = "[key]"
SECRET_CHARACTERS = 8  # a shorter key, such as the usual "EMPTY", may occur in answers as a word
TRANSIENT = {408, 409, 425, 429}  # and 5xx
GATEWAYS = {
    408,
    502,
    504,
    522,
    524,
}  # a gateway timed out; the server behind it may have billed the request
SETUP = {401: "the key", 402: "the account", 403: "the key's rights", 404: "the address and --model"}


class AskError(Exception):
    """A request without an answer.

    Attributes:
        reason: a few words, so that failures can be counted by reason.
        detail: what the endpoint returned, if anything, without the key.
        retry: whether another attempt may succeed.
        remedy: what to check; set if every other request would fail too.
        after_s: how long the endpoint asks to wait.
        billed: whether the request may have been billed.
    """

    def __init__(
        self,
        reason: str,
        *,
        detail: str = "",
        retry: bool = True,
        remedy: str = "",
        after_s: float = 0.0,
        billed: bool = True,
    ):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail, self.retry = reason, detail, retry
        self.remedy, self.after_s, self.billed = remedy, after_s, billed


@dataclass(frozen=True)
class Endpoint:
    """Address and settings of an endpoint. Create it with `open_endpoint`."""

    url: str  # of the chat completions
    stream: bool
    timeout_s: float
    stall_s: float
    key: str = field(default="", repr=False)

    def ask(self, body: dict[str, Any]) -> Answer:
        """Send one request and read its whole answer.

        Args:
            body: model, messages and sampling settings.

        Raises:
            AskError: there was no complete answer.
        """
        deadline = time.monotonic() + self.timeout_s
        if self.stream:
            body = body | {"stream": True, "stream_options": {"include_usage": True}}
        data = json.dumps(body).encode("ascii")  # lone surrogates stay escaped
        headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(self.url, data, headers, method="POST")
        silence_s = min(self.stall_s, self.timeout_s) if self.stream else self.timeout_s
        try:
            with self._opener().open(request, timeout=silence_s) as response:
                return self._clean(self._read(response, deadline))
        except urllib.error.HTTPError as error:
            raise self._status(error) from None
        except urllib.error.URLError as error:  # the request was not sent, or not completely
            raise AskError("no connection", detail=self._hide(str(error.reason)), billed=False) from None
        except TimeoutError:
            raise AskError("stalled" if self.stream else "timed out") from None
        except BrokenAnswer as error:
            raise AskError(str(error)) from None
        except (OSError, http.client.HTTPException):
            raise AskError("cut off") from None

    def _opener(self) -> urllib.request.OpenerDirector:
        # The environment's proxies are for other machines; a server on this machine is reached directly.
        proxies = urllib.request.ProxyHandler({} if _is_local(self.url) else None)
        return urllib.request.build_opener(proxies, _NoRedirect)

    def _read(self, response: http.client.HTTPResponse, deadline: float) -> Answer:
        kind = response.headers.get_content_type()
        if self.stream and kind == "text/event-stream":
            return parse_stream(_lines(_chunks(response, deadline)))
        if kind == "application/json" or kind.endswith("+json"):
            return parse_completion(b"".join(_chunks(response, deadline)))
        raise BrokenAnswer("wrong content type")

    def _status(self, error: urllib.error.HTTPError) -> AskError:
        try:
            detail = self._hide(error.read(65536).decode("utf-8", "replace"))
        except (OSError, http.client.HTTPException):
            detail = ""
        finally:
            error.close()
        detail = " ".join(detail.split())[:300]
        status = error.code
        retry = status in TRANSIENT or status >= 500
        return AskError(
            f"status {status}",
            detail=detail,
            retry=retry,
            remedy=SETUP.get(status, "the address: a redirect is not followed" if status < 400 else ""),
            after_s=_retry_after(error.headers.get("Retry-After"), time.time()) if retry else 0.0,
            billed=status in GATEWAYS,
        )

    def _hide(self, text: str) -> str:
        if len(self.key) < SECRET_CHARACTERS:
            return text
        for form in (self.key, self.key.replace("/", "\\/"), urllib.parse.quote(self.key, safe="")):
            text = text.replace(form, HIDDEN)
        return text

    def _clean(self, answer: Answer) -> Answer:
        return Answer(
            self._hide(answer.content),
            self._hide(answer.thinking),
            self._hide(answer.finish_reason),
            self._hide(answer.model),
            answer.usage,
        )


def open_endpoint(url: str, key: str, settings: TeacherSettings) -> Endpoint:
    """Check an address and a key.

    Args:
        url: of the API, as http://localhost:8000/v1, or of its chat completions.
        key: "" for none.
        settings: stream and time limits.

    Raises:
        DataError: not an http(s) address, one that contains a secret, or a key that does not fit into a header. The
            message repeats neither.
    """
    if any(mark in url for mark in "@?#"):
        raise DataError(
            "--teacher must be an address without user, password, ? and #, which would be written to files, got one of "
            "them; set the key in the environment (R2RANK_TEACHER_API_KEY)"
        )
    try:
        parts = urllib.parse.urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and " " not in url
    except ValueError:
        usable = False
    if not usable:
        raise DataError(
            f"--teacher must be template, batch, or an address such as http://localhost:8000/v1, got {url!r}; change it"
        )
    key = key.strip()
    if not all("!" <= character <= "~" for character in key):
        raise DataError("the key must be printable ASCII without spaces, got others; check its environment variable")
    path = parts.path.rstrip("/").removesuffix(PATH)
    address = urllib.parse.urlunsplit((parts.scheme, parts.netloc, path + PATH, "", ""))
    return Endpoint(address, settings.stream, settings.timeout_s, settings.stall_s, key)


def _chunks(response: http.client.HTTPResponse, deadline: float) -> Iterator[bytes]:
    """The body in chunks; raises if it takes too long, is too large, or ends too early."""
    length = response.headers.get("Content-Length", "")
    received = 0
    while chunk := response.read1(65536):
        received += len(chunk)
        if received > MAX_BYTES:
            raise BrokenAnswer("answer too large")
        if time.monotonic() > deadline:
            raise AskError("timed out")
        yield chunk
    if length.isdecimal() and received < int(length):  # read1() does not check this
        raise BrokenAnswer("cut off")


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
    if rest:
        yield rest


def _retry_after(value: str | None, now: float) -> float:
    """Seconds to wait; the header contains seconds or a date.

    >>> _retry_after("2.5", 0), _retry_after("Thu, 01 Jan 1970 00:01:00 GMT", 50), _retry_after("soon", 0)
    (2.5, 10.0, 0.0)
    """
    if value is None:
        return 0.0
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - now
        except ValueError:
            return 0.0
    return seconds if 0 < seconds < float("inf") else 0.0


def _is_local(url: str) -> bool:
    host = urllib.parse.urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None

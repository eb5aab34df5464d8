"""The parser of HTTP/1.1: h11, which limits the size of a head (request line and headers), and further checks of heads.

Specification: https://www.rfc-editor.org/rfc/rfc9112. A malformed request is refused with the reason.
"""

from __future__ import annotations

import re
from itertools import chain

import h11

HEAD_BYTES = 16 << 10
"""Maximum size of a request's URL and headers together."""
MAX_HEADERS = 100
"""Maximum number of headers of a request. Parsed, a header of four bytes takes several hundred."""
_BLANK_LINE = re.compile(rb"\n\r?\n")
"""The end of a request's head."""
_HOST = re.compile(rb"([\w.~!$&'()*+,;=%-]*|\[[\w.:%-]+\])(:\d*)?")
"""The value of the header Host (RFC 9110, 7.2)."""
_TARGET = re.compile(rb"/|https?://", re.IGNORECASE)
"""The beginning of a request's target, if it is a path or a whole URL."""


class Parser(h11.Connection):
    """Parses the requests of a connection, and writes their responses.

    `refusal`, `reason`: status of the response to a malformed request, and what is wrong. `is_head`: whether the method
    of the last request is HEAD, so that its response has no body.
    """

    refusal, reason, is_head = 400, "", False
    _begun = b""  # what has been sent of a response whose status is not known yet

    def __init__(self) -> None:
        super().__init__(h11.SERVER, HEAD_BYTES)

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """The next event. Raises RemoteProtocolError if the request is malformed."""
        try:
            if self.their_state is h11.IDLE:
                self._skip_empty_lines()
                _check_lines(self.trailing_data[0])
            event = super().next_event()
            if isinstance(event, h11.Request):
                self.is_head = event.method == b"HEAD"
                _check_request(event)
            return event
        except h11.RemoteProtocolError as error:
            self.refusal, self.reason = error.error_status_hint, str(error).replace("bytearray(b", "(")
            raise

    def begin_response(self) -> bytes:
        """The bytes with which every response begins, before its status is known; empty if they have been sent."""
        if self._begun or self.our_state is not h11.SEND_RESPONSE:
            return b""
        self._begun = b"HTTP/1.1 "
        return self._begun

    def send_with_data_passthrough(self, event: h11.Event) -> list[bytes] | None:
        """What `send` joins: the bytes of `event`, without those that have been sent already."""
        pieces = super().send_with_data_passthrough(event)
        if self._begun and pieces:
            pieces[0] = pieces[0].removeprefix(self._begun)
            self._begun = b""
        return pieces

    def _skip_empty_lines(self) -> None:
        """Some clients send them after a body (RFC 9112, 2.2)."""
        received = self.trailing_data[0]
        self._receive_buffer.maybe_extract_at_most(len(received) - len(received.lstrip(b"\r\n")))


def _check_lines(received: bytes) -> None:
    """Check the URL, and the number of headers before they are parsed, which takes time for each."""
    line, _, rest = received.partition(b"\n")
    if not line.isascii() and line[:1].isalpha():
        raise h11.RemoteProtocolError("The URL has characters that are not ASCII. Percent-encode them.")
    if len(line) > HEAD_BYTES:
        raise h11.RemoteProtocolError(f"The URL is longer than {HEAD_BYTES:,} bytes.", error_status_hint=414)
    if rest.count(b"\n") > MAX_HEADERS and _BLANK_LINE.split(received, 1)[0].count(b"\n") > MAX_HEADERS + 1:
        raise h11.RemoteProtocolError(f"There are more than {MAX_HEADERS} headers.", error_status_hint=431)


def _check_request(request: h11.Request) -> None:
    """Refuse what h11 accepts, but a server should not."""
    headers = dict(request.headers)
    if sum(map(len, chain([request.target], *request.headers))) > HEAD_BYTES:
        reason = f"The URL and headers are longer than {HEAD_BYTES:,} bytes."
        raise h11.RemoteProtocolError(reason, error_status_hint=431)
    if not request.http_version.startswith(b"1."):
        reason = f"HTTP {request.http_version.decode()} is not supported. Use HTTP/1.1."
        raise h11.RemoteProtocolError(reason, error_status_hint=505)
    if request.method != request.method.upper():
        reason = f"The method {request.method[:20].decode()} is unknown. Methods are written in capital letters."
        raise h11.RemoteProtocolError(reason, error_status_hint=501)
    if not (_TARGET.match(request.target) or request.target == b"*" or request.method == b"CONNECT"):
        raise h11.RemoteProtocolError("The request's target is neither a path that begins with / nor a URL.")
    if not _HOST.fullmatch(headers.get(b"host", b"")):
        raise h11.RemoteProtocolError("The header Host is not a host name or address, optionally with a port.")
    if b"transfer-encoding" in headers and b"content-length" in headers:
        raise h11.RemoteProtocolError("The request has both Content-Length and Transfer-Encoding. Send one of them.")

"""Parse a request: the photo that it contains, or its URL, and the options.

The photo is the body itself, the file `file` in a multipart form, or the string `image` in JSON (base64, or a data
URL). Instead of a photo, `url` can be given in the query, a form or JSON. Options are given in the query, the form or
the JSON.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import string
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from flask import Request
from werkzeug.datastructures import Headers
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge, UnsupportedMediaType
from werkzeug.formparser import FormDataParser
from werkzeug.sansio.multipart import Data, Epilogue, Event, Field, File, MultipartDecoder, NeedData, State

from segment.errors import OptionError, RequestError, TooLarge
from segment.web.pace import PIECE_BYTES

_UNSPECIFIC = {"application/octet-stream", "application/x-www-form-urlencoded"}
"""Content types that clients send with any body, the second for `curl --data-binary @photo.jpg` and for forms."""

_COMPRESSIONS = {"gzip", "x-gzip", "deflate", "compress", "br", "zstd"}
"""Content codings (RFC 9110, 8.4.1) that are not decoded: photos are already compressed."""

_WHITESPACE = string.whitespace.encode("ascii")
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
"""The characters of base64 that are safe in URLs (RFC 4648, 5), and those of base64."""

Pairs = list[tuple[str, str]]

MAX_OPTION_BYTES = 1 << 16
"""Maximum size of all options of a request. Parsed, they take many times as much memory."""
MAX_PARTS = 100
MAX_JSON_VALUES = 1000
"""Maximum number of values in a JSON body. Parsed, `[]` takes 30 times as many bytes."""
JSON_COPIES = 3
"""Copies of a JSON body in memory in addition to the body itself: as text, as the image's text, decoded."""
VALUE_BYTES = 160
"""Memory of a value in a parsed JSON body, counted by the commas and opening brackets: a dict of one has two."""
WIDE_COPIES = 9
"""The same for a JSON body with non-ASCII characters, whose text takes up to four bytes per character."""


@dataclass(frozen=True)
class Upload:
    """The content of a request: a photo, as bytes or as a URL, and options that are not parsed yet."""

    photo: bytes
    url: str | None
    raw_options: dict[str, str]


def read(request: Request, limit: int, received: Callable[[int], None], grow: Callable[[int], None]) -> Upload:
    """Read and parse the request, with a body of at most `limit` bytes.

    `received` is called with the number of bytes that have arrived, before they are stored. `grow` is called with the
    number of bytes that parsing needs in addition to the body. Both may raise TooLarge or Busy.

    Raises RequestError if the request contains no photo, more than one, or cannot be parsed; OptionError if an option
    is given twice; UnsupportedMediaType; TooLarge; ClientDisconnected.
    """
    data, pairs = _read_body(request, _Body(request, limit, received), grow) if request.method == "POST" else (None, [])
    raw_options = _unique([*request.args.items(multi=True), *pairs])
    url = raw_options.pop("url", None)
    if url is not None and data is not None:
        raise RequestError("The request contains both a photo and a url. Send one of them.")
    if url == "" or data == b"":
        raise RequestError(f"The {'photo' if data == b'' else 'url'} is empty.")
    if url is None and data is None:
        raise RequestError(
            "The request contains no photo. Send it with POST as the body, as `file` in a form, or as `image` (base64) "
            "in JSON; or give its `url` in the query, a form or JSON."
        )
    return Upload(data or b"", url, raw_options)


def read_object(
    request: Request, limit: int, received: Callable[[int], None], grow: Callable[[int], None]
) -> dict[str, Any]:
    """Read a body that is a JSON object, such as a labelling tool's tasks; `limit`, `received` and `grow` as in `read`.

    Raises RequestError, TooLarge, Busy, ClientDisconnected.
    """
    text = _Body(request, limit, received).whole()
    grow(len(text) * (JSON_COPIES if text.isascii() else WIDE_COPIES) + _count_values(text) * VALUE_BYTES)
    return _parse_object(text)


Value = TypeVar("Value")


def _unique(pairs: Iterable[tuple[str, Value]]) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for name, value in pairs:
        if name in found:
            raise OptionError(name, f"{name} is given twice.")
        found[name] = value
    return found


class _Body(io.RawIOBase):
    """A request's body. Raises an error if it is longer than `limit` bytes, or shorter than its Content-Length.

    (Werkzeug's own limit silently truncates a body without a Content-Length.)
    """

    def __init__(self, request: Request, limit: int, received: Callable[[int], None]) -> None:
        self.received = received
        self.source = request.stream  # ends at the Content-Length, unlike the streams of some servers
        self.announced = request.content_length
        self.limit = limit
        self.taken = 0
        if (coding := request.headers.get("Content-Encoding", "").strip().lower()) in _COMPRESSIONS:
            raise UnsupportedMediaType(f"The body has the Content-Encoding {coding}. Send it without compression.")
        if self.announced is not None and self.announced > limit:
            raise self.too_large()

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read available bytes into `buffer`."""
        try:
            data = self.source.read(min(len(buffer), PIECE_BYTES))
        except Exception:  # servers raise various types for a malformed or truncated body
            raise ClientDisconnected("The request body is malformed or truncated.") from None
        self.taken += len(data)
        if self.taken > self.limit:
            raise self.too_large()
        if not data and self.announced is not None and self.taken < self.announced:
            raise ClientDisconnected("The request body ended before its announced length.")
        self.received(len(data))
        buffer[: len(data)] = data
        return len(data)

    def too_large(self) -> TooLarge:
        """The error for a body that exceeds the limit."""
        return TooLarge(f"The request body is larger than {self.limit:,} bytes, the maximum.")

    def whole(self) -> bytes:
        """The whole body, without a second copy of it."""
        held = io.BytesIO()
        while data := self.read(PIECE_BYTES):
            held.write(data)
        return held.getvalue()


def _read_body(request: Request, body: _Body, grow: Callable[[int], None]) -> tuple[bytes | None, Pairs]:
    """Parse the body: the photo, if it contains one, and options."""
    kind = request.mimetype
    if kind == "multipart/form-data":
        return _read_form(body, request.mimetype_params.get("boundary", "").encode("ascii", "replace"))
    if kind == "application/json":
        text = body.whole()
        grow(len(text) * (JSON_COPIES if text.isascii() else WIDE_COPIES))
        return _read_json(text)
    if kind and not kind.startswith("image/") and kind not in _UNSPECIFIC:
        raise UnsupportedMediaType(
            f"The content type {kind[:100]} is not supported. Send an image, multipart/form-data or application/json."
        )
    data = body.whole()
    if kind == "application/x-www-form-urlencoded" and data.isascii():  # no image is
        if len(data) > MAX_OPTION_BYTES:
            raise TooLarge(
                f"The form is larger than {MAX_OPTION_BYTES:,} bytes. Send the photo as multipart/form-data."
            )
        _, form, _ = FormDataParser().parse(io.BytesIO(data), kind, len(data))
        return None, list(form.items(multi=True))
    return (data if data or kind else None), []


def _read_form(body: _Body, boundary: bytes) -> tuple[bytes | None, Pairs]:
    """Parse a multipart form (RFC 7578): the photo and options. Only the photo may be large."""
    if not boundary:
        raise RequestError("The multipart form is malformed: its Content-Type has no boundary.")
    form = _Form()
    decoder = _Decoder(boundary, max_parts=MAX_PARTS)
    try:
        while not isinstance(event := decoder.next_event(), Epilogue):
            if isinstance(event, NeedData):
                decoder.limit_buffer()
                decoder.receive_data(body.read(PIECE_BYTES) or None)
            else:
                form.add(event)
    except ValueError:
        raise RequestError(decoder.fault()) from None
    except RequestEntityTooLarge:
        raise TooLarge(f"The form has more than {MAX_PARTS} parts.") from None
    return (None if form.photo is None else form.photo.getvalue()), form.pairs


class _Decoder(MultipartDecoder):
    """Splits a multipart body into parts."""

    def limit_buffer(self) -> None:
        """Limit the bytes that are kept until a part begins. Raises ValueError, TooLarge."""
        if self.state is State.EPILOGUE:  # what follows the last part has no meaning (RFC 2046, 5.1.1)
            self.buffer.clear()
        if len(self.buffer) <= MAX_OPTION_BYTES:
            return
        if self.state is State.PREAMBLE:
            raise ValueError
        raise TooLarge(f"The headers of a part of the form are larger than {MAX_OPTION_BYTES:,} bytes.")

    def fault(self) -> str:
        """What is wrong with a malformed form."""
        if self.state is State.PREAMBLE:
            return (
                f"The multipart form does not begin with its boundary, {self.boundary.decode()[:100]!r} in the "
                "Content-Type. Let the HTTP client set the Content-Type, because it chooses the boundary."
            )
        return "The multipart form is malformed or truncated."

    def _parse_headers(self, data: bytes | bytearray) -> Headers:
        """Accept file names that are not UTF-8, such as those that curl sends on Windows."""
        return super()._parse_headers(data.decode("utf-8", "replace").encode())


class _Form:
    """Collects the parts of a multipart form as they arrive."""

    def __init__(self) -> None:
        self.photo: io.BytesIO | None = None
        self.pairs: Pairs = []
        self._name = ""
        self._text: bytearray | None = None
        self._length = 0

    def add(self, event: Event) -> None:
        """Process the next event of the decoder. Raises RequestError, TooLarge."""
        if isinstance(event, Field) and not _is_binary(event):
            self._begin_field(event.name)
        elif isinstance(event, File | Field):
            self._begin_file(event.name)
        elif isinstance(event, Data):
            self._add_data(event)

    def _begin_field(self, name: str) -> None:
        if name == "file":
            raise RequestError("`file` is a text field. Send it as a file, as `curl -F file=@photo.jpg` does.")
        self._name, self._text = name or "", bytearray()

    def _begin_file(self, name: str) -> None:
        if name != "file":
            raise RequestError(f"The form has a file named {(name or '')[:100]!r}; the photo must be named 'file'.")
        if self.photo is not None:
            raise RequestError("The form contains several photos. Send one per request.")
        self.photo, self._text = io.BytesIO(), None

    def _add_data(self, data: Data) -> None:
        if self._text is None:
            assert self.photo is not None
            self.photo.write(data.data)
            return
        self._length += len(data.data)
        if self._length > MAX_OPTION_BYTES:
            raise TooLarge(
                f"The fields of the form are larger than {MAX_OPTION_BYTES:,} bytes; the last is {self._name[:100]!r}."
            )
        self._text += data.data
        if not data.more_data:
            self.pairs.append((self._name, self._text.decode("utf-8", "replace")))


def _is_binary(field: Field) -> bool:
    """Whether a field is a file without a name, as Apache's HttpClient and Node.js send bytes (RFC 7578, 4.2)."""
    kind = field.headers.get("content-type", "text/plain").lower()
    return field.name == "file" and not kind.startswith("text/")


def _read_json(text: bytes) -> tuple[bytes | None, Pairs]:
    if not text.strip():  # generated clients send a form like this if they prefer JSON
        raise RequestError(
            "The request body is empty, and its Content-Type is JSON. Send a JSON object with `url` or `image`, "
            "or a form with the Content-Type multipart/form-data."
        )
    if _count_values(text) > MAX_JSON_VALUES:
        raise RequestError(f"The JSON has more than {MAX_JSON_VALUES} values. Send only the photo and its options.")
    body = _parse_object(text)
    image = body.pop("image", None)
    if image is not None and not isinstance(image, str):
        raise RequestError("`image` must be a string: the photo in base64, or a data URL.")
    return (None if image is None else from_base64(image)), [(name, _word(name, value)) for name, value in body.items()]


def _count_values(text: bytes) -> int:
    """At least how many values the JSON has."""
    return sum(text.count(mark) for mark in (b",", b"[", b"{"))


def _parse_object(text: bytes) -> dict[str, Any]:
    try:
        body = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        raise RequestError("The request body is not valid JSON.") from None
    if not isinstance(body, dict):
        raise RequestError('The JSON must be an object, such as {"url": "https://example.com/photo.jpg"}.')
    return body


def _word(name: str, value: object) -> str:
    """A JSON value as written in a query string."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (str, int, float)):
        return str(value)
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return ",".join(value)
    raise OptionError(name, f"{name} must be a string, a number, true, false or a list of strings.")


def from_base64(text: str) -> bytes:
    """A photo in base64 of either alphabet, or in a data URL with base64. Raises RequestError."""
    start = 0
    if text.startswith("data:"):
        start = text.find(",") + 1
        if not text.endswith(";base64", 0, start - 1 if start else 0):
            raise RequestError("`image` is a data URL that is not base64. Use the form data:image/jpeg;base64,...")
    try:
        return base64.b64decode(text[start:].encode("ascii").translate(_URL_SAFE, _WHITESPACE), validate=True)
    except (ValueError, binascii.Error):
        raise RequestError("`image` is not valid base64.") from None

"""Read a request: the photo that it contains, or the URL of one, and its options.

A photo comes as the body itself, as `file` in a multipart form, or in JSON as `image` (base64, or a data URL). Its URL
comes as `url` in the query, a form or JSON. Options stand in the query, and in the form or the JSON beside the photo.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO, Any, TypeVar, cast

from flask import Request
from werkzeug.datastructures import FileStorage
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge, UnsupportedMediaType
from werkzeug.formparser import FormDataParser

from segment.errors import OptionError, RequestError, TooLarge

_UNNAMED = {"application/octet-stream", "application/x-www-form-urlencoded"}
"""Types that clients put on any body; the second is curl's for `--data-binary @photo.jpg`, and an HTML form's."""

Pairs = list[tuple[str, str]]

CHUNK = 1 << 16
MAX_OPTION_BYTES = 1 << 16
"""Length of the longest form field that is not the photo."""
PARSER_BYTES = MAX_OPTION_BYTES + 2 * CHUNK
"""What the multipart parser may buffer. It counts a chunk of a file that it has not passed on yet, up to a boundary's
length, together with the chunk that it reads next, so this must be well above one chunk."""
MAX_PARTS = 100


@dataclass(frozen=True)
class Upload:
    """What a request contains: a photo, as bytes or as a URL, and its options before they are parsed."""

    photo: bytes
    url: str | None
    raw_options: dict[str, str]


def read(request: Request, limit: int) -> Upload:
    """Read the request; of its body never more than `limit` bytes.

    Raises RequestError for one that brings no photo, or two, or cannot be read, OptionError for an option given twice,
    UnsupportedMediaType for a body that can hold no photo, TooLarge, ClientDisconnected.
    """
    data, pairs = _read_body(request, _Body(request, limit)) if request.method == "POST" else (None, [])
    raw_options = _unique([*request.args.items(multi=True), *pairs])
    url = raw_options.pop("url", None)
    if url is not None and data is not None:
        raise RequestError("The request brings both a photo and a url; send one of them.")
    if url == "" or data == b"":
        raise RequestError(f"The {'photo' if data == b'' else 'url'} is empty.")
    if url is None and data is None:
        raise RequestError(
            "There is no photo. Send it as the body, as `file` in a form, as `image` (base64) or `url` in JSON"
            + (", or give ?url=." if request.method == "POST" else "; or give ?url= here.")
        )
    return Upload(data or b"", url, raw_options)


Value = TypeVar("Value")


def _unique(pairs: Iterable[tuple[str, Value]]) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for name, value in pairs:
        if name in found:
            raise OptionError(name, f"{name} is given twice.")
        found[name] = value
    return found


class _Body(io.RawIOBase):
    """A request's body that ends in an error when it is longer than `limit` bytes, or shorter than announced.

    (Werkzeug's own limit cuts a body without a Content-Length off in silence.)
    """

    def __init__(self, request: Request, limit: int) -> None:
        self.source = request.environ["wsgi.input"]
        self.announced = request.content_length
        self.limit = limit
        self.taken = 0
        if self.announced is not None and self.announced > limit:
            raise self.too_large()

    def readable(self) -> bool:
        """It can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what has come."""
        try:
            data = self.source.read(min(len(buffer), CHUNK))
        except Exception:  # whatever the server raises for a body that is malformed or breaks off
            raise ClientDisconnected("The body is malformed or broke off.") from None
        self.taken += len(data)
        if self.taken > self.limit:
            raise self.too_large()
        if not data and self.announced is not None and self.taken < self.announced:
            raise ClientDisconnected("The body broke off before its announced end.")
        buffer[: len(data)] = data
        return len(data)

    def too_large(self) -> TooLarge:
        """The error that says so."""
        return TooLarge(f"The body is larger than {self.limit:,} bytes, the most that is taken.")

    def whole(self) -> bytes:
        """All of it, held once."""
        held = io.BytesIO()
        while data := self.read(CHUNK):
            held.write(data)
        return held.getvalue()


def _read_body(request: Request, body: _Body) -> tuple[bytes | None, Pairs]:
    """The photo in a body, if there is one, and the options beside it."""
    kind = request.mimetype
    if kind == "multipart/form-data":
        return _read_form(request, body)
    if kind == "application/json":
        return _read_json(body.whole())
    if kind and not kind.startswith("image/") and kind not in _UNNAMED:
        raise UnsupportedMediaType(
            f"A body of type {kind[:100]} is not read here. Send an image, multipart/form-data or application/json."
        )
    data = body.whole()
    if kind == "application/x-www-form-urlencoded" and data.isascii():  # which no image is
        _, form, _ = FormDataParser().parse(io.BytesIO(data), kind, len(data))
        return None, list(form.items(multi=True))
    return (data if data or kind else None), []


def _read_form(request: Request, body: _Body) -> tuple[bytes | None, Pairs]:
    parser = FormDataParser(
        stream_factory=_in_memory, max_form_memory_size=PARSER_BYTES, max_form_parts=MAX_PARTS, silent=False
    )
    try:
        _, form, files = parser.parse(cast(IO[bytes], body), request.mimetype, None, request.mimetype_params)
    except ValueError:
        raise RequestError("The multipart form is malformed or cut off.") from None
    except RequestEntityTooLarge:
        raise TooLarge(
            f"The form has more than {MAX_PARTS} parts, or a text of more than {MAX_OPTION_BYTES:,} bytes."
        ) from None
    if long := next((name for name, text in form.items(multi=True) if len(text) > MAX_OPTION_BYTES), None):
        raise TooLarge(f"The form field {long[:100]!r} has more than {MAX_OPTION_BYTES:,} bytes.")
    if "file" in form:
        raise RequestError("`file` came as text. Send it as a file, as `curl -F file=@photo.jpg` does.")
    if unknown := next((name for name in files if name != "file"), None):
        raise RequestError(f"The form has a file named {unknown[:100]!r}; the photo must be named 'file'.")
    photos = files.getlist("file")
    if len(photos) > 1:
        raise RequestError("The form holds several photos; send one at a time.")
    return (_contents(photos[0]) if photos else None), list(form.items(multi=True))


def _contents(photo: FileStorage) -> bytes:
    assert isinstance(photo.stream, io.BytesIO)
    return photo.stream.getvalue()


def _in_memory(*_: object, **__: object) -> io.BytesIO:
    """Where a form's file goes. The default is a temporary file, which Cloud Run holds in memory anyway."""
    return io.BytesIO()


def _read_json(text: bytes) -> tuple[bytes | None, Pairs]:
    try:
        body = json.loads(text, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError):
        raise RequestError("The body is not valid JSON.") from None
    if not isinstance(body, dict):
        raise RequestError('The JSON must be an object, such as {"url": "https://example.com/photo.jpg"}.')
    image = body.pop("image", None)
    if image is not None and not isinstance(image, str):
        raise RequestError("`image` must be a string: the photo in base64, or a data URL.")
    return (None if image is None else _from_base64(image)), [
        (name, _word(name, value)) for name, value in body.items()
    ]


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return _unique(pairs)


def _word(name: str, value: object) -> str:
    """A JSON value as it would be written in a query."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (str, int, float)):
        return str(value)
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return ",".join(value)
    raise OptionError(name, f"{name} must be a string, a number, true, false or a list of strings.")


def _from_base64(text: str) -> bytes:
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or not head.endswith(";base64"):
            raise RequestError("`image` is a data URL without base64; write data:image/jpeg;base64,...")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (ValueError, binascii.Error):
        raise RequestError("`image` is not valid base64.") from None

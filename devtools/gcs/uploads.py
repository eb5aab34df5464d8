"""The bodies of uploads: in two parts, or in chunks."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any

from devtools.gcs.messages import Refused, Request
from devtools.gcs.objects import Object

CHUNK_STEP = 256 << 10
"""The size in bytes of every chunk of a resumable upload but the last is a multiple of this."""


@dataclass
class Upload:
    """A resumable upload; `object` is its result once it is complete."""

    bucket: str
    about: Mapping[str, Any]
    query: Mapping[str, str]
    content: bytearray = field(default_factory=bytearray)
    object: Object | None = None


def multipart(request: Request) -> tuple[dict[str, Any], bytes]:
    """The two parts of multipart/related: the resource as JSON, and the content."""
    head = f"Content-Type: {request.headers.get('content-type', '')}\r\n\r\n".encode()
    message = BytesParser(policy=HTTP).parsebytes(head, headersonly=True)
    boundary = message.get_boundary()
    if not boundary:
        raise Refused(400, "A multipart upload needs a boundary.")
    # Not with the email parser, which would change line ends in the content.
    pieces = request.body.split(b"--" + boundary.encode())
    if len(pieces) != 4 or pieces[3].strip() != b"--":
        raise Refused(400, "A multipart upload has exactly two parts.")
    (_, resource), (head, content) = (
        piece.removesuffix(b"\r\n").split(b"\r\n\r\n", maxsplit=1) for piece in pieces[1:3]
    )
    content_type = BytesParser(policy=HTTP).parsebytes(head.lstrip(), headersonly=True).get_content_type()
    return {"contentType": content_type, **json.loads(resource)}, content


def take_chunk(content: bytearray, request: Request) -> int | None:
    """Append the request's chunk. Returns the total size, or None if it is not known yet. Raises Refused."""
    whole = re.fullmatch(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", request.headers.get("content-range", ""))
    if whole is None:  # the content in one piece
        content[:] = request.body
        return len(request.body)
    total = None if whole[3] == "*" else int(whole[3])
    if whole[1] is None:
        return total
    first, last = int(whole[1]), int(whole[2])
    if last - first + 1 != len(request.body) or first > len(content):
        raise Refused(400, f"Chunk {first}-{last} with {len(request.body)} bytes does not fit at {len(content)}.")
    if last + 1 != total and len(request.body) % CHUNK_STEP:
        raise Refused(400, f"Every chunk but the last is a multiple of {CHUNK_STEP} bytes.")
    content.extend(request.body[len(content) - first :])
    return total

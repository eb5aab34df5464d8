"""Download a large file over HTTP, with resumption and a checksum.

Received bytes are kept in `NAME.part`. After a broken connection or an interrupted command the download continues from
there (RFC 9110, section 14: Range). The file is renamed to `NAME` only after its checksum was verified.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from tqdm import tqdm

from segment.errors import FetchError, ModelError

ATTEMPTS = 3
"""Connections in a row that may bring nothing."""
PAUSE_SECONDS = 1.0
"""Before the second attempt; doubled for each further one."""
STALL_SECONDS = 30.0
"""How long a connection may be silent."""
CHUNK = 1 << 20


class WrongChecksum(ModelError):
    """A downloaded file is not the one that was expected."""


def download(url: str, path: Path, *, digest: str, limit: int, pause: float = PAUSE_SECONDS) -> None:
    """Put what `url` answers at `path`, with a progress bar on a terminal.

    `digest`: the first hexadecimal digits of its MD5 or SHA-256. `limit`: the most bytes it may have. Raises FetchError
    when it cannot be downloaded, WrongChecksum when it is a different file, ModelError when it is larger than `limit`
    or the folder cannot be written to.
    """
    part = path.with_suffix(path.suffix + ".part")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
    except OSError as error:
        raise ModelError(
            f"{part.parent} cannot be written to: {error.strerror}. XDG_CACHE_HOME names another."
        ) from None
    host, silent = urlsplit(url).netloc, 0
    while True:
        before = _size(part)
        try:
            if _receive(url, part, path.name, limit):
                break
            reason = "the connection ended early"
        except urllib.error.HTTPError as error:
            reason = f"it answered {error.code} {error.reason}"
            if error.code < http.client.INTERNAL_SERVER_ERROR:
                raise FetchError(f"{path.name} is not to be had from {host}: {reason} for {url}.") from None
        except (OSError, http.client.HTTPException) as error:
            reason = _reason(error)
        silent = 0 if _size(part) > before else silent + 1
        if silent == ATTEMPTS:
            raise FetchError(
                f"{path.name} could not be downloaded from {host}: {reason}. Check the network, or name a mirror in "
                "SEGMENT_ZOO_URL, and run the command again: it goes on where it stopped. "
                "Without SEGMENT_MODEL the embedded demo runs."
            )
        time.sleep(pause * 2 ** max(silent - 1, 0))
    if not matches(part, digest):
        received = sha256(part)
        part.unlink()
        raise WrongChecksum(
            f"{path.name} is damaged or a different file: its SHA-256 is {received}, and its checksum does not begin "
            f"with {digest}. The download was deleted; fetch it again."
        )
    part.replace(path)


def _receive(url: str, part: Path, name: str, limit: int) -> bool:
    """One connection: append to `part` what is missing of the file; whether that was all."""
    have = _size(part)
    headers = {"User-Agent": "segment", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=STALL_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            return True  # nothing is missing
        raise
    with response:
        resumed = response.status == http.client.PARTIAL_CONTENT
        have = have if resumed else 0
        rest = response.headers.get("Content-Length")
        total = have + int(rest) if rest and rest.isdecimal() else None
        with (
            part.open("ab" if resumed else "wb") as file,
            tqdm(desc=name, total=total, initial=have, unit="B", unit_scale=True, disable=None) as bar,
        ):
            while have <= limit and (chunk := response.read(CHUNK)):
                have += file.write(chunk)
                bar.update(len(chunk))
    if have > limit:
        part.unlink()
        raise ModelError(f"What {urlsplit(url).netloc} sends is larger than {name} can be; it was refused.")
    return total is None or have == total


def matches(path: Path, digest: str) -> bool:
    """Whether the file's MD5 or SHA-256 begins with these hexadecimal digits."""
    with path.open("rb") as file:
        md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    return md5.startswith(digest) or sha256(path).startswith(digest)


def sha256(path: Path) -> str:
    """The file's SHA-256 in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size(part: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return part.stat().st_size
    return 0


def _reason(error: BaseException) -> str:
    """What the network says of a failure, without Python's wrapping."""
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(inner, TimeoutError):
        return "no answer in time"
    return (inner.strerror if isinstance(inner, OSError) and inner.strerror else str(inner)) or type(inner).__name__

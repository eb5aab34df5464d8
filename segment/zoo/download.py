"""Download a large file over HTTP, with resumption and a checksum.

Received bytes are kept in `NAME.part`. After a broken connection or an interrupted command the download continues from
there (RFC 9110, section 14: Range). The file is renamed to `NAME` only after its checksum was verified.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from tqdm import tqdm

from segment.errors import FetchError, ModelError
from segment.progress import Progress, Report, ignore

ATTEMPTS = 3
"""Number of consecutive connections without data after which the download fails."""
PAUSE_SECONDS = 1.0
"""Delay before the second attempt; doubled for each further attempt."""
STALL_SECONDS = 30.0
"""Timeout of a connection that receives no data."""
CHUNK = 1 << 18


Received = Callable[[int, int | None], None]
"""Callback with the number of received bytes, and the total if the server sends it."""


class WrongChecksum(ModelError):
    """A downloaded file does not have the expected checksum."""


def download_once(url: str, path: Path, *, digest: str, limit: int, report: Report = ignore) -> None:
    """Download `url` to `path`, unless the file exists.

    `digest`: the published first hexadecimal digits of its MD5 or SHA-256; empty if unknown. The SHA-256 of the first
    download is recorded beside the file in NAME.sha256, in the format of `sha256sum`. Every later use and download is
    checked against the record. Raises the errors of `download`, and ModelError if the record is invalid.
    """
    record = path.with_name(path.name + ".sha256")
    expected = recorded(record) or digest
    if not (path.exists() and matches(path, expected)):
        text = f"Downloading {path.name} from {urlsplit(url).netloc}."
        try:
            download(
                url,
                path,
                digest=expected,
                limit=limit,
                received=lambda done, total: report(Progress("download", text, done, total)),
            )
        except WrongChecksum as error:
            hint = f" If its publisher has replaced it, delete {record} first." if record.exists() else ""
            raise ModelError(f"{error}{hint}") from None
    if not record.exists():
        record.write_text(f"{sha256(path)}  {path.name}\n", encoding="ascii")


def recorded(record: Path) -> str:
    """The SHA-256 in a file in the format of `sha256sum`; empty if the file does not exist."""
    if not record.exists():
        return ""
    digest = record.read_text(encoding="ascii", errors="replace").partition(" ")[0]
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise ModelError(f"{record} does not hold a SHA-256 checksum. Delete it to accept the next download.")
    return digest


def download(
    url: str,
    path: Path,
    *,
    digest: str,
    limit: int,
    pause: float = PAUSE_SECONDS,
    received: Received = lambda done, total: None,
) -> None:
    """Download `url` to `path`, with a progress bar on a terminal.

    `digest`: the first hexadecimal digits of its MD5 or SHA-256. `limit`: maximum size in bytes. Raises FetchError if
    the download fails, WrongChecksum if the checksum differs, ModelError if the file is larger than `limit` or the
    folder cannot be written to.
    """
    part = path.with_suffix(path.suffix + ".part")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
    except OSError as error:
        raise ModelError(
            f"Cannot write to the cache folder {part.parent}: {error.strerror}. Set XDG_CACHE_HOME to another folder."
        ) from None
    _receive_all(url, part, path.name, limit, pause, received)
    if not matches(part, digest):
        actual = sha256(part)
        part.unlink()
        raise WrongChecksum(
            f"{path.name} is damaged or a different file: its SHA-256 is {actual}, and its checksum does not begin "
            f"with {digest}. The download was deleted; fetch it again."
        )
    part.replace(path)


def _receive_all(url: str, part: Path, name: str, limit: int, pause: float, received: Received) -> None:
    """Complete the file `part`, with as many connections as necessary. Raises FetchError, ModelError."""
    host, silent = urlsplit(url).netloc, 0
    while True:
        before = _size(part)
        try:
            if _receive(url, part, name, limit, received):
                return
            reason = "the connection ended early"
        except urllib.error.HTTPError as error:
            reason = f"it answered {error.code} {error.reason}"
            if error.code < http.client.INTERNAL_SERVER_ERROR:
                raise FetchError(f"{name} could not be downloaded from {host}: {reason} for {url}.") from None
        except (OSError, http.client.HTTPException) as error:
            reason = _reason(error)
        silent = 0 if _size(part) > before else silent + 1
        if silent == ATTEMPTS:
            raise FetchError(
                f"{name} could not be downloaded from {host} ({reason}). Check the network connection, and run the "
                "command again, which continues the download."
            )
        time.sleep(pause * 2 ** max(silent - 1, 0))


def _receive(url: str, part: Path, name: str, limit: int, received: Received) -> bool:
    """Append the missing rest of the file to `part`, with one connection. Returns whether the file is complete."""
    have = _size(part)
    headers = {"User-Agent": "segment", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=STALL_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            return True  # the file is complete
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
            received(have, total)
            while have <= limit and (chunk := response.read(CHUNK)):
                have += file.write(chunk)
                bar.update(len(chunk))
                received(have, total)
    if have > limit:
        part.unlink()
        raise ModelError(f"{name} from {urlsplit(url).netloc} is larger than the maximum of {limit:,} bytes.")
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
    """The reason for a network error, without Python's wrapping."""
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(inner, TimeoutError):
        return "no answer in time"
    return (inner.strerror if isinstance(inner, OSError) and inner.strerror else str(inner)) or type(inner).__name__

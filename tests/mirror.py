"""A local file server that replaces a model zoo's and can break off, refuse and delay its responses."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import pickle
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import yaml

from benchmarks import checkpoints
from segment import zoo
from segment.convert import config as configs

NARROW = {
    "MODEL": {
        "RESNETS": {"STEM_OUT_CHANNELS": 8, "RES2_OUT_CHANNELS": 16, "WIDTH_PER_GROUP": 4},
        "FPN": {"OUT_CHANNELS": 16},
        "ROI_BOX_HEAD": {"FC_DIM": 32},
        "ROI_MASK_HEAD": {"CONV_DIM": 16},
    }
}
"""Config values of a small network, which converts in a second."""


@dataclass
class Mirror:
    """A server of files.

    `cuts`: the number of bytes after which each of the next responses breaks off. `statuses`: error statuses of the
    next responses. `paths`, `ranges`: paths and ranges of the requests received; "" means no range. `gate`: while it
    is cleared, responses pause after `before_gate` bytes; then, if `breaks`, the connection is closed.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    takes_ranges: bool = True
    gate: threading.Event = field(default_factory=threading.Event)
    before_gate: int = 300_000
    breaks: bool = False
    url: str = ""


@contextlib.contextmanager
def run() -> Iterator[Mirror]:
    """Run a mirror, with its gate open, until the context ends."""
    state = Mirror()
    state.gate.set()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.paths.append(self.path)
            state.ranges.append(asked := self.headers.get("Range", ""))
            body = state.files.get(self.path)
            if state.statuses:
                self.send_error(state.statuses.pop(0))
                return
            if body is None:
                self.send_error(404)
                return
            start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and state.takes_ranges else 0
            if start and start >= len(body):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            rest = body[start:][: state.cuts.pop(0) if state.cuts else None]
            with contextlib.suppress(ConnectionError):
                self.wfile.write(rest[: state.before_gate])
                self.wfile.flush()
                if len(rest) > state.before_gate:
                    state.gate.wait(60)
                    if state.breaks:
                        return
                    self.wfile.write(rest[state.before_gate :])

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        state.url = f"http://127.0.0.1:{server.server_port}/"
        yield state
        state.gate.set()
        server.shutdown()


def narrow_model() -> tuple[bytes, bytes]:
    """A small Mask R-CNN with Cityscapes' 8 classes: its checkpoint and its config as YAML."""
    config = zoo.merged(zoo.entry("cityscapes_mask_rcnn_R_50_FPN").config, NARROW)
    tensors = checkpoints.checkpoint(configs.parse(config))
    return pickle.dumps({"model": tensors, "__author__": "a test"}), yaml.safe_dump(config).encode()


def zoo_file(name: str) -> dict[str, bytes]:
    """A zoo checkpoint, keyed by its path: the published tensor names, shapes and checksum, with random values."""
    entry = zoo.entry(name)
    tensors = checkpoints.checkpoint(configs.parse(entry.config))
    body = pickle.dumps({"model": tensors, "__author__": "random values"})
    return {"/" + entry.file: with_md5(body, entry.digest)}


def with_md5(body: bytes, digits: str) -> bytes:
    """Append four bytes to `body` so that its MD5 begins with `digits`. A pickle is not read beyond its end."""
    state = hashlib.md5(body, usedforsecurity=False)
    for number in itertools.count():
        extended = state.copy()
        extended.update(number.to_bytes(4, "little"))
        if extended.hexdigest().startswith(digits):
            return body + number.to_bytes(4, "little")
    raise AssertionError

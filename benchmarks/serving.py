"""Run the service as the image does, and measure its processes."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import requests

from benchmarks.cgroup import Group
from segment.engine.measurement import highest

ROOT = Path(__file__).parent.parent
COMMAND = (sys.executable, "-m", "segment", "serve")
"""The Dockerfile's command, with this Python."""
START_SECONDS = 120
SAMPLE_SECONDS = 0.002


@dataclass(frozen=True)
class Usage:
    """Memory in bytes of all processes: `held`, which the kernel cannot reclaim, and resident `rss`.

    Pages shared by two processes are counted twice, so the sum is never too low.
    """

    held: int
    rss: int


@dataclass(frozen=True)
class Server:
    """A running service."""

    url: str
    process: subprocess.Popen[bytes]
    output: IO[bytes]

    def segment(self, photo: bytes, **options: str | int) -> requests.Response:
        """POST a photo. Returns the response, whatever its status."""
        headers = {"Content-Type": "application/octet-stream"}
        return requests.post(f"{self.url}/segment", data=photo, params=options, headers=headers, timeout=300)

    def log(self) -> str:
        """The standard output and error so far."""
        return os.pread(self.output.fileno(), 1 << 24, 0).decode(errors="replace")

    def usage(self) -> Usage:
        """The current memory use."""
        held = rss = 0
        for pid in self._pids():
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
                sizes = {name: int(kib) << 10 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB$", status, re.MULTILINE)}
                held += sizes.get("RssAnon", 0) + sizes.get("RssShmem", 0)
                rss += sizes.get("VmRSS", 0)
        return Usage(held, rss)

    def cpu_seconds(self) -> float:
        """CPU time of all processes so far, in user and kernel mode."""
        ticks = 0
        for pid in self._pids():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def _pids(self) -> list[int]:
        """The processes in the session of the service."""
        found = []
        for name in os.listdir("/proc"):
            with contextlib.suppress(OSError, ValueError):
                if os.getsid(int(name)) == self.process.pid:
                    found.append(int(name))
        return found


def environment() -> dict[str, str]:
    """The environment variables of the Dockerfile's stage `app`."""
    lines = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    stage = lines[lines.index("FROM base AS app") + 1 :]
    assigned = next(line for line in stage if line.startswith("ENV "))
    return dict(re.findall(r"(\w+)=(\S+)", assigned))


@contextlib.contextmanager
def serving(settings: Mapping[str, str], group: Group | None = None, until: str = "/ready") -> Iterator[Server]:
    """Run the service with these environment variables, and wait until it answers the path `until`, unless it is "".

    SEGMENT_ variables of this process are not inherited.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SEGMENT_")}
    variables = inherited | environment() | {"PORT": str(port)} | dict(settings)
    command = group.command(COMMAND) if group else list(COMMAND)
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=variables, start_new_session=True, stdout=output, stderr=subprocess.STDOUT
        )
        server = Server(f"http://127.0.0.1:{port}", process, output)
        try:
            if until:
                wait(server, until)
            yield server
        finally:
            stop(server)


def wait(server: Server, path: str) -> None:
    """Wait until the service answers `path`. Raises RuntimeError if the status is not a success."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and server.process.poll() is None:
        with contextlib.suppress(requests.ConnectionError):
            answer = requests.get(server.url + path, timeout=START_SECONDS)
            if answer.ok:
                return
            raise RuntimeError(f"{path}: {answer.status_code} {answer.text}")
        time.sleep(0.005)
    raise RuntimeError(f"The service did not answer {path} (exit status {server.process.poll()}):\n{server.log()}")


def stop(server: Server) -> None:
    """Stop the service as Cloud Run does, and kill it if it does not stop."""
    if server.process.poll() is None:
        server.process.send_signal(signal.SIGTERM)
    try:
        server.process.wait(15)
    except subprocess.TimeoutExpired:
        os.killpg(server.process.pid, signal.SIGKILL)
        server.process.wait()


def peak(measure: Callable[[], int]) -> AbstractContextManager[list[int]]:
    """The maximum of `measure` within the context, as the only entry of the list."""
    return highest(measure, SAMPLE_SECONDS)

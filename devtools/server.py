"""Start the server process on a free port, as Cloud Run does."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import requests

ROOT = Path(__file__).parent.parent
COMMAND = (sys.executable, "-m", "segment", "serve")
"""The command of the container image."""
FRAMEWORK = (sys.executable, "-m", "functions_framework", "--source", str(ROOT / "main.py"))
"""The command of functions-framework: gunicorn with a master and a worker, which the master restarts."""
CACHE = ROOT / ".cache" / "models"
"""The compiled models of `make run`, shared so that not every process compiles them."""
START_SECONDS = 180.0
_reservations: list[socket.socket] = []


@dataclass
class Server:
    """A running server: URL, process and output so far."""

    url: str
    process: subprocess.Popen[bytes]
    output: IO[bytes]

    def log(self) -> str:
        """Standard output and error so far."""
        return os.pread(self.output.fileno(), 1 << 24, 0).decode()

    def cpu_seconds(self) -> float:
        """CPU time that the process has used so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime, stime (proc(5))

    def stop(self) -> int:
        """Stop it with SIGTERM, as Cloud Run does. Returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


@contextlib.contextmanager
def serve(target: str = "segment_http", command: Sequence[str] = COMMAND, **settings: str) -> Iterator[Server]:
    """Start the server of `target` with these settings, wait for /health, and stop it when the context ends.

    By default, the network runs on one thread. Several test processes at a time keep all CPUs busy, and threads that
    wait for each other in loops would take CPU time from them.
    """
    port = free_port()
    settings = {"SEGMENT_THREADS": "1"} | settings
    with tempfile.TemporaryFile() as output:
        process = start(target, port, settings, command, stdout=output, stderr=subprocess.STDOUT)
        server = Server(f"http://127.0.0.1:{port}", process, output)
        try:
            _wait(server)
            yield server
        finally:
            server.stop()


def start(
    target: str, port: int, settings: Mapping[str, str], command: Sequence[str] = COMMAND, **streams: object
) -> subprocess.Popen[bytes]:
    """Start the framework without waiting, with these settings only: SEGMENT_ variables are not inherited."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("SEGMENT_")}
    standard = {"PORT": str(port), "HOST": "127.0.0.1", "FUNCTION_TARGET": target, "SEGMENT_CACHE": str(CACHE)}
    environment = inherited | standard | dict(settings)
    return subprocess.Popen(command, env=environment, cwd=ROOT, **streams)  # type: ignore[call-overload, no-any-return]


def free_port() -> int:
    """A free TCP port, reserved for this process and the servers that it starts.

    A bound socket that does not listen stays open, so that no other process is given the port. Servers can still listen
    on it, because they set SO_REUSEADDR, too.
    """
    reservation = socket.socket()
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reservation.bind(("127.0.0.1", 0))
    _reservations.append(reservation)
    return int(reservation.getsockname()[1])


def _wait(server: Server) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if server.process.poll() is not None:
            raise RuntimeError(f"The server ended with {server.process.returncode}:\n{server.log()}")
        with contextlib.suppress(requests.ConnectionError):
            if requests.get(server.url + "/health", timeout=START_SECONDS).ok:
                return
        time.sleep(0.05)
    raise RuntimeError(f"The server did not answer in {START_SECONDS:g} s:\n{server.log()}")

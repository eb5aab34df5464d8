"""Run processes in a memory cgroup, version 2 or 1, as in a container. Needs root.

docs.kernel.org/admin-guide/cgroup-v2.html, docs.kernel.org/admin-guide/cgroup-v1/memory.html
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


def missing() -> str:
    """The reason why control groups cannot be used; empty if they can."""
    if os.geteuid() != 0:
        return "needs root: control groups"
    try:
        with group(1 << 30):
            return ""
    except OSError as error:
        return f"needs a memory control group that can be written to: {error.strerror}"


class Group:
    """A group with a limit in bytes. If the group exceeds it, the kernel kills one of its processes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.unified = (ROOT / "cgroup.controllers").exists()
        self.path = (ROOT if self.unified else ROOT / "memory") / f"segment-{uuid.uuid4().hex[:8]}"
        if self.unified:
            (ROOT / "cgroup.subtree_control").write_text("+memory")
        self.path.mkdir()
        try:
            self._write("memory.max" if self.unified else "memory.limit_in_bytes", limit)
            with contextlib.suppress(OSError):  # no swap, if the kernel accounts for it
                self._write(*(("memory.swap.max", 0) if self.unified else ("memory.memsw.limit_in_bytes", limit)))
            if not self.unified:  # version 1 counts the memory of sockets only if it has a limit of its own
                self._write("memory.kmem.tcp.limit_in_bytes", 1 << 40)
        except OSError:
            self.path.rmdir()
            raise

    def command(self, command: Sequence[str]) -> list[str]:
        """The command that runs `command` as a process of this group."""
        return ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(self.path), *command]

    def kills(self) -> int:
        """Number of processes in this group that the kernel has killed for lack of memory."""
        return self._numbers("memory.events" if self.unified else "memory.oom_control")["oom_kill"]

    def held(self) -> int:
        """Bytes that the kernel cannot reclaim: anonymous and shared memory. Each page is counted once."""
        stat = self._numbers("memory.stat")
        return stat["anon" if self.unified else "rss"] + stat["shmem"]

    def kernel(self) -> int:
        """Bytes that the kernel holds for the group's processes: page tables, stacks, sockets with their buffers."""
        if self.unified:
            stat = self._numbers("memory.stat")
            return stat["kernel"] + stat["sock"]
        return sum(int((self.path / f"memory.{kind}.usage_in_bytes").read_text()) for kind in ("kmem", "kmem.tcp"))

    def remove(self) -> None:
        """Remove the group. Its processes must have ended or be about to end."""
        for _ in range(100):
            with contextlib.suppress(OSError):
                return self.path.rmdir()
            time.sleep(0.05)

    def _write(self, name: str, value: int) -> None:
        (self.path / name).write_text(str(value))

    def _numbers(self, name: str) -> dict[str, int]:
        lines = (self.path / name).read_text().splitlines()
        return {key: int(value) for key, value in (line.split() for line in lines)}


@contextlib.contextmanager
def group(limit: int) -> Iterator[Group]:
    """A group that exists within the context. Raises OSError if it cannot be created."""
    made = Group(limit)
    try:
        yield made
    finally:
        made.remove()

"""What this container has: memory and CPUs, read from its control group.

A cgroup of version 2 says so in memory.max and cpu.max (docs.kernel.org/admin-guide/cgroup-v2.html), one of version 1
in memory.limit_in_bytes and cpu.cfs_quota_us. A process sees its own group at the root of /sys/fs/cgroup from inside a
container, and below it from outside; the smallest limit on the way up holds.

Only memory that the kernel cannot take back counts as held: anonymous pages and shared memory. Pages of files, such as
a library or a compiled model's weights, it drops by itself when it must.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from collections.abc import Iterator
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
_MALLOC = {-3: 256 << 10, -1: 256 << 10, -8: 2}
"""M_MMAP_THRESHOLD, M_TRIM_THRESHOLD in bytes, M_ARENA_MAX (malloc.h)."""


def memory_limit(setting: int | None = None) -> int:
    """The memory limit in bytes: the setting, the cgroup's, or the machine's, the smallest there is."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # cgroup v1 says "no limit" as the largest multiple of a page; v2 as "max", which is no number.
    limits = [value for (value,) in _values("memory", ("memory.max",), ("memory.limit_in_bytes",)) if value < 1 << 60]
    return min([setting or machine, machine, *limits])


def cpus() -> int:
    """How many CPUs this container has: its quota where it has one, else those it may run on; at least 1."""
    quotas = [
        quota / period for quota, period in _values("cpu", ("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
    ]
    return max(1, min([len(os.sched_getaffinity(0)), *(round(quota) for quota in quotas if quota > 0)]))


def held() -> int:
    """Anonymous and shared memory in bytes, of this process and of the server it was forked from, if any."""
    return sum(_held_by(pid) for pid in {os.getpid(), os.getppid()} if _command(pid) == _command(os.getpid()))


def peak() -> int:
    """The most resident memory in bytes that this process ever had (VmHWM)."""
    return _status(os.getpid(), "VmHWM")


def configure_malloc() -> None:
    """Have the C library return large blocks to the kernel as soon as they are free (glibc's mallopt).

    By default its threshold grows with what is freed, up to 32 MiB: photos and activations then stay in the heap, and
    each thread's arena keeps its own.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        for option, value in _MALLOC.items():
            libc.mallopt(option, value)


def trim_heap() -> None:
    """Return what the C library keeps of freed memory to the kernel, where it can (glibc's malloc_trim)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _command(pid: int) -> bytes:
    """Its command line, which a forked process has from its parent."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _held_by(pid: int) -> int:
    """Its own pages and its part of those it shares, as a worker shares its master's until one of them writes."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except OSError:
        return _status(pid, "RssAnon") + _status(pid, "RssShmem")
    return sum(int(kib) << 10 for kib in re.findall(r"^Pss_(?:Anon|Shmem):\s+(\d+) kB", rollup, re.MULTILINE))


def _status(pid: int, field: str) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    match = re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
    return int(match[1]) << 10 if match else 0


def _values(controller: str, v2: tuple[str, ...], v1: tuple[str, ...]) -> Iterator[tuple[int, ...]]:
    """The numbers in these files of this process's group and of each group above it."""
    for folder, names in _groups(controller, v2, v1):
        for level in (folder, *folder.parents):
            if not level.is_relative_to(CGROUP):
                break
            with contextlib.suppress(OSError, ValueError):
                words = " ".join((level / name).read_text(encoding="ascii") for name in names).split()
                yield tuple(int(word) for word in words)


def _groups(controller: str, v2: tuple[str, ...], v1: tuple[str, ...]) -> Iterator[tuple[Path, tuple[str, ...]]]:
    yield CGROUP, v2
    yield CGROUP / controller, v1
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                yield CGROUP / path.lstrip("/"), v2
            elif controller in controllers.split(","):
                yield CGROUP / controller / path.lstrip("/"), v1

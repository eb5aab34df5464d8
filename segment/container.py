"""Memory and CPUs of the container, read from its control group (cgroup).

The limits are memory.max and cpu.max in cgroup v2 (docs.kernel.org/admin-guide/cgroup-v2.html), memory.limit_in_bytes
and cpu.cfs_quota_us in v1. Inside a container the process's own group is the root of /sys/fs/cgroup; outside it is a
folder below. The smallest limit of the group and its ancestors applies.

Held memory means memory that the kernel cannot reclaim: anonymous pages and shared memory. File-backed pages, such as
those of a library or of a compiled model's weights, are not counted, because the kernel drops them under pressure.
It is read from /proc (docs.kernel.org/filesystems/proc.html). gVisor, in which Cloud Run's first generation runs
containers, provides fewer files and fields there (google/gvisor, pkg/sentry/fsimpl/proc).
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
DEFAULT_LIMIT = 8 << 30
"""Memory limit in bytes where neither a setting nor a cgroup gives one. A machine without limits is usually used for
other things, too, and a file of some hundred kilobytes can contain a photo of any size."""
PROC = Path("/proc")


def memory_limit(setting: int | None = None) -> int:
    """The memory limit in bytes: the smallest of `setting`, the cgroup's limit and the machine's memory.

    If there is neither a setting nor a cgroup's limit, it is at most DEFAULT_LIMIT.
    """
    # No limit is a huge number in cgroup v1, and the word "max" in v2, which _values() skips.
    limits = [value for (value,) in _values("memory", ("memory.max",), ("memory.limit_in_bytes",)) if value < 1 << 60]
    if setting:
        limits.append(setting)
    return min([machine_memory(), *(limits or [DEFAULT_LIMIT])])


def machine_memory() -> int:
    """The machine's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def cpus() -> int:
    """The number of CPUs: the cgroup's quota or the CPU affinity, whichever is smaller; at least 1."""
    quotas = [
        quota / period for quota, period in _values("cpu", ("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
    ]
    return max(1, min([len(os.sched_getaffinity(0)), *(round(quota) for quota in quotas if quota > 0)]))


def held() -> int:
    """Anonymous and shared memory in bytes of this process, and of the parent that it was forked from, if any."""
    return sum(_held_by(pid) for pid in {os.getpid(), os.getppid()} if _command(pid) == _command(os.getpid()))


def anonymous() -> int:
    """Anonymous memory in bytes of this process."""
    return _anonymous(os.getpid())


def peak() -> int:
    """The peak resident memory of this process in bytes (VmHWM)."""
    return _status(os.getpid(), "VmHWM")


def _command(pid: int) -> bytes:
    """The command line of a process. A forked process has the same one as its parent."""
    try:
        return (PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return b""


def _held_by(pid: int) -> int:
    """The process's proportional share (Pss) of its pages, as a forked worker shares pages until one side writes.

    If the kernel does not provide it (gVisor, Linux before 5.4), shared pages are counted in each process.
    """
    share = _field(pid, "smaps_rollup", "Pss_(?:Anon|Shmem)")
    return share or _anonymous(pid) + _status(pid, "RssShmem")


def _anonymous(pid: int) -> int:
    """The process's anonymous memory: from its status, or else from its mappings, or else its whole resident memory."""
    return _status(pid, "RssAnon") or _field(pid, "smaps", "Anonymous") or _status(pid, "VmRSS")


def _status(pid: int, name: str) -> int:
    return _field(pid, "status", name)


def _field(pid: int, file: str, name: str) -> int:
    """The sum in bytes of the fields with this name (a regular expression) in a file in /proc; 0 if there are none."""
    try:
        text = (PROC / str(pid) / file).read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    return sum(int(kib) << 10 for kib in re.findall(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE))


def _values(controller: str, v2: tuple[str, ...], v1: tuple[str, ...]) -> Iterator[tuple[int, ...]]:
    """The numbers in these files, for the process's group and each of its ancestors."""
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
        for line in (PROC / "self/cgroup").read_text(encoding="ascii").splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                yield CGROUP / path.lstrip("/"), v2
            elif controller in controllers.split(","):
                yield CGROUP / controller / path.lstrip("/"), v1

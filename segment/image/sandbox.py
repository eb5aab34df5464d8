"""Decode an image file in a process of its own, with limits of memory and CPU time that the kernel enforces.

Most decoders allocate for the size in the file's header, which is known before decoding. A few allocate for the size of
the coded pictures in the file, which can be larger: an AVIF of a few kilobytes and 64 x 64 pixels can contain a picture
of 16384 x 16384. Such files are decoded here, and the decoder fails where it allocates more than planned.

The limit is RLIMIT_DATA (man7.org/linux/man-pages/man2/getrlimit.2.html), or RLIMIT_AS where the kernel does not apply
RLIMIT_DATA to mmap(). gVisor does not (pkg/sentry/mm/syscalls.go), in which Cloud Run's first generation runs
containers. The parent writes the file to the child's standard input and reads the pixels from its standard output.
"""

from __future__ import annotations

import ctypes
import io
import mmap
import re
import resource
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

PROCESS_BYTES = 28 << 20
"""Memory of the child without the decoder: Python, Pillow and NumPy; pages that it shares with no other process."""
CPU_SECONDS = 60
"""Limit of the child's CPU time. 12 megapixels take about a second."""
STACK_BYTES = 1 << 20
"""Stack of each thread of a decoder. It counts as a whole, used or not."""
LIMITS = ((resource.RLIMIT_DATA, "VmData"), (resource.RLIMIT_AS, "VmSize"))
"""Limits of memory, and the fields of /proc/self/status to which they apply. The first that takes effect is used."""
ROOT = Path(__file__).parents[2]
_CHILD = (
    "import sys; sys.path.insert(0, sys.argv[1]); from segment.image.decoder import main; sys.exit(main(*sys.argv[2:]))"
)
_ATTRIBUTE_BYTES = 64
"""Size of pthread_attr_t, or more."""


class Failed(Exception):
    """The file could not be decoded within the limits."""


def decode(data: bytes, target: tuple[int, int], size: tuple[int, int], limit: int) -> bytearray:
    """The pixels of the image file `data`: size[0] * size[1] * 3 bytes, upright RGB, as image.decode() makes them.

    `target`: argument of image.decode(). `limit`: bytes that the decoder may allocate. Raises Failed.
    """
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(ROOT), str(limit), str(target[0]), str(target[1])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    pixels = bytearray(3 * size[0] * size[1])
    view, count = memoryview(pixels), 0
    with child:
        assert child.stdin
        assert isinstance(child.stdout, io.BufferedReader)
        try:
            with suppress(BrokenPipeError), child.stdin:
                child.stdin.write(data)
            while count < len(view) and (more := child.stdout.readinto(view[count:])):
                count += more
        except BaseException:
            child.kill()
            raise
    if child.returncode or count < len(view):
        raise Failed
    return pixels


def confine(limit: int) -> None:
    """Limit this process to allocate `limit` bytes in addition to what it has, and to CPU_SECONDS."""
    _limit_stacks()
    _limit_memory(limit)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_memory(limit: int) -> None:
    with suppress(OSError, ValueError):
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        sizes = {field: int(kib) << 10 for field, kib in re.findall(r"^(\w+):\s+(\d+) kB", status, re.MULTILINE)}
        for kind, field in LIMITS:
            if field in sizes:
                resource.setrlimit(kind, (sizes[field] + limit, sizes[field] + limit))
                if not _can_allocate(limit + mmap.PAGESIZE):
                    return


def _can_allocate(count: int) -> bool:
    """Whether the kernel grants `count` bytes of memory. They are not used, so they take none."""
    try:
        mmap.mmap(-1, count, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError:
        return False
    return True


def _limit_stacks() -> None:
    """Set the stack size of threads that are created from now on (glibc's pthread_setattr_default_np)."""
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        attributes = ctypes.create_string_buffer(_ATTRIBUTE_BYTES)
        libc.pthread_attr_init(attributes)
        libc.pthread_attr_setstacksize(attributes, ctypes.c_size_t(STACK_BYTES))
        libc.pthread_setattr_default_np(attributes)

"""Configure this process: the memory allocator of the C library, and the threads of NumPy's products."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Mapping

from threadpoolctl import threadpool_limits

_RETURN = {-3: 256 << 10, -1: 256 << 10, -8: 2}
_KEEP = {-3: 768 << 10, -1: 4 << 20}
"""M_MMAP_THRESHOLD, M_TRIM_THRESHOLD in bytes, M_ARENA_MAX (malloc.h).

The first threshold is below the size of Pillow's blocks (about 1 MiB). Otherwise the heap would keep whole photos.
"""
KEPT_BYTES = 24 << 20
"""Memory that `keep_blocks` takes at most: both arenas, with gaps between blocks in use."""


def configure_malloc() -> None:
    """Make the C library return large blocks to the kernel as soon as they are freed (glibc's mallopt).

    By default the threshold grows with the freed blocks, up to 32 MiB, so that photos and activations stay in the heap
    after use, once per arena.
    """
    _set_malloc(_RETURN)


def keep_blocks() -> None:
    """Let the C library keep freed blocks for the next photos, up to about KEPT_BYTES, after configure_malloc().

    The kernel clears each page that it gives out again, which takes CPU time for every photo.
    """
    _set_malloc(_KEEP)


def trim_heap() -> None:
    """Return freed memory that the C library keeps to the kernel (glibc's malloc_trim)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _set_malloc(options: Mapping[int, int]) -> None:
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        for option, value in options.items():
            libc.mallopt(option, value)


def limit_blas_threads() -> None:
    """Let NumPy's matrix products use the calling thread only.

    The products here are small. OpenBLAS's other threads wait for the next product in a busy loop (several
    milliseconds each time), on CPUs that the network could use.
    """
    threadpool_limits(1, user_api="blas")

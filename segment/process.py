"""Configure this process: the memory allocator of the C library, and the threads of NumPy's products."""

from __future__ import annotations

import contextlib
import ctypes

from threadpoolctl import threadpool_limits

_MALLOC = {-3: 256 << 10, -1: 256 << 10, -8: 2}
"""M_MMAP_THRESHOLD, M_TRIM_THRESHOLD in bytes, M_ARENA_MAX (malloc.h)."""


def configure_malloc() -> None:
    """Make the C library return large blocks to the kernel as soon as they are freed (glibc's mallopt).

    By default the threshold grows with the freed blocks, up to 32 MiB, so that photos and activations stay in the heap
    after use, once per arena.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        for option, value in _MALLOC.items():
            libc.mallopt(option, value)


def trim_heap() -> None:
    """Return freed memory that the C library keeps to the kernel (glibc's malloc_trim)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def limit_blas_threads() -> None:
    """Let NumPy's matrix products use the calling thread only.

    The products here are small. OpenBLAS's other threads wait for the next product in a busy loop (several
    milliseconds each time), on CPUs that the network could use.
    """
    threadpool_limits(1, user_api="blas")

"""glibc's malloc as a training step wants it: large blocks are kept instead of being mapped afresh each time.

By default glibc takes every block above 32 MiB from the kernel and gives it back when it is freed. The logits
and gradients of a language model are such blocks, and the kernel then fills their pages with zeros again in
every step, which can cost more time than the arithmetic on them. A GPU's caching allocator keeps its memory too.

The settings are those of ``mallopt(3)``. They hold for the whole process; :func:`restore` sets the documented
defaults, since glibc does not tell what was set before. With another C library nothing happens.

PyTorch is asked for huge pages, too, for tensors that fill them: a step of decoding reads all weights once, and waits
for their addresses as well as for them. It looks for that wish when the process makes its first tensor.
"""

import ctypes
import os
import platform

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_KEEP = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _ARENA_MAX: 1}
_DEFAULTS = {_MMAP_MAX: 65536, _TRIM_THRESHOLD: 128 * 1024, _ARENA_MAX: 0}
_HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"


def keep_large_blocks() -> bool:
    """Never map or trim blocks, and share one arena between threads. Returns whether the C library took it.

    The environment's own ``THP_MEM_ALLOC_ENABLE`` stays.
    """
    os.environ.setdefault(_HUGE_PAGES, "1")
    return _set(_KEEP)


def restore() -> bool:
    """Set glibc's defaults. Huge pages stay as the first tensor found them."""
    return _set(_DEFAULTS)


def _set(options: dict[int, int]) -> bool:
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(option, value) == 1 for option, value in options.items()])

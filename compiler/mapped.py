"""What the system is given back: pages of mapped files, and memory that was freed."""

from __future__ import annotations

import ctypes
import mmap
import sys
from pathlib import Path

import numpy as np


def let_go(array: np.ndarray) -> None:
    """Frees the memory that holds pages of the file that `array` is a view of, if it is one: they are read again when
    they are wanted. So what was read of a large model does not stay."""
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)


def let_go_of_code(part: str) -> None:
    """Frees the memory that holds code of the libraries whose path has `part` in it, which is read again where it is
    wanted: of libraries that have done their work, for now. Code alone, as nothing writes to it."""
    if sys.platform != "linux" or not hasattr(mmap, "MADV_DONTNEED"):
        return
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    for line in Path("/proc/self/maps").read_text(errors="replace").splitlines():
        place, rights, *_, path = line.split(maxsplit=5) if "/" in line else ("", "", "")
        if rights == "r-xp" and part in path:
            start, end = (int(edge, 16) for edge in place.split("-"))
            advise(start, end - start, mmap.MADV_DONTNEED)


def give_back() -> None:
    """Gives freed memory to the system that the C library keeps for later, where it is one that can."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(ctypes.c_size_t(0))

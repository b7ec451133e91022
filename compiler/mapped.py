"""What the system is given back: pages of mapped files, and memory that was freed."""

from __future__ import annotations

import ctypes
import mmap
import re
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


def let_go_of_libraries(part: str) -> None:
    """Frees the memory that holds pages of the mapped files whose path has `part` in it, such as a library that is not
    needed for now: they are read again when they are wanted. Mappings that were written to, or may be, keep theirs."""
    if sys.platform != "linux" or not hasattr(mmap, "MADV_DONTNEED"):
        return
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    for mapping in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)[1:]:
        place, rights, *_, path = mapping.partition("\n")[0].split(maxsplit=5)
        if part in path and "w" not in rights and re.search(r"^Anonymous: +0 kB$", mapping, re.MULTILINE):
            start, end = (int(edge, 16) for edge in place.split("-"))
            advise(start, end - start, mmap.MADV_DONTNEED)


def give_back() -> None:
    """Gives freed memory to the system that the C library keeps for later, where it is one that can."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(ctypes.c_size_t(0))

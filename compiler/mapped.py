"""Files that are mapped into memory."""

from __future__ import annotations

import mmap

import numpy as np


def let_go(array: np.ndarray) -> None:
    """Frees the memory that holds pages of the file that `array` is a view of, if it is one: they are read again when
    they are wanted. So what was read of a large model does not stay."""
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)

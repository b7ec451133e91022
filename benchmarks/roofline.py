"""Limits of this machine, from `roofline.c`: the read bandwidth of given bytes, and peaks of multiply-adds."""

from __future__ import annotations

import ctypes
import mmap
import statistics
import subprocess
import tempfile
from ctypes import c_char_p, c_double, c_int32, c_size_t, c_void_p
from pathlib import Path

import numpy as np

from ..backends.c.toolchain import find_compiler

SOURCE = Path(__file__).with_name("roofline.c")
ALIGNMENT = 64
STREAMS = (1, 4)
PEAK_SECONDS = 0.03


class Roofline:
    """The compiled measurements. Peaks are in multiply-adds per second, bandwidths in bytes per second."""

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory(prefix="inferc-roofline-") as folder:
            library = Path(folder) / "roofline.so"
            flags = ["-std=gnu11", "-O3", "-march=native", "-shared", "-fPIC"]
            subprocess.run([*find_compiler(), *flags, str(SOURCE), "-o", str(library), "-pthread"], check=True)
            self._c = ctypes.CDLL(str(library))
        self._c.roofline_read.restype = self._c.roofline_peak.restype = c_double
        self._c.roofline_read.argtypes = [c_void_p, c_size_t, c_int32, c_int32]
        self._c.roofline_peak.argtypes = [c_int32, c_int32, c_double]
        self._c.roofline_peak_name.restype = c_char_p
        self._index: dict[str, int] = {}
        while name := self._c.roofline_peak_name(c_int32(len(self._index))):
            self._index[name.decode()] = len(self._index)
        self.peaks = tuple(self._index)  # those that this CPU has

    def read(self, data: np.ndarray, threads: int) -> float:
        """The bandwidth of a read of u8[bytes] by `threads`, from its first aligned byte on, in bytes per second.

        Each thread reads in one stream, then in four side by side, and the faster counts: CPUs differ in which is.
        """
        return max(self.read_streams(data, threads, streams) for streams in STREAMS)

    def read_streams(self, data: np.ndarray, threads: int, streams: int) -> float:
        """The bandwidth with one of STREAMS."""
        skipped = -data.ctypes.data % ALIGNMENT
        size = data.nbytes - skipped
        seconds = self._c.roofline_read(data.ctypes.data + skipped, size, threads, streams)
        if seconds <= 0:
            raise OSError(f"the system gives no {threads} threads")
        return size / seconds

    def peak(self, name: str, threads: int, seconds: float = PEAK_SECONDS) -> float | None:
        """Multiply-adds per second of one of `peaks`; None for another, or where the system does not allow the unit."""
        if name not in self._index:
            return None
        found = self._c.roofline_peak(self._index[name], threads, seconds)
        return found if found > 0 else None

    def bandwidth(self, threads: int, size: int = 1 << 30, rounds: int = 7) -> dict[str, float]:
        """Median, least and most of `read` of anonymous memory, in large pages where the system gives them."""
        flags = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
        memory = mmap.mmap(-1, size, **flags)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        data = np.frombuffer(memory, np.uint64)
        data.reshape(-1, 1 << 20)[:] = np.random.default_rng(0).integers(0, 1 << 63, 1 << 20)  # no page like another
        seen = [self.read(data.view(np.uint8), threads) for _ in range(rounds)]
        return {"median": statistics.median(seen), "min": min(seen), "max": max(seen)}

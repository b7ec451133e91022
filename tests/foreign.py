"""Kernels for machines that the host is not: built by zig, run by an emulator that is given the memory of each call."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from inferc.backends.c.emulation import emulator, zig
from inferc.backends.c.target import TARGETS

DATA = Path(__file__).parent / "data"
SCRIPT = DATA / "foreign.mjs"
GUARD, FILL = 64, 0xA5  # bytes between buffers, which must stay as they are
LINKED = {"aarch64": ("-static",), "wasm32": ("-Wl,--no-entry", "-Wl,--export=__heap_base")}


def foreign_commands(target: str, flags: Sequence[str], source: Path, output: Path) -> list[list[object]]:
    """What builds a program without a C library; headers are there only where one could be linked."""
    chosen = TARGETS[target]
    part, quiet = output.with_suffix(".o"), "-Wno-unused-function"  # clang means static inline ones too
    return [[*zig(target), *chosen.cflags, *flags, quiet, "-c", source, "-o", part],
            [*zig(target), "-nostdlib", *LINKED[chosen.machine], part, "-o", output]]  # fmt: skip


class Foreign:
    """A program of `call` (see `c_harness.calls_source`) in an emulator, which waits for one call after another."""

    def __init__(self, program: Path, target: str) -> None:
        machine = TARGETS[target].machine
        self.size_t = "<u4" if machine == "wasm32" else "<u8"
        command = [*emulator(machine, SCRIPT), program]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __del__(self) -> None:
        if hasattr(self, "process"):
            self.process.stdin.close()
            self.process.stdout.close()
            self.process.wait()

    def call(self, which: int, operands: Sequence[object], results: Sequence[object], dims: Sequence[int],
             scratch: int, threads: int, sessions: Sequence[np.ndarray]) -> None:  # fmt: skip
        """One call, of arrays, `Region`s (as three numbers) and None. Arrays are changed as the call changes them; one
        that is given twice is one buffer."""
        groups = operands, results, sessions
        held: dict[int, np.ndarray] = {}  # by address
        for item in chain(*groups):
            data = self._bytes(item)
            if item is not None and data.nbytes >= held.get(address(item), data).nbytes:
                held[address(item)] = data
        at = 8 * (7 + len(dims) + sum(map(len, groups)))
        places = {}
        for key, data in held.items():
            at += GUARD + (key - at - GUARD) % 64
            places[key] = at
            at += data.nbytes
        start = -(-(at + GUARD) // 64) * 64
        table = [which, threads, start, len(dims), *map(len, groups), *dims]
        table += [0 if item is None else places[address(item)] for item in chain(*groups)]
        memory = np.full(start + scratch + GUARD, FILL, np.uint8)
        memory[: 8 * len(table)] = np.array(table, np.int64).view(np.uint8)
        memory[start : start + scratch] = 0xFF  # NaNs: a kernel may not read what it did not write
        for key, data in held.items():
            memory[places[key] : places[key] + data.nbytes] = data
        after = self._exchange(memory)
        memory[start : start + scratch] = after[start : start + scratch]
        for key, data in held.items():
            part = slice(places[key], places[key] + data.nbytes)
            if not np.array_equal(memory[part], after[part]):
                memory[part] = data[:] = after[part]
        assert np.array_equal(memory, after), "wrote outside of its buffers"

    def _bytes(self, item: object) -> np.ndarray:
        """A view of an array's bytes, or those of a `Region` on that machine."""
        if isinstance(item, np.ndarray):
            assert item.flags.c_contiguous
            return item.reshape(-1).view(np.uint8)
        numbers = [] if item is None else [getattr(item, name) for name, _ in item._fields_]
        return np.array(numbers, self.size_t).view(np.uint8)

    def _exchange(self, memory: np.ndarray) -> np.ndarray:
        """The memory as the program leaves it."""
        try:
            self.process.stdin.write(np.int64(memory.nbytes).tobytes())
            self.process.stdin.write(memory.data)
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # its exit code says more
        after = self.process.stdout.read(8 + memory.nbytes)
        assert len(after) == 8 + memory.nbytes, f"the emulated program ended with {self.process.wait()}"
        assert after[:8] == bytes(8), "the call was refused"
        return np.frombuffer(after, np.uint8)[8:]


def address(item: object) -> int:
    """Where an array or a ctypes structure lies here."""
    return item.ctypes.data if isinstance(item, np.ndarray) else ctypes.addressof(item)

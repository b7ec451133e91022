"""Compiles C for a target and runs single kernels from NumPy arrays: what the tests of the C backend share."""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from inferc.backends.c.kernels import THREADS, Arg, Call, DimValue, Literal, Operand, Result, Run, Scratch
from inferc.backends.c.target import TARGETS, supported
from inferc.ir.types import Dim, evaluate

ROOT = Path(__file__).resolve().parent.parent
ISA, RUNTIME = ROOT / "backends/c/isa", ROOT / "runtime/c"
FLAGS = ("-std=c11 -D_GNU_SOURCE -O3 -ffp-contract=off -fno-math-errno -fno-trapping-math "
         "-Wall -Wextra -Werror -pedantic").split()  # fmt: skip
_FOLDER = tempfile.TemporaryDirectory(prefix="inferc-c-")  # removed when the tests end
_BUILT = Path(_FOLDER.name)


every_target = pytest.mark.parametrize("target", [
    pytest.param(name, marks=pytest.mark.skipif(t not in supported(), reason=f"no {name} here"))
    for name, t in TARGETS.items()
])  # fmt: skip


@cache
def compiler() -> str:
    """The host's C compiler; skips the test where there is none."""
    found = next((p for name in ("cc", "gcc", "clang") if (p := shutil.which(name))), None)
    return found or pytest.skip("no C compiler")


def compile_kernels(source: str, target: str, extra: tuple[str, ...] = ()) -> Path:
    """A shared library of `source` after the words of `target`, warnings being errors."""
    headers = "run.h", TARGETS[target].header, "elementary.h", "parallel.h"
    text = "".join(f'#include "{header}"\n' for header in headers) + source
    name = hashlib.sha256(f"{text}{target}{extra}".encode()).hexdigest()[:16]
    path, library = _BUILT / f"{name}.c", _BUILT / f"{name}.so"
    path.write_text(text)
    command = [compiler(), *FLAGS, *TARGETS[target].cflags, *extra, "-iquote", str(ISA), "-iquote", str(RUNTIME),
               "-shared", "-fPIC", str(path), "-o", str(library), "-lm", "-lpthread"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{path}:\n{done.stderr}"
    return library


@cache
def build(source: str, target: str, extra: tuple[str, ...] = ()) -> ctypes.CDLL:
    """The library of `compile_kernels`, loaded."""
    return ctypes.CDLL(str(compile_kernels(source, target, extra)))


class Region(ctypes.Structure):
    """`cache_region` of run.h."""

    _fields_ = [("base", ctypes.c_size_t), ("page_bytes", ctypes.c_size_t), ("pages", ctypes.c_int32)]


def _arguments(args: Sequence[Arg]) -> str:
    """C text of a call's arguments, from the arrays that `Calls.run` gives; dims are counted up."""
    dims = count()

    def text(arg: Arg) -> str:
        match arg:
            case Operand(index):
                return f"operands[{index}]"
            case Result(index):
                return f"results[{index}]"
            case DimValue():
                return f"dims[{next(dims)}]"
            case Literal(text):
                return text
            case Scratch():
                return "scratch"
            case Run():
                return "&r"
        raise TypeError(f"no such argument: {arg!r}")

    return ", ".join(map(text, args))


def pointer(value: object) -> int | None:
    """The address of an array or a ctypes structure."""
    return None if value is None else value.ctypes.data if isinstance(value, np.ndarray) else ctypes.addressof(value)


def dims_of(call: Call) -> list[Dim]:
    """The dimensions that a call is given, in their order."""
    return [a.dim for a in call.args if isinstance(a, DimValue)]


def calls_source(calls: Sequence[Call]) -> str:
    """C text of the calls' kernels and of a function `call` that does one of them."""
    kernels = {k.symbol: k.source for call in calls for k in call.kernel.closure()}
    cases = ""
    for n, call in enumerate(calls):
        cases += f"    case {n}: {call.kernel.symbol}({_arguments(call.args)}); break;\n"
    signature = """int call(int which, void *const *operands, void *const *results, const int32_t *dims,
         void *scratch, int32_t threads, char *const *sessions, int32_t session_count)"""
    return "\n".join(kernels.values()) + f"""
{signature};
{signature} {{
  pool p;
  pool_worker workers[64];
  if (!pool_start(&p, threads, workers)) return 1;
  run r = {{.threads = threads, .session_count = session_count, .sessions = sessions}};
  r.pool = &p;
  r.parallel_for = pool_for;
  (void)operands, (void)results, (void)dims, (void)scratch;
  switch (which) {{
{cases}  }}
  pool_stop(&p);
  return 0;
}}
"""


class Calls:
    """Many lowered nodes in one library, so that a test compiles once."""

    def __init__(self, calls: Sequence[Call], target: str, extra: tuple[str, ...] = ()) -> None:
        self.calls, self.dims = calls, [dims_of(call) for call in calls]
        self.library = build(calls_source(calls), target, extra)

    def run(self, which: int, operands: Sequence[object], results: Sequence[object], symbols: Mapping[str, int],
            threads: int = 1, sessions: Sequence[np.ndarray] = ()) -> None:  # fmt: skip
        """Runs one call: reads `operands` and writes `results`, arrays or `Region`s, with the dims of `symbols`."""
        values = {**symbols, "threads": threads}
        size = evaluate(self.calls[which].scratch, values)
        scratch = np.full(size + 64, 0xFF, np.uint8)  # NaNs: a kernel may not read what it did not write
        aligned = scratch[-scratch.ctypes.data % 64 :]

        def pointers(items: Sequence[object]) -> ctypes.Array:
            return (ctypes.c_void_p * max(1, len(items)))(*map(pointer, items))

        dims = self.dims[which]
        numbers = (ctypes.c_int32 * max(1, len(dims)))(*(evaluate(d, values) for d in dims))
        failed = self.library.call(ctypes.c_int(which), pointers(operands), pointers(results), numbers,
                                   ctypes.c_void_p(aligned.ctypes.data), ctypes.c_int32(threads), pointers(sessions),
                                   ctypes.c_int32(len(sessions)))  # fmt: skip
        assert not failed, "the pool did not start"


def run_call(call: Call, operands: Sequence[object], results: Sequence[object], symbols: Mapping[str, int], target: str,
             threads: int = 1, sessions: Sequence[np.ndarray] = (), extra: tuple[str, ...] = ()) -> None:  # fmt: skip
    """Runs one lowered node in a library of its own."""
    Calls([call], target, extra).run(0, operands, results, symbols, threads, sessions)


def same_bits(got: np.ndarray, want: np.ndarray) -> bool:
    """Equal bits, all NaNs alike."""
    if got.dtype.kind != "f":
        return np.array_equal(got, want)
    unsigned = f"u{got.dtype.itemsize}"
    equal = np.ascontiguousarray(got).view(unsigned) == np.ascontiguousarray(want).view(unsigned)
    return bool(np.all(equal | (np.isnan(got) & np.isnan(want))))


__all__ = ["Calls", "Region", "THREADS", "build", "every_target", "run_call", "same_bits"]

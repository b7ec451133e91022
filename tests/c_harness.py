"""Compiles C for a target and runs single kernels from NumPy arrays: what the tests of the C backend share."""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from inferc.backends.c.emulation import missing
from inferc.backends.c.kernels import THREADS, Arg, Call, DimValue, Literal, Operand, Result, Run, Scratch
from inferc.backends.c.target import TARGETS, supported
from inferc.ir.types import Dim, evaluate

from .foreign import DATA, Foreign, address, foreign_commands

ROOT = Path(__file__).resolve().parent.parent
ISA, RUNTIME = ROOT / "backends/c/isa", ROOT / "runtime/c"
FLAGS = ("-std=c11 -D_GNU_SOURCE -O3 -ffp-contract=off -fno-math-errno -fno-trapping-math "
         "-Wall -Wextra -Werror -pedantic").split()  # fmt: skip
_FOLDER = tempfile.TemporaryDirectory(prefix="inferc-c-")  # removed when the tests end
_BUILT = Path(_FOLDER.name)


def _targets(slow: Collection[str] = (), only: Collection[str] = TARGETS) -> pytest.MarkDecorator:
    params = []
    for name, target in TARGETS.items():
        reason = missing(name) if target.foreign else "" if target in supported() else f"no {name} here"
        marks = [pytest.mark.skipif(bool(reason), reason=reason), *([pytest.mark.slow] if name in slow else [])]
        if name in only:
            params.append(pytest.param(name, marks=marks))
    return pytest.mark.parametrize("target", params)


FOREIGN = [name for name, target in TARGETS.items() if target.foreign]  # emulated
# Targets that differ from another in products only: all else is tested for them with the slow tests.
LIKE_ANOTHER = ["avxvnni", "avx512vnni", "neon_i8mm", "wasm128relaxed"]
every_target = _targets(slow=LIKE_ANOTHER)
every_target_emulated_slowly = _targets(slow=[*FOREIGN, *LIKE_ANOTHER])
# avx512bf16 has the dots of avx512vnni; the others differ from avx2, neon and wasm128 in one word.
every_product_target = _targets(slow=["avx512vnni", "avxvnni", "neon_i8mm", "wasm128relaxed"])
every_host_target = _targets(slow=[*LIKE_ANOTHER, "avx2"], only=TARGETS.keys() - FOREIGN)


@cache
def compiler() -> str:
    """The host's C compiler; skips the test where there is none."""
    found = next((p for name in ("cc", "gcc", "clang") if (p := shutil.which(name))), None)
    return found or pytest.skip("no C compiler")


def compile_kernels(source: str, target: str, extra: tuple[str, ...] = ()) -> Path:
    """`source` after the words of `target` as a shared library, or a program for another machine; no warnings pass."""
    foreign = TARGETS[target].foreign
    headers = "run.h", TARGETS[target].header, "elementary.h", *(() if foreign else ("parallel.h",))
    text = "".join(f'#include "{header}"\n' for header in headers) + source
    text += (DATA / "foreign.c").read_text() if foreign else ""
    name = hashlib.sha256(f"{text}{target}{extra}".encode()).hexdigest()[:16]
    path, output = _BUILT / f"{name}.c", _BUILT / f"{name}.so"
    path.write_text(text)
    # The loops over lanes of generic.h take gcc long at -O3, and optimisation changes no bits (test_recorded_ops).
    quick = ("-O1",) if target == "generic" else ()
    flags = [*FLAGS, *quick, *extra, "-iquote", str(ISA), "-iquote", str(RUNTIME)]
    if foreign:
        commands = foreign_commands(target, flags, path, output)
    else:
        shared = "-shared", "-fPIC", "-o", output, path, "-lm", "-lpthread"
        commands = [[compiler(), *TARGETS[target].cflags, *flags, *shared]]
    for command in commands:
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert done.returncode == 0, f"{path}:\n{done.stderr}"
    return output


@cache
def build(source: str, target: str, extra: tuple[str, ...] = ()) -> ctypes.CDLL | Foreign:
    """What `compile_kernels` makes, loaded."""
    path = compile_kernels(source, target, extra)
    return Foreign(path, target) if TARGETS[target].foreign else ctypes.CDLL(str(path))


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
    return None if value is None else address(value)


def dims_of(call: Call) -> list[Dim]:
    """The dimensions that a call is given, in their order."""
    return [a.dim for a in call.args if isinstance(a, DimValue)]


SIGNATURE = """int call(int which, void *const *operands, void *const *results, const int32_t *dims,
         void *scratch, int32_t threads, char *const *sessions, int32_t session_count)"""
POOL = """\
  pool p;
  pool_worker workers[64];
  if (!pool_start(&p, threads, workers)) return 1;
  r.pool = &p;
  r.parallel_for = pool_for;
"""
IN_TURN = """\
/* Without threads: the workers take pieces in turn, the last one first. */
static void in_turn(void *threads, int32_t count, int32_t grain, parallel_body *body, const void *args) {
  const int32_t workers = *(int32_t *)threads, pieces = (count + grain - 1) / grain;
  for (int32_t i = pieces - 1; i >= 0; i--) body(args, i * grain, int_min(count, (i + 1) * grain), i % workers);
}
"""


def calls_source(calls: Sequence[Call], foreign: bool = False) -> str:
    """C text of the calls' kernels and of a function `call` that does one of them."""
    kernels = {k.symbol: k.source for call in calls for k in call.kernel.closure()}
    cases = ""
    for n, call in enumerate(calls):
        cases += f"    case {n}: {call.kernel.symbol}({_arguments(call.args)}); break;\n"
    start, stop = POOL, "  pool_stop(&p);\n"
    if foreign:
        start, stop = "  r.pool = &threads;\n  r.parallel_for = in_turn;\n", ""
    return "\n".join([*kernels.values(), IN_TURN if foreign else ""]) + f"""
{SIGNATURE};
{SIGNATURE} {{
  run r = {{.threads = threads, .session_count = session_count, .sessions = sessions}};
{start}\
  (void)r, (void)operands, (void)results, (void)dims, (void)scratch;
  switch (which) {{
{cases}  }}
{stop}\
  return 0;
}}
"""


class Calls:
    """Many lowered nodes in one library, so that a test compiles once."""

    def __init__(self, calls: Sequence[Call], target: str, extra: tuple[str, ...] = ()) -> None:
        self.calls, self.dims = calls, [dims_of(call) for call in calls]
        self.library = build(calls_source(calls, TARGETS[target].foreign), target, extra)

    def run(self, which: int, operands: Sequence[object], results: Sequence[object], symbols: Mapping[str, int],
            threads: int = 1, sessions: Sequence[np.ndarray] = ()) -> None:  # fmt: skip
        """Runs one call: reads `operands` and writes `results`, arrays or `Region`s, with the dims of `symbols`."""
        values = {**symbols, "threads": threads}
        size = evaluate(self.calls[which].scratch, values)
        dims = [evaluate(d, values) for d in self.dims[which]]
        if isinstance(self.library, Foreign):
            self.library.call(which, operands, results, dims, size, threads, sessions)
            return
        scratch = np.full(size + 64, 0xFF, np.uint8)  # NaNs: a kernel may not read what it did not write
        aligned = scratch[-scratch.ctypes.data % 64 :]

        def pointers(items: Sequence[object]) -> ctypes.Array:
            return (ctypes.c_void_p * max(1, len(items)))(*map(pointer, items))

        numbers = (ctypes.c_int32 * max(1, len(dims)))(*dims)
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

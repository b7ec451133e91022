"""Generated C under the sanitizers: kernels in buffers of exactly their size, whole models through every part of the
interface, weights of random bytes, and threads."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import numpy as np

from inferc.backends.c.toolchain import SANITIZERS
from inferc.ir.types import evaluate

from .c_harness import calls_source, compile_kernels, compiler, dims_of, every_target, same_bits
from .recorded import given, recorded_ops

DATA = Path(__file__).parent / "data"
FLAGS = ("-std=c11", "-D_GNU_SOURCE", "-O1", "-Wall", "-Wextra", "-Werror", "-pedantic")
MEMORY = (*SANITIZERS, "-fsanitize=float-cast-overflow")


def run(command: list[object], stdin: bytes = b"") -> bytes:
    """What a program writes; fails with what it says on stderr where it does not end well."""
    done = subprocess.run(list(map(str, command)), input=stdin, capture_output=True, timeout=300)
    assert done.returncode == 0, f"exit code {done.returncode}: {done.stderr.decode(errors='replace')[:4000]}"
    return done.stdout


def integers(*values: int) -> bytes:
    return np.array(values, np.int64).tobytes()


def raw(array: object) -> bytes:
    return np.ascontiguousarray(array).tobytes() if isinstance(array, np.ndarray) else ctypes.string_at(
        ctypes.addressof(array), ctypes.sizeof(array))  # fmt: skip


@every_target
def test_kernels_stay_inside_their_buffers(target: str, tmp_path: Path) -> None:
    """Every recorded op, each operand, result, session and scratch at the end of a heap block, bits as interpreted."""
    lowered = [r.lowered(target) for r in recorded_ops()]
    library = compile_kernels(calls_source(lowered), target, ("-O1", *MEMORY))
    program = tmp_path / "replay"
    run([compiler(), *FLAGS, *MEMORY, DATA / "replay.c", library, f"-Wl,-rpath,{library.parent}", "-o", program])
    stream, wanted = [], []
    for which, (recorded, call) in enumerate(zip(recorded_ops(), lowered)):
        for one in recorded.runs:
            for threads in (1, 3):
                case, values = given(recorded, one), {**one.dims, "threads": threads}
                dims = [evaluate(d, values) for d in dims_of(call)]
                groups = len(dims), len(case.operands), len(case.results), len(case.sessions)
                stream.append(integers(which, threads, evaluate(call.scratch, values), *groups, *dims))
                stream += [integers(len(raw(o))) + raw(o) for o in case.operands]
                stream += [integers(r.nbytes) for r in case.results]
                stream += [integers(s.nbytes) + raw(s) for s in case.sessions]
                wanted += [(recorded, array) for array in (*case.results, *case.written)]
    output, at = run([program], b"".join(stream)), 0
    for recorded, array in wanted:
        got = np.frombuffer(output, array.dtype, array.size, at).reshape(array.shape)
        at += array.nbytes
        assert same_bits(got, array), recorded.name
    assert at == len(output)

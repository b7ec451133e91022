"""Op by op, C has the interpreter's bits: every distinct op of the lowered models, on the operands it had there."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from .c_harness import Calls, every_target
from .recorded import Recorded, Run, given, recorded_ops

EXPECTED = (
    "add broadcast cache_write cached_attention embedding gated_linear linear linear_add linear_group mul quantize "
    "rms_norm rope rope_angles rope_cache_write softcap take_rows"
).split()
GUARD = 64  # bytes on either side of what C may write, which must stay as they are


class Guarded:
    """An array in memory at a multiple of 64 with GUARD bytes before and after it; without values, bytes of 0xFF."""

    def __init__(self, like: np.ndarray, values: np.ndarray | None = None) -> None:
        size = like.nbytes
        raw = np.full(size + 2 * GUARD + 64, 0xA5, np.uint8)
        self.all = raw[-raw.ctypes.data % 64 :][: size + 2 * GUARD]
        inside = self.all[GUARD : GUARD + size]
        inside[:] = 0xFF if values is None else np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        self.array = inside.view(like.dtype).reshape(like.shape)

    @property
    def is_whole(self) -> bool:
        return bool((self.all[:GUARD] == 0xA5).all() and (self.all[GUARD + self.array.nbytes :] == 0xA5).all())


def different(got: np.ndarray, want: np.ndarray) -> int:
    """How many values differ in their bits, NaNs being alike."""
    unsigned = f"u{want.dtype.itemsize}"
    unequal = got.view(unsigned) != np.ascontiguousarray(want).view(unsigned)
    if want.dtype.kind == "f":
        unequal &= ~(np.isnan(got) & np.isnan(want))
    return int(unequal.sum())


@cache
def library(target: str, level: str = "-O1") -> Calls:
    """All recorded ops for one target. Optimisation must not change bits: -O1 compiles in a third of the time."""
    return Calls([r.lowered(target) for r in recorded_ops()], target, (level,))


def complaints(calls: Calls, target: str, which: int, recorded: Recorded, run: Run, threads: int = 1,
               in_place: bool = False) -> list[str]:  # fmt: skip
    """What C does otherwise than the interpreter, a line each."""
    case = given(recorded, run)
    operands = [Guarded(o, o) if isinstance(o, np.ndarray) else o for o in case.operands]
    results = [Guarded(r) for r in case.results]
    if in_place:
        for result, operand in calls.calls[which].in_place:
            results[result] = operands[operand]
    sessions = [Guarded(s, s) for s in case.sessions]
    calls.run(which, [o.array if isinstance(o, Guarded) else o for o in operands], [r.array for r in results],
              run.dims, threads, [s.array for s in sessions])  # fmt: skip
    where = f"{recorded.name} on {target}, {threads} threads, {dict(run.dims)}{', in place' * in_place}"
    found = []
    for what, buffers, wanted in (("result", results, case.results), ("session", sessions, case.written)):
        for i, (buffer, want) in enumerate(zip(buffers, wanted, strict=True)):
            if count := different(buffer.array, want):
                found.append(f"{where}: {count} of {want.size} values of {what} {i} differ")
            if not buffer.is_whole:
                found.append(f"{where}: wrote outside of {what} {i}")
    for i, (operand, before) in enumerate(zip(operands, case.operands)):
        if isinstance(operand, Guarded) and operand not in results and different(operand.array, before):
            found.append(f"{where}: operand {i} was changed")
    return found


def test_the_recording_covers_what_models_are_made_of() -> None:
    assert {r.node.op.name for r in recorded_ops()} == set(EXPECTED)
    assert {len(r.runs) for r in recorded_ops()} == {3}


def test_a_difference_is_named_with_its_op_and_where_it_is() -> None:
    which, recorded = next((i, r) for i, r in enumerate(recorded_ops()) if r.node.op.name == "linear_add")
    run = recorded.runs[0]
    wrong = run.results[0].copy()
    wrong.view(np.uint32)[3, :2] ^= 1
    (line,) = complaints(library("generic"), "generic", which, recorded, replace(run, results=(wrong,)))
    assert line == (
        f"linear_add at attention.output of {recorded.case} on generic, 1 threads, {dict(run.dims)}: "
        f"2 of {wrong.size} values of result 0 differ"
    )


def check(calls: Calls, target: str, ops: Collection[str]) -> None:
    """All runs of these ops, on one thread and three, and over their operands where a kernel permits that."""
    found = [
        complaint
        for which, recorded in enumerate(recorded_ops())
        if recorded.node.op.name in ops
        for run in recorded.runs
        for threads, in_place in ((1, False), (3, False), (1, True))
        if not in_place or calls.calls[which].in_place
        for complaint in complaints(calls, target, which, recorded, run, threads, in_place)
    ]
    assert not found, "\n".join(found)


@every_target
@pytest.mark.parametrize("op", EXPECTED)
def test_c_equals_the_interpreter(op: str, target: str) -> None:
    check(library(target), target, {op})


@pytest.mark.slow
@every_target
def test_c_equals_the_interpreter_when_fully_optimised(target: str) -> None:
    check(library(target, "-O3"), target, EXPECTED)

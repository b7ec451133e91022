"""Every op of the loop family: the kernel's bits are the interpreter's, for each dtype, shape and access pattern."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from inferc.backends.c import loop as family
from inferc.backends.c.kernels import Call
from inferc.ir.graph import Graph, IRError, Node, Value, make, make_input
from inferc.ir.interpret import interpret
from inferc.ir.ops import OPS
from inferc.ir.types import (DTYPES, Dim, DType, Type, array_dtype, bf16, boolean, evaluate, f16, f32, f64, i8, i16, i32,
                             i64, symbol, u8, u16, u32, u64)  # fmt: skip

from .c_harness import Calls, every_target, same_bits

T, R = symbol("T", 1, 512), symbol("R", 1, 64)
DIMS = {"T": 21, "R": 5}
FLOATS, HALVES = (f32, f64, f16, bf16), (f16, bf16)
INTS = (i8, i16, i32, i64, u8, u16, u32, u64)
ANY = (f32, bf16, i8, i64, boolean)


@dataclass(frozen=True)
class Case:
    """One node, and arrays for those of its operands that are not to be random."""

    node: Node
    given: dict[int, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        attrs = " ".join(f"{k}={v}" for k, v in self.node.attrs)
        return f"{self.node.op.name}({', '.join(str(v.type) for v in self.node.inputs)}) {attrs}"


def operand(shape: Sequence[Dim], dtype: DType = f32, name: str = "x") -> Value:
    return make_input(name, "arg", Type(tuple(shape), dtype))[0]


def case(op: str, *types: tuple[Sequence[Dim], DType], given: dict[int, Any] | None = None, **attrs: Any) -> Case:
    operands = [operand(shape, dtype, f"x{n}") for n, (shape, dtype) in enumerate(types)]
    return Case(make(OPS[op], *operands, **attrs), given or {})


def random_array(t: Type, rng: np.random.Generator) -> np.ndarray:
    """Ordinary values with every special one among them."""
    shape, dtype = tuple(evaluate(d, DIMS) for d in t.shape), array_dtype(t)
    if t.dtype == bf16:
        return (random_array(Type(t.shape, f32), rng).view(np.uint32) >> 16).astype(np.uint16)
    if t.dtype == boolean:
        return rng.integers(0, 2, shape).astype(bool)
    if t.dtype.is_integer:
        limits = np.iinfo(dtype)
        special = np.array([0, 1, 2, 7, 33, limits.min, limits.max, limits.max - 1, limits.min // 2], dtype)
        x = rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)
    else:
        limits = np.finfo(dtype)
        special = np.array([0.0, -0.0, 0.5, -1.5, 2.5, 127.5, -128.9, 3e9, -3e9, 1e19, limits.max, limits.tiny,
                            limits.smallest_subnormal, np.inf, -np.inf, np.nan], "float64")  # fmt: skip
        with np.errstate(over="ignore"):
            special, x = special.astype(dtype), (rng.normal(size=shape) * 4).astype(dtype)
    chosen = rng.random(shape) < 0.25
    return np.where(chosen, rng.choice(special, shape), x).astype(dtype)


# ---- the cases ------------------------------------------------------------------------------------------------------


def elementwise() -> Iterator[Case]:
    for op in ("add", "sub", "mul", "div", "rem", "max", "min"):
        for dtype in (*FLOATS, *INTS):
            yield case(op, ((T, 6), dtype), ((T, 6), dtype))
    for op in ("neg", "abs", "sign"):
        for dtype in (*FLOATS, *INTS):
            yield case(op, ((3, T), dtype))
    for op in ("floor", "ceil", "sqrt", "rsqrt"):
        yield from (case(op, ((T, 7), dtype)) for dtype in FLOATS)
    for mode in ("even", "away"):
        yield from (case("round", ((T, 7), dtype), mode=mode) for dtype in FLOATS)
    for op in ("exp", "expm1", "log", "log1p", "tanh", "logistic", "erf", "sin", "cos"):
        yield from (case(op, ((T, 17), dtype)) for dtype in (f32, *HALVES))
    yield from (case("pow", ((T, 9), dtype), ((T, 9), dtype)) for dtype in (f32, *HALVES))
    for op in ("and", "or", "xor", "max", "min"):
        yield from (case(op, ((T, 5), dtype), ((T, 5), dtype)) for dtype in (boolean, i8, u32))
    yield from (case("not", ((T, 5), dtype)) for dtype in (boolean, i8, i64, u16))
    for op in ("shift_left", "shift_right_logical", "shift_right_arithmetic"):
        for dtype in INTS:
            amounts = np.resize([0, 1, 3, dtype.block_bytes * 8 - 1, dtype.block_bytes * 8, 100, 2], (21, 4))
            yield case(op, ((T, 4), dtype), ((T, 4), dtype), given={1: amounts.astype(array_dtype(Type((), dtype)))})
            yield case(op, ((T, 4), dtype), ((T, 4), dtype))
    for direction in ("eq", "ne", "lt", "le", "gt", "ge"):
        yield from (case("compare", ((T, 4), d), ((T, 4), d), direction=direction) for d in (f32, bf16, i32, u8, boolean))
    yield from (case("select", ((T, 4), boolean), ((T, 4), d), ((T, 4), d)) for d in ANY)
    yield from (case("clamp", *[((T, 4), d)] * 3) for d in (f32, f16, i32, u8))
    yield from (case("is_finite", ((T, 4), d)) for d in FLOATS)
    for source in (*FLOATS, *INTS, boolean):
        yield from (case("convert", ((T, 4), source), dtype=d) for d in (*FLOATS, *INTS, boolean))
        same_size = (d for d in (*FLOATS, *INTS) if d.block_bytes == source.block_bytes and source != boolean)
        yield from (case("bitcast", ((T, 4), source), dtype=d) for d in same_size)
    yield from (case(op, ((T, 33), f32)) for op in ("silu", "gelu_tanh", "gelu"))
    yield case("softcap", ((T, 33), f32), cap=30.0)
    yield from (case("gated", ((T, 33), f32), ((T, 33), f32), activation=a) for a in ("silu", "gelu_tanh", "gelu"))
    yield from (case("dequantize", ((5, 8), d)) for d in (f16, bf16, f32))
    yield from (case("add", (s, f32), (s, f32)) for s in ((), (1,), (2, 1, 3), (T, 4096)))
    yield case("exp", ((40, 3000), f32))


def moves() -> Iterator[Case]:
    for d in ANY:
        yield case("broadcast", ((T, 1), d), shape=(2, T, 7), dims=(1, 2))
        yield case("broadcast", ((), d), shape=(T, 3), dims=())
        yield case("broadcast", ((5,), d), shape=(5, T), dims=(0,))
        yield case("reshape", ((T, 6), d), shape=(2 * T, 3))
        yield case("transpose", ((T, 3, 4), d), permutation=(1, 2, 0))
        yield case("reverse", ((T, 3, 4), d), axes=(0, 2))
        yield case("slice", ((9, T, 8), d), start=(1, 2, 0), limit=(8, T, 7), stride=(3, 1, 2))
        yield case("pad", ((T, 4), d), ((), d), low=(1, 0), high=(0, 3), interior=(0, 0))
        yield case("pad", ((5, T), d), ((), d), low=(-1, 2), high=(2, -3), interior=(2, 0))
        yield case("concatenate", ((T, 2), d), ((T, 3), d), ((T, 1), d), axis=1)
        yield case("concatenate", ((2, T), d), ((3, T), d), axis=0)
        yield case("take_rows", ((T, 6), d), ((R,), i32), given={1: np.array([3, 0, 20, 3, 1], np.int32)})
        for start in (0, 3, -5, 100):
            at = np.array(start, np.int32)
            yield case("dynamic_slice", ((T, 6), d), ((), i32), ((), i32), sizes=(1, 4), given={1: at, 2: at})
            yield case("dynamic_update_slice", ((T, 6), d), ((2, 3), d), ((), i32), ((), i32), given={2: at, 3: at})
    yield case("concatenate", ((T, 2), f32), axis=1)
    yield case("take_rows", ((T, 1024), f32), ((R,), i32), given={1: np.array([3, 0, 20, 3, 1], np.int32)})
    for d in (f32, bf16, f16, f64, i8, u16, i32, i64):
        yield case("iota", type=Type((T, 3), d), dim=0)
        yield case("iota", type=Type((2, 70), d), dim=1)


def addresses() -> Iterator[Case]:
    rows = np.array([[3], [0], [20], [-2], [21]], np.int32)
    simple = dict(offset_dims=(1,), collapsed_slice_dims=(0,), start_index_map=(0,), slice_sizes=(1, 6))
    pairs = np.array([[[1, 2], [20, 4], [-1, 0]], [[5, 5], [0, 0], [19, 2]]], np.int64)
    window = dict(offset_dims=(0, 3), start_index_map=(0, 1), slice_sizes=(2, 3))
    batched = dict(offset_dims=(2,), operand_batching_dims=(0,), start_indices_batching_dims=(0,), start_index_map=(1,),
                   slice_sizes=(1, 2, 4))  # fmt: skip
    for d in ANY:
        for mode in ("clip", "fill", "promise"):
            yield case("gather", ((T, 6), d), ((R, 1), i32), given={1: rows}, mode=mode, **simple)
            yield case("gather", ((T, 6), d), ((2, 3, 2), i64), given={1: pairs}, mode=mode, **window)
        yield case("gather", ((3, T, 4), d), ((3, 5, 1), u8), mode="fill", collapsed_slice_dims=(), **{
            **batched, "offset_dims": (2, 3)}, given={1: np.arange(15, dtype=np.uint8).reshape(3, 5, 1) * 2})  # fmt: skip
    yield case("gather", ((T, 6), f32), ((R, 1), i32), given={1: rows}, mode="fill", fill_value=7, **simple)
    put = dict(update_window_dims=(1,), inserted_window_dims=(0,), scatter_dims_to_operand_dims=(0,))
    twice = np.array([[3], [0], [3], [-2], [21]], np.int32)
    for d in ANY:
        for mode in ("clip", "fill"):
            kinds = ("set", "max", "min") + (("add", "mul") if d not in (*HALVES, boolean) else ())
            for kind in kinds:
                yield case("scatter", ((T, 6), d), ((R, 1), i32), ((R, 6), d), given={1: twice}, mode=mode, kind=kind, **put)
    yield case("scatter", ((T, 6), f32), ((2, 3, 2), i64), ((2, 2, 3, 3), f32), given={1: pairs}, kind="add",
               update_window_dims=(0, 3), scatter_dims_to_operand_dims=(0, 1))  # fmt: skip


def reductions() -> Iterator[Case]:
    for kind in ("sum", "prod", "max", "min", "and", "or"):
        for d in (f32, f16, bf16, f64, i8, i32, u16, i64, boolean):
            if d.is_float and kind in ("and", "or") or d == boolean and kind in ("sum", "prod"):
                continue
            yield case("reduce", ((T, 50), d), kind=kind, axes=(1,))
            yield case("reduce", ((3, T, 5), d), kind=kind, axes=(0, 2))
    for kind in ("sum", "max"):
        yield case("reduce", ((T, 64), f32), kind=kind, axes=(1,))
        yield case("reduce", ((T, 64), f32), kind=kind, axes=(0,))
        yield case("reduce", ((T, 3, 4), f32), kind=kind, axes=(0, 1, 2))
        yield case("reduce", ((4, T), f32), kind=kind, axes=())
        yield case("reduce", ((T, 4000), f32), kind=kind, axes=(1,))
    for op in ("argmax", "argmin"):
        for d in (f32, bf16, i8, u32, boolean):
            yield case(op, ((T, 9), d), axis=1)
            yield case(op, ((2, T, 3), d), axis=1, dtype=i64)
    for d in (f32, f16, bf16, f64, i8, i32, u64):
        yield case("cumsum", ((T, 9), d), axis=1)
        yield case("cumsum", ((2, T, 3), d), axis=1, reverse=True)
        yield case("top_k", ((T, 40), d), k=5)
        yield case("top_k", ((T,), d), k=1)
        yield case("sort", ((3, T), d), axis=1)
        yield case("sort", ((T, 4), d), ((T, 4), i32), ((T, 4), f32), axis=0, keys=2)
    yield case("top_k", ((T, 9), f32), k=9)


def dots() -> Iterator[Case]:
    for d in (f32, f16, bf16, i32, i8):
        yield case("dot_general", ((T, 9), d), ((5, 9), d), contracting=((1,), (1,)))
        yield case("dot_general", ((2, T, 3, 4), d), ((4, 2, 6, 3), d), contracting=((3, 2), (0, 3)), batch=((0,), (1,)))
        yield case("dot_general", ((7,), d), ((7,), d), contracting=((0,), (0,)))
    yield case("dot_general", ((T, 9), i8), ((5, 9), i8), contracting=((1,), (1,)), dtype=i32)
    yield case("dot_general", ((T, 9), f16), ((5, 9), f16), contracting=((1,), (1,)), dtype=f32)
    yield case("dot_general", ((T, 200), f32), ((200, 70), f32), contracting=((1,), (0,)))


def all_cases() -> list[Case]:
    return [c for group in (elementwise, moves, addresses, reductions, dots) for c in group()]


# ---- running them ---------------------------------------------------------------------------------------------------


def arrays_for(values: Sequence[Value], given: dict[int, Any], seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [np.array(given.get(n, random_array(v.type, rng)), order="C") for n, v in enumerate(values)]


def reference(outputs: tuple[Value, ...], inputs: Sequence[Value], arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    graph = Graph("case", tuple(v.node for v in inputs), outputs)
    return interpret(graph, {v.node.attr("name"): a for v, a in zip(inputs, arrays)}, DIMS)


def as_values(array: np.ndarray, dtype: DType) -> np.ndarray:
    return (array.astype(np.uint32) << 16).view(np.float32) if dtype == bf16 else array


def check(calls: Calls, n: int, case: Case, threads: int = 1) -> str:
    """An empty text, or what is wrong with the results of one case."""
    arrays = arrays_for(case.node.inputs, case.given, n)
    wanted = reference(case.node.values, case.node.inputs, arrays)
    got = [np.full(w.shape, 0x5A, w.dtype) for w in wanted]
    calls.run(n, arrays, got, DIMS, threads)
    for g, w, t in zip(got, wanted, case.node.types):
        g, w = as_values(g, t.dtype), as_values(w, t.dtype)
        if not same_bits(g, w):
            at = np.argwhere(~((g == w) | ((g != g) & (w != w))))[:3]
            return f"{n}: {case.name}: at {at.tolist()} got {[g[tuple(i)] for i in at]}, not {[w[tuple(i)] for i in at]}"
    return ""


def check_all(target: str = "generic", extra: tuple[str, ...] = ()) -> list[str]:
    cases = all_cases()
    calls = Calls([family.LOWERINGS[c.node.op.name](c.node, None) for c in cases], target, extra)
    return [wrong for n, c in enumerate(cases) if (wrong := check(calls, n, c, threads=1 + n % 2))]


@every_target
def test_bits(target: str) -> None:
    assert not (wrong := check_all(target)), "\n".join(wrong[:20])

"""Every op of the loop family: the kernel's bits are the interpreter's, for each dtype, shape and access pattern."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, seed, settings
from hypothesis import strategies as st

from inferc.backends.c import loop as family
from inferc.backends.c.kernels import Call, DimValue, Operand, Result, Run
from inferc.backends.c.loop import loop_of
from inferc.backends.c.loop_emit import emit
from inferc.backends.c.loop_function import Emitted
from inferc.backends.c.loop_model import Loop, collapse, fuse
from inferc.backends.c.lower import LOWERINGS
from inferc.ir.graph import Graph, IRError, Node, Value, make, make_input
from inferc.ir.interpret import interpret
from inferc.ir.ops import OPS
from inferc.ir.types import (
    DTYPES,
    Dim,
    DType,
    Type,
    array_dtype,
    bf16,
    boolean,
    evaluate,
    f16,
    f32,
    f64,
    i8,
    i16,
    i32,
    i64,  # fmt: skip
    symbol,
    u8,
    u16,
    u32,
    u64,
)

from .c_harness import ROOT, Calls, compiler, every_target, every_target_emulated_slowly, same_bits

T, R = symbol("T", 1, 512), symbol("R", 1, 64)
DIMS = {"T": 21, "R": 5, "k": 18, "i": 3}
FLOATS, HALVES = (f32, f64, f16, bf16), (f16, bf16)
INTS = (i8, i16, i32, i64, u8, u16, u32, u64)
ANY = (f32, bf16, i8, i64, boolean)


@dataclass(frozen=True)
class Case:
    """One node, and arrays for those of its operands that are not to be random."""

    node: Node
    fixed: dict[int, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        attrs = " ".join(f"{k}={v}" for k, v in self.node.attrs)
        return f"{self.node.op.name}({', '.join(str(v.type) for v in self.node.inputs)}) {attrs}"


def operand(shape: Sequence[Dim], dtype: DType = f32, name: str = "x") -> Value:
    return make_input(name, "arg", Type(tuple(shape), dtype))[0]


def case(op: str, *types: tuple[Sequence[Dim], DType], fixed: dict[int, Any] | None = None, **attrs: Any) -> Case:
    operands = [operand(shape, dtype, f"x{n}") for n, (shape, dtype) in enumerate(types)]
    return Case(make(OPS[op], *operands, **attrs), fixed or {})


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
            yield case(op, ((T, 4), dtype), ((T, 4), dtype), fixed={1: amounts.astype(array_dtype(Type((), dtype)))})
            yield case(op, ((T, 4), dtype), ((T, 4), dtype))
    for direction in ("eq", "ne", "lt", "le", "gt", "ge"):
        yield from (case("compare", *[((T, 4), d)] * 2, direction=direction) for d in (f32, bf16, i32, u8, boolean))
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
        yield case("take_rows", ((T, 6), d), ((R,), i32), fixed={1: np.array([3, 0, 20, 3, 1], np.int32)})
        for start in (0, 3, -5, 100):
            at = np.array(start, np.int32)
            yield case("dynamic_slice", ((T, 6), d), ((), i32), ((), i32), sizes=(1, 4), fixed={1: at, 2: at})
            yield case("dynamic_update_slice", ((T, 6), d), ((2, 3), d), ((), i32), ((), i32), fixed={2: at, 3: at})
    yield case("concatenate", ((T, 2), f32), axis=1)
    yield case("take_rows", ((T, 1024), f32), ((R,), i32), fixed={1: np.array([3, 0, 20, 3, 1], np.int32)})
    for d in (f32, bf16, f16, f64, i8, u16, i32, i64):
        yield case("iota", type=Type((T, 3), d), dim=0)
        yield case("iota", type=Type((2, 70), d), dim=1)


def addresses() -> Iterator[Case]:
    rows = np.array([[3], [0], [20], [-2], [21]], np.int32)
    simple = dict(offset_dims=(1,), collapsed_slice_dims=(0,), start_index_map=(0,), slice_sizes=(1, 6))
    pairs = np.array([[[1, 2], [20, 4], [-1, 0]], [[5, 5], [0, 0], [19, 2]]], np.int64)
    window = dict(offset_dims=(0, 3), start_index_map=(0, 1), slice_sizes=(2, 3))
    batched = dict(offset_dims=(2, 3), operand_batching_dims=(0,), start_indices_batching_dims=(0,),
                   start_index_map=(1,), slice_sizes=(1, 2, 4))  # fmt: skip
    for d in ANY:
        for mode in ("clip", "fill", "promise"):
            yield case("gather", ((T, 6), d), ((R, 1), i32), fixed={1: rows}, mode=mode, **simple)
            yield case("gather", ((T, 6), d), ((2, 3, 2), i64), fixed={1: pairs}, mode=mode, **window)
        starts = np.arange(15, dtype=np.uint8).reshape(3, 5, 1) * 2
        yield case("gather", ((3, T, 4), d), ((3, 5, 1), u8), fixed={1: starts}, mode="fill", **batched)
    yield case("gather", ((T, 6), f32), ((R, 1), i32), fixed={1: rows}, mode="fill", fill_value=7, **simple)
    put = dict(update_window_dims=(1,), inserted_window_dims=(0,), scatter_dims_to_operand_dims=(0,))
    twice = np.array([[3], [0], [3], [-2], [21]], np.int32)
    for d in ANY:
        for mode in ("clip", "fill"):
            kinds = ("set", "max", "min") + (("add", "mul") if d not in (*HALVES, boolean) else ())
            types = ((T, 6), d), ((R, 1), i32), ((R, 6), d)
            yield from (case("scatter", *types, fixed={1: twice}, mode=mode, kind=kind, **put) for kind in kinds)
    yield case("scatter", ((T, 6), f32), ((2, 3, 2), i64), ((2, 2, 3, 3), f32), fixed={1: pairs}, kind="add",
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
    k, i = symbol("k", 1, 64), symbol("i", 1, 64)  # sizes whose names are those of counters
    yield case("cumsum", ((k, i), f32), axis=0)
    yield case("reduce", ((k, i), f32), kind="sum", axes=(0,))


def dots() -> Iterator[Case]:
    for d in (f32, f16, bf16, i32, i8):
        yield case("dot_general", ((T, 9), d), ((5, 9), d), contracting=((1,), (1,)))
        axes = dict(contracting=((3, 2), (0, 3)), batch=((0,), (1,)))
        yield case("dot_general", ((2, T, 3, 4), d), ((4, 2, 6, 3), d), **axes)
        yield case("dot_general", ((7,), d), ((7,), d), contracting=((0,), (0,)))
    yield case("dot_general", ((T, 9), i8), ((5, 9), i8), contracting=((1,), (1,)), dtype=i32)
    yield case("dot_general", ((T, 9), f16), ((5, 9), f16), contracting=((1,), (1,)), dtype=f32)
    yield case("dot_general", ((T, 200), f32), ((200, 70), f32), contracting=((1,), (0,)))
    for d in (f32, f16, bf16, i32, i8):  # tiles of 64, 32 and 16, along axes of all kinds
        for n in (64, 96, 18, 7 * T):
            yield case("dot_general", ((3, 9), d), ((9, n), d), contracting=((1,), (0,)))
        yield case("dot_general", ((T, 9), d), ((3, 9), d), contracting=((1,), (1,)))
    yield case("dot_general", ((T, 300), f32), ((300,), f32), contracting=((1,), (0,)))


def windows() -> Iterator[Case]:
    none = dict(low=(0, 0), high=(0, 0), base_dilation=(1, 1), dilation=(1, 1))
    first, last = dict(x_dims=(0, 1, 2, 3), w_dims=(0, 1, 2, 3), out_dims=(0, 1, 2, 3)), dict(
        x_dims=(0, 3, 1, 2), w_dims=(3, 2, 0, 1), out_dims=(0, 3, 1, 2))  # fmt: skip
    for d in (f32, f16, bf16, i32):
        yield case("convolution", ((2, 3, T, 7), d), ((5, 3, 3, 2), d), strides=(1, 1), **none, **first)
        yield case("convolution", ((R, 9, 8, 4), d), ((3, 3, 2, 6), d), strides=(2, 1), low=(1, 2), high=(1, 0),
                   base_dilation=(1, 1), dilation=(2, 1), groups=2, **last)  # fmt: skip
    yield case("convolution", ((2, 5, 6, 4), f32), ((3, 3, 1, 8), f32), strides=(1, 1), low=(1, 1), high=(1, 1),
               base_dilation=(2, 3), dilation=(1, 1), groups=4, **last)  # fmt: skip
    yield case("convolution", ((1, 20, 20, 16), f32), ((3, 3, 16, 32), f32), strides=(1, 1), low=(1, 1), high=(1, 1),
               base_dilation=(1, 1), dilation=(1, 1), **last)  # fmt: skip
    yield case("convolution", ((R, 8, T), f32), ((6, 8, 3), f32), strides=(2,), low=(1,), high=(1,),
               base_dilation=(1,), dilation=(1,), x_dims=(0, 1, 2), w_dims=(0, 1, 2), out_dims=(2, 0, 1))  # fmt: skip
    yield case("convolution", ((3, 4), f32), ((6, 4), f32), strides=(), low=(), high=(), base_dilation=(), dilation=(),
               x_dims=(0, 1), w_dims=(0, 1), out_dims=(0, 1))  # fmt: skip
    yield case("convolution", ((2, 4, 9), i8), ((6, 4, 3), i8), strides=(1,), low=(1,), high=(-1,), base_dilation=(1,),
               dilation=(1,), x_dims=(0, 1, 2), w_dims=(0, 1, 2), out_dims=(0, 1, 2), dtype=i32)  # fmt: skip
    for kind in ("sum", "max", "min", "prod"):
        for d in (f32, bf16, i8, u32):
            yield case("reduce_window", ((T, 9), d), kind=kind, window=(3, 2), strides=(2, 1), low=(1, 0), high=(0, 1),
                       base_dilation=(1, 1), dilation=(1, 2))  # fmt: skip
            yield case("reduce_window", ((R, 9), d), kind=kind, window=(1, 4), strides=(1, 3), low=(0, 0), high=(0, 2),
                       base_dilation=(1, 2), dilation=(1, 1))  # fmt: skip
    yield case("reduce_window", ((T, 9), boolean), kind="or", window=(2, 2), strides=(1, 1), **none)
    for op in ("cumprod", "cummax", "cummin"):
        for d in (f32, f16, bf16, f64, i8, i32, u64):
            yield case(op, ((T, 9), d), axis=1)
            yield case(op, ((2, T, 3), d), axis=1, reverse=True)
    yield from (case("reduce", ((T, 9), d), kind="xor", axes=(0,)) for d in (i32, u8, boolean))


def all_cases() -> list[Case]:
    return [c for group in (elementwise, moves, addresses, reductions, dots, windows) for c in group()]


def cases_of(*dtypes: DType) -> list[Case]:
    """The cases of these dtypes alone."""
    return [c for c in all_cases() if {v.dtype for v in (*c.node.inputs, *c.node.values)} <= set(dtypes)]


# ---- running them ---------------------------------------------------------------------------------------------------


def arrays_for(values: Sequence[Value], fixed: dict[int, Any], which: int) -> list[np.ndarray]:
    rng = np.random.default_rng(which)
    return [np.array(fixed.get(n, random_array(v.type, rng)), order="C") for n, v in enumerate(values)]


def reference(outputs: Sequence[Value], inputs: Sequence[Value], arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    graph = Graph("case", tuple(v.node for v in inputs), tuple(outputs))
    return interpret(graph, {v.node.attr("name"): a for v, a in zip(inputs, arrays)}, DIMS)


def as_values(array: np.ndarray, dtype: DType) -> np.ndarray:
    return (array.astype(np.uint32) << 16).view(np.float32) if dtype == bf16 else array


def differences(name: str, got: Sequence[np.ndarray], wanted: Sequence[np.ndarray], types: Sequence[Type]) -> str:
    """An empty text, or where results differ."""
    for g, w, t in zip(got, wanted, types, strict=True):
        g, w = as_values(g, t.dtype), as_values(w, t.dtype)
        if not same_bits(g, w):
            at = [tuple(i) for i in np.argwhere(~((g == w) | ((g != g) & (w != w))))[:3]]
            return f"{name}: at {at} got {[g[i] for i in at]}, not {[w[i] for i in at]}"
    return ""


def check_all(cases: Sequence[Case], target: str, extra: tuple[str, ...] = ()) -> list[str]:
    """What is wrong with the results of the cases, each run once, every other one with two threads."""
    calls = Calls([family.LOWERINGS[c.node.op.name](c.node, None) for c in cases], target, extra)
    wrong = []
    for n, c in enumerate(cases):
        arrays = arrays_for(c.node.inputs, c.fixed, n)
        wanted = reference(c.node.values, c.node.inputs, arrays)
        got = [np.full(w.shape, 0x5A, w.dtype) for w in wanted]
        calls.run(n, arrays, got, DIMS, threads=1 + n % 2)
        wrong.append(differences(c.name, got, wanted, c.node.types))
    return [text for text in wrong if text]


@every_target_emulated_slowly
def test_bits(target: str) -> None:
    assert not (wrong := check_all(all_cases(), target, ("-O1",))), "\n".join(wrong[:20])


@every_target
def test_bits_vectorised(target: str) -> None:
    """At the artifact's own level of optimisation: one dtype of each kind, for the time it takes to compile."""
    assert not (wrong := check_all(cases_of(f32, i32, boolean), target)), "\n".join(wrong[:20])


# ---- composition ----------------------------------------------------------------------------------------------------


@st.composite
def chains(draw: st.DrawFn) -> list[Node]:
    """A few nodes, each reading the one before: views, elementwise ops and at the end perhaps a reduction."""
    shape = draw(st.lists(st.sampled_from([1, 2, 3, 5, 6, T]), max_size=3))
    nodes = [operand(shape).node]

    def grow(op: str, *others: Value, **attrs: Any) -> None:
        nodes.append(make(OPS[op], nodes[-1][0], *others, **attrs))

    for _ in range(draw(st.integers(1, 4))):
        shape = nodes[-1].types[0].shape
        rank = len(shape)
        move = draw(st.sampled_from(["unary", "binary", "transpose", "reverse", "slice", "pad", "broadcast", "reshape",
                                     "concatenate", "gather"]))  # fmt: skip
        axis = draw(st.integers(0, max(rank - 1, 0)))
        if move == "unary":
            grow(draw(st.sampled_from(["neg", "exp", "tanh", "abs"])))
        elif move == "binary":
            other = draw(st.sampled_from([nodes[-1][0], operand(shape, name=f"y{len(nodes)}")]))
            grow(draw(st.sampled_from(["add", "sub", "mul", "max"])), other)
        elif move == "transpose":
            grow("transpose", permutation=draw(st.permutations(range(rank))))
        elif move == "reverse":
            grow("reverse", axes=tuple(d for d in range(rank) if draw(st.booleans())))
        elif move == "slice":
            start = [draw(st.integers(0, 1)) if size not in (1, 2) else 0 for size in shape]
            grow("slice", start=start, limit=shape, stride=[draw(st.integers(1, 2)) for _ in shape])
        elif move == "pad" and rank:
            low, high = ([draw(st.integers(-1 if size not in (1, 2) else 0, 2)) for size in shape] for _ in "lh")
            interior = [draw(st.integers(0, 2)) if isinstance(size, int) else 0 for size in shape]
            grow("pad", operand((), name=f"y{len(nodes)}"), low=low, high=high, interior=interior)
        elif move == "broadcast":
            dims = [d for d in range(rank + 1) if d != axis]
            full = [*shape[:axis], draw(st.integers(1, 3)), *shape[axis:]]
            grow("broadcast", shape=full, dims=dims)
        elif move == "reshape":
            grow("reshape", shape=draw(st.sampled_from([(prod(shape),), (1, *shape), (*shape, 1), tuple(shape)])))
        elif move == "concatenate" and rank:
            grow("concatenate", operand(shape, name=f"y{len(nodes)}"), nodes[-1][0], axis=axis)
        elif move == "gather" and rank:
            dropped = [d for d in range(rank) if d != axis]
            grow("gather", operand((4, 1), i32, f"y{len(nodes)}"), offset_dims=[d + 1 for d in range(rank - 1)],
                 collapsed_slice_dims=(axis,), start_index_map=(axis,), mode=draw(st.sampled_from(["clip", "fill"])),
                 slice_sizes=[shape[d] if d in dropped else 1 for d in range(rank)])  # fmt: skip
    rank = nodes[-1].types[0].rank
    if draw(st.booleans()):
        axes = tuple(d for d in range(rank) if draw(st.booleans()))
        grow("reduce", kind=draw(st.sampled_from(["sum", "max", "min"])), axes=axes)
    return nodes[1:]


def fused(nodes: Sequence[Node]) -> Loop:
    """The last node's loop with as many of those before it put in as compose."""
    whole = loop_of(nodes[-1])
    for node in reversed(nodes[:-1]):
        whole = fuse(loop_of(node), whole) or whole
    return whole


def test_composition() -> None:
    """Hypothesis makes the chains; all of them are one library: a failure shows its chain instead of shrinking it."""
    made: list[list[Node]] = []

    @seed(1)
    @settings(max_examples=150, database=None, deadline=None, phases=[Phase.generate])
    @given(chains())
    def collect(nodes: list[Node]) -> None:
        if nodes:
            made.append(nodes)

    collect()
    loops = [fused(nodes) for nodes in made]
    calls = Calls([call_of(emit(whole, "fused"), whole) for whole in loops], "generic", ("-O1",))
    merged = 0
    for n, (nodes, whole) in enumerate(zip(made, loops)):
        merged += nodes[-2].values[0] not in whole.operands if len(nodes) > 1 else 0
        inputs = [v for v in dict.fromkeys(v for node in nodes for v in node.inputs) if v.node.op.name == "input"]
        fixed = {k: np.array([[1], [0], [-3], [2]], np.int32) for k, v in enumerate(inputs) if v.dtype == i32}
        arrays = arrays_for(inputs, fixed, n)
        every = reference((nodes[-1][0], *whole.operands), inputs, arrays)
        got = np.full(every[0].shape, 0x5A, np.float32)
        calls.run(n, [np.array(a, order="C") for a in every[1:]], [got], DIMS, threads=1 + n % 2)
        text = " ".join(f"{v.op.name}{v.types[0]}" for v in nodes)
        assert not differences(text, [got], every[:1], nodes[-1].types[:1])
    assert merged > 50


def call_of(emitted: Emitted, whole: Loop) -> Call:
    args = [Run()] if emitted.parallel else []
    args += [DimValue(symbol(s.name, s.lo, s.hi)) for s in emitted.dims]
    return Call(emitted.kernel, (*args, *(Operand(whole.operands.index(v)) for v in emitted.operands), Result()))


def chain(function: str) -> str:
    """The C of f(x + y) * (x + y), y spread over rows."""
    x, y = operand((T, 64), name="x"), operand((64,), name="y")
    wide = make(OPS["broadcast"], y, shape=(T, 64), dims=(1,))
    total = make(OPS["add"], x, wide[0])
    result = make(OPS["mul"], make(OPS[function], total[0])[0], total[0])
    nodes = [wide, total, result.inputs[0].node, result]
    return emit(fused(nodes), "scaled", ["x", "y"]).kernel.source


def test_fused_text() -> None:
    """A chain over three nodes is one loop that a person would write so."""
    text = chain("sqrt")
    assert "const float v0 = x[i * 64 + j] + y[j];\n" in text
    assert "out[i * 64 + j] = sqrtf(v0) * v0;\n" in text


def test_slow_functions_are_in_words() -> None:
    """Several of them, for four vectors side by side, then for one that may not be whole."""
    x = operand((T, 64), name="x")
    parts = [make(OPS[name], x) for name in ("logistic", "tanh")]
    result = make(OPS["mul"], *(p[0] for p in parts))
    text = emit(fused([*parts, result]), "gate", ["x"]).kernel.source
    for line in ("for (; i + 64 <= end; i += 64) {", "f32_logistic_each(v0, 4);", "f32_tanh_each(v1, 4);",
                 "f32_store(&out[i] + q * 16, f32_mul(v0[q], v1[q]));", "f32_tanh_each(v1, 1);"):  # fmt: skip
        assert line in " ".join(text.split()), text


def test_collapse() -> None:
    """Contiguous axes become one, those that a transpose tears apart stay."""
    flat = collapse(loop_of(make(OPS["neg"], operand((T, 3, 1, 4)))))
    assert flat.shape == (12 * T,)
    moved = make(OPS["transpose"], operand((T, 3, 4)), permutation=(1, 2, 0))
    assert collapse(loop_of(moved)).shape == (12, T)


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("made, message", [
    (case("dot_general", ((3,), f64), ((3,), f64), contracting=((0,), (0,)), dtype=f32), "no dot product of f64"),
    (case("scatter", ((9, 2), f16), ((3, 1), i32), ((3, 2), f16), kind="add", update_window_dims=(1,),
          inserted_window_dims=(0,), scatter_dims_to_operand_dims=(0,)), "does not scatter f16"),
    (case("dequantize", ((3, 32), DTYPES["q4_0"])), "plain row-major elements only"),
], ids=lambda value: value.node.op.name if isinstance(value, Case) else "")  # fmt: skip
def test_refused(made: Case, message: str) -> None:
    with pytest.raises(IRError, match=message):
        family.LOWERINGS[made.node.op.name](made.node, None)


def test_every_op_has_a_kernel_or_becomes_ops_that_have() -> None:
    """What neither computes in C is stated here: control flow, and what `Module.prepare` does."""
    left = {name for name, op in OPS.items() if name not in LOWERINGS and op.decompose is None}
    assert left == {"input", "constant", "call", "cond", "while", "scan", "pack", "unpack", "concat_rows", "recode",
                    "encode"}


# ---- sanitizers -----------------------------------------------------------------------------------------------------


def check_sanitized() -> None:
    """Run in a process of its own that has the sanitizer's library loaded first."""
    flags = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    assert not (wrong := check_all(cases_of(f32, i16, i32, i64, boolean), "generic", flags)), "\n".join(wrong[:20])


def test_sanitizers() -> None:
    library = subprocess.run([compiler(), "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    if not Path(library).is_absolute():
        pytest.skip("the compiler has no address sanitizer")
    sanitizer = {"LD_PRELOAD": library, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONPATH": str(ROOT / ".dev")}
    code = "from tests.test_loop import check_sanitized; check_sanitized()"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, env={**os.environ, **sanitizer},
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]

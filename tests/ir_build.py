"""Short ways to write graphs and their inputs in tests."""

from __future__ import annotations

import numpy as np

from inferc.ir import quant
from inferc.ir.graph import Graph, Node, Origin, Value, make, make_input
from inferc.ir.ops import OPS
from inferc.ir.types import DTYPES, DType, Sym, Type, parse_dim

SYMBOLS = {s.name: s for s in (Sym("T", 1, 64), Sym("R", 1, 64), Sym("S", 1, 8), Sym("C", 1, 1024))}


def typed(text: str) -> Type:
    """`f32[T, 4]` as a type."""
    name, _, rest = text.partition("[")
    inside, _, layout = rest.partition("]")
    shape = tuple(parse_dim(d, SYMBOLS) for d in inside.split(",") if d.strip())
    return Type(shape, DTYPES[name], layout.removeprefix("@"))


def inputs(**types: str) -> tuple[Value, ...]:
    """Graph inputs by name; `weight f32[4]` and `state f32[4]` give other roles than `arg`."""
    values = []
    for name, text in types.items():
        role, t = text.split(" ", 1) if text.startswith(("weight ", "state ")) else ("arg", text)
        values.append(make_input(name, role, typed(t))[0])
    return tuple(values)


def node(name: str, *operands: Value, at: str = "", **attrs: object) -> Node:
    return make(OPS[name], *operands, origin=Origin(at), **attrs)


def op(name: str, *operands: Value, at: str = "", **attrs: object) -> Value:
    return node(name, *operands, at=at, **attrs)[0]


def graph(*outputs: Value, name: str = "g", names: tuple[str, ...] = (), order: tuple[Value, ...] = ()) -> Graph:
    """A graph of the inputs that the outputs need, in the order met, or in the given order."""
    found = [v.node for v in order] or [n for n in Graph(name, (), outputs).nodes() if n.op.name == "input"]
    return Graph(name, tuple(found), outputs, names)


def sample(t: Type, rng: np.random.Generator, dtype: DType | None = None) -> np.ndarray:
    """Random values of a type without symbols, as the interpreter holds them; ints are small and not negative."""
    dtype = dtype or t.dtype
    if dtype.name == "bf16":
        return (rng.normal(size=t.shape).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    if dtype.name == "bool":
        return rng.random(t.shape) < 0.5
    if not dtype.is_block:
        values = rng.normal(size=t.shape) if dtype.is_float else rng.integers(0, 4, t.shape)
        return values.astype(dtype.numpy)
    values = rng.normal(size=t.shape).astype(np.float32)
    if dtype.name.startswith("a8"):
        return OPS["quantize"].reference((Type(t.shape, DTYPES["f32"]),), values, dtype=dtype)[0]
    return blocks(dtype, t.shape, rng)


def blocks(dtype: DType, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Random bytes of a block weight whose f16 scales are finite and small."""
    count = int(np.prod(shape)) // dtype.block
    raw = rng.integers(0, 256, (count, dtype.block_bytes), np.uint8)
    start = 0
    for part in quant.FORMATS[dtype.name].parts:
        if part.kind in "dm":
            raw[:, start : start + 2] = rng.uniform(0.001, 0.02, count).astype(np.float16)[:, None].view(np.uint8)
        start += part.bytes
    return raw.reshape(*shape[:-1], -1)

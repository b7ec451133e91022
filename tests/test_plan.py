"""The memory plan: no two live buffers share a byte, for any size of the symbols."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferc.backends.c.kernels import THREADS, Call, Kernel
from inferc.backends.c.lower import Line, is_silent
from inferc.backends.c.memory import ALIGNMENT, Buffer, align, assign, plan_graph, storage_bytes
from inferc.backends.c.state import PAGE, session_layout
from inferc.backends.c.text import dim_c, literals
from inferc.ir.graph import Graph, IRError, Node, Value, make, make_input
from inferc.ir.ops import OPS
from inferc.ir.types import Dim, Type, dim_max, dim_min, evaluate, f16, f32, floordiv, i32, mod, symbol

T, R, S, C = symbol("T", 1, 64), symbol("R", 1, 64), symbol("S", 1, 16), symbol("C", 1, 4096)
SIZES: tuple[Dim, ...] = (
    1, 64, 100, 4096, T, 4 * T, 64 * T, 8 * R, 100 * R, T * R, 3 * T + 5, THREADS * 48, floordiv(T, 3) + 1,
)  # fmt: skip
symbol_values = st.fixed_dictionaries({"T": st.integers(1, 64), "R": st.integers(1, 64), "threads": st.integers(1, 8)})


@st.composite
def lives(draw: st.DrawFn) -> list[Buffer]:
    spans = draw(st.lists(st.tuples(st.sampled_from(SIZES), st.integers(0, 12), st.integers(0, 6)), max_size=24))
    return [Buffer(i, size, first, first + length) for i, (size, first, length) in enumerate(spans)]


@given(lives(), symbol_values)
def test_live_buffers_are_apart(buffers: list[Buffer], values: dict[str, int]) -> None:
    plan = assign(buffers)
    total = evaluate(plan.bytes, values)
    at = {b.key: evaluate(plan.offsets[b.key], values) for b in buffers}
    for b in buffers:
        assert at[b.key] % ALIGNMENT == 0
        assert at[b.key] + evaluate(b.bytes, values) <= total
        for other in buffers:
            if b is not other and b.first <= other.last and other.first <= b.last:
                low, high = sorted((b, other), key=lambda x: (at[x.key], x.key))
                apart = at[low.key] + evaluate(low.bytes, values) <= at[high.key]
                assert apart or evaluate(align(high.bytes), values) == 0, (low, high)


@given(lives())
def test_a_plan_wastes_no_more_than_every_buffer_alone(buffers: list[Buffer]) -> None:
    values = {"T": 512, "R": 512, "threads": 512}
    assert evaluate(assign(buffers).bytes, values) <= sum(evaluate(align(b.bytes), values) for b in buffers)


@st.composite
def programs(draw: st.DrawFn) -> tuple[Graph, list[Line]]:
    """A random graph of elementwise ops and views over several sizes, whose lines may permit writing in place."""
    shapes = ((T, 8), (T, 16), (R, 8), (24,))
    inputs = tuple(make_input(f"x{i}", "arg", Type(shape, f32)) for i, shape in enumerate(shapes))
    values: list[Value] = [n[0] for n in inputs]
    for _ in range(draw(st.integers(1, 20))):
        x = draw(st.sampled_from(values))
        kind = draw(st.sampled_from(("add", "neg", "reshape", "top_k")))
        same = [v for v in values if v.type == x.type]
        if kind == "add":
            values.append(make(OPS["add"], x, draw(st.sampled_from(same)))[0])
        elif kind == "neg":
            values.append(make(OPS["neg"], x)[0])
        elif kind == "reshape":
            flat = (x.type.elements,)
            values.append(make(OPS["reshape"], x, shape=flat)[0])
        else:
            values.extend(make(OPS["top_k"], x, k=4).values if isinstance(x.shape[-1], int) else ())
    outputs = tuple(draw(st.lists(st.sampled_from(values), min_size=1, max_size=4)))
    graph = Graph("random", inputs, outputs)
    lines = []
    for node in graph.nodes():
        if not is_silent(node):
            pairs = ((0, 0), (0, 1)) if node.op.name == "add" else ((0, 0),)
            call = Call(Kernel("k", ""), (), draw(st.sampled_from((0, 0, 100, 64 * T))))
            lines.append(Line(node, replace(call, in_place=pairs if draw(st.booleans()) else ())))
    return graph, lines


@given(programs(), symbol_values)
def test_every_value_is_intact_when_it_is_read(program: tuple[Graph, list[Line]], symbols: dict[str, int]) -> None:
    """Runs the lines on an arena whose bytes hold the number of the value that they belong to."""
    graph, lines = program
    plan = plan_graph(graph, lines)
    arena = np.zeros(evaluate(plan.plan.bytes, symbols), np.int64)
    offsets = {key: evaluate(offset, symbols) for key, offset in plan.plan.offsets.items()}
    number = {value: i + 1 for i, value in enumerate(plan.storage)}

    def held(value: Value) -> np.ndarray | None:
        own = plan.storage[value]
        if own not in plan.hosts:
            return None  # an input, or behind a result pointer
        start = offsets[plan.hosts[own]]
        return arena[start : start + evaluate(storage_bytes(value), symbols)]

    for at, line in enumerate(lines):
        if line.scratch != 0:
            start = offsets["scratch", at]
            arena[start : start + evaluate(line.scratch, symbols)] = -at - 1
        for value in line.node.inputs:
            bytes_ = held(value)
            assert bytes_ is None or (bytes_ == number[plan.storage[value]]).all()
        for value in line.node.values:
            if (bytes_ := held(value)) is not None:
                assert line.in_place or not any(
                    np.shares_memory(bytes_, other) for v in line.node.inputs if (other := held(v)) is not None
                )
                bytes_[:] = number[plan.storage[value]]
        for value in line.node.values:
            bytes_ = held(value)
            assert bytes_ is None or (bytes_ == number[plan.storage[value]]).all()
        if line.scratch != 0:
            start = offsets["scratch", at]
            for value in line.node.values:
                bytes_ = held(value)
                assert bytes_ is None or not np.shares_memory(bytes_, arena[start : start + 1])
    for i, value in enumerate(graph.outputs):
        own = plan.storage[value]
        assert plan.results.get(own) == i or i in plan.copies
        assert own not in plan.hosts


@given(st.sampled_from(SIZES), st.sampled_from(SIZES), symbol_values)
def test_dimensions_in_c_have_their_value(a: Dim, b: Dim, values: dict[str, int]) -> None:
    helpers = {"int_max": max, "int_min": min, "size_max": max, "size_min": min}
    for dim in (a + b, a * b, floordiv(a + 63, 64) * 64, mod(a + b, 7), dim_max(a, b), dim_min(a, b) * 3, a * 2 - 1):
        narrow = dim_c(dim).replace("/", "//")
        wide = dim_c(dim, wide=True).replace("(size_t)", "").replace("/", "//")
        assert eval(narrow, {**helpers, **values}) == eval(wide, {**helpers, **values}) == evaluate(dim, values)


def cache_graph(window: int, heads: int = 2, size: int = 8) -> Graph:
    state = make_input("layers.0.k", "state", Type((S, heads, C, size), f16))
    x = make_input("x", "arg", Type((T, heads, size), f32))
    sequence, position = (make_input(n, "arg", Type((T,), i32)) for n in ("sequence", "position"))
    written = make(OPS["cache_write"], state[0], x[0], sequence[0], position[0], window=window)
    return Graph("step", (state, x, sequence, position), (written[0],), ("layers.0.k",))


def test_a_ring_holds_its_window_a_chunk_and_some_slack() -> None:
    layout = session_layout({"step": cache_graph(512)}, context=8192, chunk=256)
    region = layout.regions["layers.0.k"]
    assert region.pages * PAGE >= 512 + 256 - 1
    assert layout.page_bytes == 0 and layout.bytes(1) == layout.bytes(8192)
    assert layout.rewind is not None and layout.rewind >= 256
    assert region.page_bytes == PAGE * 2 * 8 * 2


def test_a_window_near_the_context_grows_by_pages() -> None:
    layout = session_layout({"step": cache_graph(512)}, context=1024, chunk=256)
    assert layout.regions["layers.0.k"].pages == 0 and layout.rewind is None
    assert layout.bytes(257) - layout.bytes(256) == layout.page_bytes == PAGE * 2 * 8 * 2


def test_a_state_that_is_no_cache_is_refused() -> None:
    state = make_input("layers.0.k", "state", Type((S, 8), f16))
    with pytest.raises(IRError, match="a state is \\[sessions, heads, context, head size\\]"):
        session_layout({"step": Graph("step", (state,), (state[0],))}, 64, 64)


def test_nodes_of_the_plan_are_the_graphs() -> None:
    x = make_input("x", "arg", Type((T, 8), f32))
    y: Node = make(OPS["exp"], x[0])
    plan = plan_graph(Graph("g", (x,), (y[0], y[0], x[0])), [Line(y, Call(Kernel("k", ""), ()))])
    assert plan.results == {y[0]: 0} and plan.copies == (1, 2) and plan.plan.bytes == 0


@given(st.lists(st.floats(width=32) | st.sampled_from([-0.0, 1e-45, 3.4028235e38, 1e7, 0.1]), min_size=1))
def test_float_literals_give_the_bits_back(values: list[float]) -> None:
    array = np.array(values, np.float32)
    special = {"NAN": np.nan, "INFINITY": np.inf, "-INFINITY": -np.inf, "-NAN": np.nan}
    read = [special[t] if t in special else np.float32(t.removesuffix("f")) for t in literals(array.tobytes(), f32)]
    assert np.array_equal(np.array(read, np.float32), array, equal_nan=True)
    assert all(np.signbit(r) == np.signbit(a) for r, a in zip(read, array) if not np.isnan(a))

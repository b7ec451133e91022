"""The interpreter binds symbols, follows calls and control ops, frees what is used up, and streams weights."""

import numpy as np
import pytest

from inferc.ir.graph import Graph, IRError, Module, Weight
from inferc.ir.interpret import interpret, prepare_weights, to_array
from inferc.ir.ops.decompose import constant
from inferc.ir.types import DTYPES, Type, boolean, f32, i32, symbol

from .ir_build import SYMBOLS, blocks, graph, inputs, node, op, typed

T = symbol("T", SYMBOLS["T"].lo, SYMBOLS["T"].hi)
ONES = np.ones(3, np.float32)


def test_outputs_are_a_tuple_or_a_dict():
    (x,) = inputs(x="f32[T]")
    y = op("neg", x)
    assert interpret(graph(y, x), {"x": ONES})[0].tolist() == [-1, -1, -1]
    assert interpret(graph(y, names=("y",)), {"x": [1, 2]})["y"].tolist() == [-1, -2]


def test_symbols_come_from_shapes_or_from_dims():
    (x,) = inputs(x="f32[2*T]")
    g = graph(op("reshape", x, shape=(2, T)))
    assert interpret(g, {"x": np.ones(6, np.float32)}, {"T": 3})[0].shape == (2, 3)
    assert interpret(g, {"x": np.ones(6, np.float32)})[0].shape == (2, 3)  # a multiple tells the symbol
    with pytest.raises(IRError, match=r"float32\[7\] is no f32\[6\]"):
        interpret(g, {"x": np.ones(7, np.float32)})
    (x,) = inputs(x="f32[T*T]")
    with pytest.raises(IRError, match="g: input x: dimension T\\*T needs a value for T"):
        interpret(graph(op("neg", x)), {"x": np.ones(9, np.float32)})
    assert interpret(graph(op("iota", type=Type((T,), i32))), {}, {"T": 4})[0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("given, message", [
    ({}, "g needs the inputs x"),
    ({"x": ONES, "y": ONES, "z": ONES}, "g has no inputs z"),
    ({"x": ONES, "y": np.ones(4, np.float32)}, r"input y: float32\[4\] is no f32\[3\]"),
    ({"x": ONES, "y": np.ones(3)}, r"input y: float64\[3\] is no f32\[3\]"),
    ({"x": np.ones(65, np.float32), "y": np.ones(65, np.float32)}, "T is 65, outside 1..64"),
])  # fmt: skip
def test_wrong_inputs_are_named(given, message):
    x, y = inputs(x="f32[T]", y="f32[T]")
    with pytest.raises(IRError, match=message):
        interpret(graph(op("add", x, y)), given)


def test_errors_of_references_say_where():
    table, ids = inputs(table="f32[3, 2]", ids="i32[T]")
    g = graph(op("embedding", table, ids, at="model.embed"))
    with pytest.raises(IRError, match="embedding at model.embed: an id is outside 0..2"):
        interpret(g, {"table": np.zeros((3, 2), np.float32), "ids": [3]})


def test_the_observer_sees_every_node_and_those_of_calls():
    (a,) = inputs(a="f32[T]")
    twice = graph(op("add", a, a), name="twice")
    (x,) = inputs(x="f32[T]")
    once = op("call", x, graph=twice)
    seen = []
    note = lambda node, operands, results: seen.append((node.op.name, results[0][0]))
    interpret(graph(op("call", once, graph=twice)), {"x": ONES}, observer=note)
    assert seen == [("add", 2), ("call", 2), ("add", 4), ("call", 4)]


def test_control_ops():
    a, b = inputs(a="f32[2]", b="f32[2]")
    branches = tuple(graph(op(name, a, b), name=name) for name in ("sub", "add"))
    p, x, y = inputs(p="bool[]", x="f32[2]", y="f32[2]")
    chosen = graph(op("cond", p, x, y, branches=branches))
    for flag, expected in ((True, [4, 6]), (False, [-2, -2])):
        assert interpret(chosen, {"p": flag, "x": [1, 2], "y": [3, 4]})[0].tolist() == expected

    limit, i, total = inputs(limit="i32[]", i="i32[]", total="i32[]")
    below = graph(op("compare", i, limit, direction="lt"), order=(limit, i, total))
    step = graph(op("add", i, constant(1, (), i32)), op("add", total, i), order=(i, total))
    loop = node("while", limit, i, total, cond=below, body=step, cond_consts=1)
    assert interpret(graph(*loop.values), {"limit": 5, "i": 0, "total": 0}) == (5, 10)
    assert loop.types == (Type((), i32),) * 2 and below.outputs[0].dtype == boolean


@pytest.mark.parametrize("reverse, sums", [(False, [1, 3, 6]), (True, [6, 5, 3])])
def test_scan(reverse, sums):
    scale, carry, row = inputs(scale="f32[]", carry="f32[]", row="f32[]")
    total = op("add", carry, row)
    body = graph(total, op("mul", total, scale), order=(scale, carry, row))
    s, c, xs = inputs(s="f32[]", c="f32[]", xs="f32[T]")
    scan = node("scan", s, c, xs, body=body, length=T, consts=1, carry=1, reverse=reverse)
    last, rows = interpret(graph(*scan.values, order=(s, c, xs)), {"s": 10.0, "c": 0.0, "xs": [1.0, 2.0, 3.0]})
    assert last == 6 and rows.tolist() == [10 * x for x in sums]


def test_a_scan_of_nothing_gives_no_rows():
    c, row = inputs(c="f32[]", row="f32[2]")
    body = graph(c, op("neg", row), order=(c, row))
    start, xs = inputs(start="f32[]", xs="f32[0, 2]")
    scan = node("scan", start, xs, body=body, length=0, carry=1)
    _, rows = interpret(graph(*scan.values, order=(start, xs)), {"start": 1.0, "xs": np.zeros((0, 2), np.float32)})
    assert rows.shape == (0, 2)


def test_a_result_that_is_not_as_inferred_is_an_error():
    (x,) = inputs(x="f32[2]")
    y = op("neg", x)
    object.__setattr__(y.node, "types", (Type((2,), i32),))
    with pytest.raises(IRError, match=r"neg: float32\[2\] is no i32\[2\]"):
        interpret(graph(y), {"x": [1, 2]})


def test_weights_load_one_at_a_time_and_are_prepared():
    q4_0, rng = DTYPES["q4_0"], np.random.default_rng(0)
    loads: list[str] = []
    raw = {name: blocks(q4_0, (4, 32), rng) for name in "abc"}

    def weight(name: str) -> Weight:
        return Weight(name, Type((4, 32), q4_0), lambda: loads.append(name) or raw[name].ravel())

    x, ab, c = inputs(x="f32[T, 32]", ab="weight q4_0[8, 32]", c="weight q4_0[4, 32]")
    step = Graph("step", (x.node, ab.node, c.node),
                 (op("linear", x, ab), op("linear", x, c)), ("y", "z"))  # fmt: skip
    source = inputs(a="weight q4_0[4, 32]", b="weight q4_0[4, 32]", c="weight q4_0[4, 32]")
    prepare = graph(op("concat_rows", *source[:2]), source[2], names=("ab", "c"), order=source)
    module = Module({"step": step}, {n: weight(n) for n in "abc"}, prepare)

    stream = prepare_weights(module)
    assert not loads
    name, t, array = next(stream)
    assert (name, t, loads) == ("ab", ab.type, ["a", "b"]) and (array == np.concatenate([raw["a"], raw["b"]])).all()
    assert next(stream)[0] == "c" and loads == ["a", "b", "c"]

    x_data = np.ones((2, 32), np.float32)
    out = interpret(module, {"x": x_data})
    plain = interpret(step, {"x": x_data, "ab": array, "c": raw["c"]})
    assert (out["y"] == plain["y"]).all() and (out["z"] == plain["z"]).all()


def test_arrays_from_bytes():
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert (to_array(typed("f32[2, 3]"), values.view(np.uint8).ravel()) == values).all()
    assert to_array(typed("bf16[3]"), np.zeros(6, np.uint8)).dtype == np.uint16
    assert to_array(typed("u8[4]"), np.zeros(4, np.uint8)).shape == (4,)
    assert to_array(Type((), f32), 2).dtype == np.float32

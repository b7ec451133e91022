"""Text prints to be read, and what is parsed prints the same and means the same."""

import numpy as np
import pytest

from inferc.ir.graph import Graph, IRError, Module, Node, Origin, Weight, make
from inferc.ir.interpret import interpret
from inferc.ir.ops import OPS
from inferc.ir.text import parse_graph, parse_module, print_graph, print_module
from inferc.ir.types import DTYPES, Type, bf16, f32, symbol
from inferc.ir.verify import verify

from .ir_build import graph, inputs, node, op, typed

EXAMPLE = """\
symbol T in 1..64

weight blk.0.ffn_gate.weight: q4_0[96, 64]

graph mlp {
  input x: arg f32[T, 64]
  input blk.0.ffn_gate.weight: weight q4_0[96, 64]
  gate = linear(x, blk.0.ffn_gate.weight): f32[T, 96]  # mlp.gate
  act = silu(gate): f32[T, 96]  # mlp.act <- mlp.logistic, mlp.mul
  return y = act
}

entry step = mlp
"""


def example() -> Module:
    x, w = inputs(x="f32[T, 64]", **{"blk.0.ffn_gate.weight": "weight q4_0[96, 64]"})
    gate = op("linear", x, w, at="mlp.gate")
    act = make(OPS["silu"], gate, origin=Origin("mlp.act", frozenset({"mlp.mul", "mlp.logistic"})))[0]
    weight = Weight("blk.0.ffn_gate.weight", w.type, lambda: np.zeros(96 * 36, np.uint8))
    return Module({"step": graph(act, name="mlp", names=("y",), order=(x, w))}, {weight.name: weight})


def test_a_module_reads_as_documented():
    module = example()
    assert print_module(module) == EXAMPLE
    back = parse_module(EXAMPLE, module.weights)
    assert print_module(back) == EXAMPLE
    assert back.entries["step"].outputs[0].node.origin.sources == {"mlp.mul", "mlp.logistic"}
    data = {"x": np.ones((2, 64), np.float32)}
    assert (interpret(back, data)["y"] == interpret(module, data)["y"]).all()
    with pytest.raises(IRError, match="names the weight blk.0.ffn_gate.weight but its data was not given"):
        interpret(parse_module(EXAMPLE), data)


def everything() -> Graph:
    """A graph with attributes of every kind, several results, odd names, calls and shared names."""
    x, odd = inputs(x="f32[2*T, 8]", **{'an "odd" name\n': "f32[8]"})
    (a,) = inputs(a="f32[2*T, 8]")
    inner = graph(op("softcap", a, cap=30.0, at="m.inner"), name="layer")
    (b,) = inputs(a="f32[2*T, 8]")
    same_name = graph(op("call", b, graph=inner), name="layer")
    y = op("call", op("call", x, graph=inner, at="layers.0"), graph=same_name, at="layers.1")
    values, indices = node("top_k", y, k=3, at="2 strange/path").values
    n = symbol("T", 1, 64)
    count = op("iota", type=Type((2 * n, 3), DTYPES["i32"]), dim=0, at="count")
    padded = op("pad", values, constant(np.nan), low=(0, -1), high=(n - 1, 2), interior=(0, 0))
    chosen = op("cond", op("constant", type=Type((), DTYPES["bool"]), value=b"\1"), x,
                branches=(graph(op("neg", a)), graph(op("abs", a))))  # fmt: skip
    table = op("constant", type=typed("f32[3]"), value=np.array([0.1, -1e-30, np.inf], np.float32).tobytes())
    halves = op("constant", type=Type((2,), bf16), value=b"\x80\x3f\x00\x40")
    scaled = op("rms_norm", op("add", x, chosen), odd, eps=1e-6, dtype=bf16)
    filled = op("gather", x, op("slice", count, start=(0, 0), limit=(2 * n, 1), stride=(1, 1)), offset_dims=(1,),
                start_index_map=(0,), collapsed_slice_dims=(0,), slice_sizes=(1, 8),
                fill_value=float("-inf"))  # fmt: skip
    odd_nan = op("constant", type=Type((), f32), value=b"\1\0\xc0\x7f")
    return graph(indices, count, padded, table, halves, scaled, filled, odd_nan, order=(x, odd), name="every thing")


def constant(value: float):
    return op("constant", type=Type((), f32), value=np.float32(value).tobytes())


def test_graphs_of_all_kinds_round_trip():
    g = everything()
    verify(g)
    text = print_graph(g)
    back = parse_graph(text)
    verify(back)
    assert print_graph(back) == text
    rng = np.random.default_rng(0)
    dims = {"T": 3}
    data = {n.attr("name"): rng.normal(size=s).astype(np.float32) for n, s in zip(g.inputs, ((6, 8), (8,)))}
    for one, other in zip(interpret(g, data, dims), interpret(back, data, dims), strict=True):
        assert one.dtype == other.dtype and one.tobytes() == other.tobytes()
    assert _structure(back) == _structure(g)


def _structure(g: Graph) -> list[object]:
    number: dict[Node, int] = {}
    return [(n.op.name, [(number[v.node], v.index) for v in n.inputs], n.types, n.origin) for n in g.nodes()
            if number.setdefault(n, len(number)) >= 0]  # fmt: skip


def test_names_come_from_origins_and_do_not_clash():
    (x,) = inputs(exp="f32[2]")
    y = op("exp", x)
    z = op("exp", op("add", y, y, at="blk.3.attn-q"), at="blk.3.attn-q")
    text = print_graph(graph(z, op("neg", z, at="blk.0")))
    left = [line.split(" = ")[0].strip() for line in text.splitlines() if " = " in line]
    assert left == ["exp_2", "attn_q", "attn_q_2", "_0"]
    x, w = inputs(x="f32[T, 4]", w="f32[3, 4]")
    group = node("linear_group", x, w, w, biases=(False, False), at="attention.q+k")
    text = print_graph(graph(*group.values, op("neg", group[0], at="attention")))
    assert "  q, k = linear_group(x, w, w" in text and "  neg = neg(q)" in text  # attention is a scope


@pytest.mark.parametrize("old, new, message", [
    ("silu(gate)", "silu(gat)", "line 9: there is no value gat above"),
    ("silu(gate)", "sillu(gate)", "line 9: there is no op sillu"),
    ("silu(gate): f32[T, 96]", "silu(gate): f32[T, 95]", "line 9: silu gives f32[T, 96]"),
    ("silu(gate)", "softcap(gate; cup=1.0)", "line 9: softcap at mlp.act: unknown attribute cup"),
    ("f32[T, 64]", "f32[U, 64]", "line 6: cannot read the dimension 'U'"),
    ("f32[T, 64]", "f31[T, 64]", "line 6: there is no dtype f31"),
    ("  return y = act\n", "", "line 10: the graph has no return"),
    ("}\n", "", "line 12: expected '}' after return"),
    ("entry step = mlp", "entry step = other", "line 13: there is no graph other above"),
    ("entry step = mlp\n", "", "the text has no entry"),
    ("linear(x", "linear[x", "line 8: expected '('"),
    ("symbol T in 1..64", "symbol T in 1..64 64", "line 1: "),
    ("weight q4_0[96, 64]\n  gate", "weight q4_0[96, 63]\n  gate", "line 7: q4_0 needs a last dimension"),
    ("act = silu", "act = ~silu", "line 9: cannot read '~silu"),
])  # fmt: skip
def test_bad_text_is_refused_with_its_line(old, new, message):
    assert old in EXAMPLE
    with pytest.raises(IRError) as error:
        parse_module(EXAMPLE.replace(old, new, 1))
    assert message in str(error.value)

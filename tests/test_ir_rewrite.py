"""The rewriter: what patterns match, that rules reach a fixed point, and that what they must not do is refused."""

import numpy as np
import pytest

from inferc.ir.graph import IRError, Origin
from inferc.ir.interpret import interpret
from inferc.ir.ops.decompose import constant
from inferc.ir.rewrite import P, Rule, count_uses, cse, expand, match, rewrite, substitute
from inferc.ir.types import Type, f32
from inferc.ir.verify import verify

from .ir_build import graph, inputs, node, op, typed

SILU = Rule("silu", P("mul", "x", P("logistic", "x", single_use=True)), lambda m: m.make("silu", m["x"]), "x * s(x)")
NEG_NEG = Rule("neg-neg", P("neg", P("neg", "x")), lambda m: m["x"], "--x = x")


def names(g) -> list[str]:
    return [n.op.name for n in g.nodes() if n.op.name != "input"]


def found(pattern, value):
    return next(match(pattern, value, count_uses(graph(value))), None)


def test_a_rule_keeps_the_value_and_the_place():
    (x,) = inputs(x="f32[T, 8]")
    y = op("exp", x, at="a.pre")
    before = graph(op("mul", op("logistic", y, at="a.act.sigmoid"), y, at="a.act.mul"))
    after = rewrite(before, [SILU])
    verify(after)
    assert names(after) == ["exp", "silu"]
    assert after.outputs[0].node.origin == Origin("a.act.sigmoid+mul", frozenset({"a.act.mul", "a.act.sigmoid"}))
    data = {"x": np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)}
    np.testing.assert_allclose(interpret(before, data)[0], interpret(after, data)[0], rtol=1e-6)


def test_patterns():
    x, y, z = inputs(x="f32[4]", y="f32[4]", z="f32[4]")
    product = op("mul", x, op("add", y, z))
    assert found(P("mul", P("add", "b", "c"), "a"), product).values == {"b": y, "c": z, "a": x}  # commutes
    assert found(P("sub", P("neg", "a"), "b"), op("sub", x, op("neg", y))) is None  # does not
    assert found(P(("add", "mul"), "*all"), product)["all"] == product.node.inputs
    assert found(P("mul", "a", P("add", "a", "b")), product) is None
    assert found(P("mul", "a", P("add", "a", "b")), op("mul", x, op("add", z, x)))["b"] == z  # the order that fits
    named = found(P("mul", P("add", "a", "b", name="sum"), "a"), op("mul", y, op("add", x, y)))
    assert named["sum"].node.op.name == "add" and named["a"] == y
    assert found(P("neg", "x"), product) is None and found(P("mul", "x"), product) is None
    capped = op("softcap", x, cap=30.0)
    assert found(P("softcap", "x", cap=30), capped) and not found(P("softcap", "x", cap=3.0), capped)
    with pytest.raises(IRError, match="unknown op gelou"):
        P("gelou", "x")


@pytest.mark.parametrize(
    "value, pattern, fits", [(1.0, 1, True), (0.1, 0.1, True), (1.0, 1.0000002, False), (0.0, 1, False)]
)
def test_numbers_match_constants_however_spread(value, pattern, fits):
    x, _ = inputs(x="f32[4, 2]", y="f32[4, 2]")
    for spread in (constant(value, (4, 2)), op("reshape", constant(value, (8,)), shape=(4, 2))):
        assert bool(found(P("mul", "x", pattern), op("mul", x, spread))) is fits
    mixed = op("constant", type=typed("f32[2]"), value=np.array([1, 2], np.float32).tobytes())
    assert found(P("neg", 1.0), op("neg", mixed)) is None


def test_single_use_counts_outputs_and_all_results():
    (x,) = inputs(x="f32[4]")
    s = op("logistic", x)
    product = op("mul", x, s)
    assert names(rewrite(graph(product), [SILU])) == ["silu"]
    assert "logistic" in names(rewrite(graph(product, s), [SILU]))
    assert "logistic" in names(rewrite(graph(product, op("neg", s)), [SILU]))
    top = node("top_k", x, k=2)
    first = Rule("first", P("neg", P("top_k", "x", single_use=True)), lambda m: m["x"])
    assert names(rewrite(graph(op("neg", top[0]), top[1]), [first])) == ["top_k", "neg"]


def test_made_nodes_are_visited_and_uses_are_counted_again():
    (x,) = inputs(x="f32[4]")
    six = x
    for _ in range(6):
        six = op("neg", six)
    assert names(rewrite(graph(six), [NEG_NEG])) == []
    s = op("logistic", x)
    again = op("neg", op("neg", s))  # a second use of s, until the rules remove it
    g = graph(op("mul", x, s), op("mul", op("sub", again, again), constant(0, (4,))))
    zero = Rule("zero", P("mul", "x", 0.0), lambda m: constant(0, m["x"].shape), "x * 0 = 0 for finite x")
    assert names(rewrite(g, [SILU])).count("silu") == 0
    assert names(rewrite(g, [SILU, zero])) == ["silu", "constant", "broadcast"]


def test_the_first_rule_that_does_not_decline_wins():
    (x,) = inputs(x="f32[4]")
    made = []
    decline = Rule("decline", P("neg", "x"), lambda m: made.append("declined"))
    to_abs = Rule("abs", P("neg", "x"), lambda m: m.make("abs", m["x"]))
    to_exp = Rule("exp", P("neg", "x"), lambda m: m.make("exp", m["x"]))
    assert names(rewrite(graph(op("neg", x)), [decline, to_abs, to_exp])) == ["abs"] and made == ["declined"]


def test_a_commuting_match_may_be_declined_for_the_other_order():
    x, y = inputs(x="f32[4]", y="f32[4]")
    second = Rule("second", P("add", "a", "b"), lambda m: m.make("neg", m["a"]) if m["a"] == y else None)
    after = rewrite(graph(op("add", x, y)), [second])
    assert names(after) == ["neg"] and after.outputs[0].node.inputs == (y,)


def test_rules_replace_several_results():
    x, w, v = inputs(x="f32[T, 4]", w="f32[3, 4]", v="f32[2, 4]")
    group = node("linear_group", x, w, v, biases=(False, False))
    apart = Rule("apart", P("linear_group", "x", "*weights"),
                 lambda m: tuple(m.make("linear", m["x"], w) for w in m["weights"]))  # fmt: skip
    before = graph(op("exp", group[1]), group[0], order=(x, w, v))
    after = rewrite(before, [apart])
    assert names(after) == ["linear", "exp", "linear"]
    rng = np.random.default_rng(1)
    data = {name: rng.normal(size=(rows, 4)).astype(np.float32) for name, rows in zip("xwv", (2, 3, 2))}
    for a, b in zip(interpret(before, data), interpret(after, data), strict=True):
        assert (a == b).all()


def test_what_rules_may_not_do():
    x, y = inputs(x="f32[4]", y="f32[4]")
    g = graph(op("add", op("neg", x, at="a.b"), y))
    with pytest.raises(IRError, match=r"rule widen changes the type of neg at a.b: f32\[4\] became f64\[4\]"):
        rewrite(g, [Rule("widen", P("neg", "x"), lambda m: m.make("convert", m["x"], dtype=typed("f64[1]").dtype))])
    swap = [Rule(f"to-{new}", P(old, "x"), lambda m, new=new: m.make(new, m["x"]))
            for old, new in (("neg", "abs"), ("abs", "neg"))]  # fmt: skip
    with pytest.raises(IRError, match="the rules to-(abs|neg) still apply"):
        rewrite(g, swap)
    with pytest.raises(IRError, match="the rules grow still apply"):
        rewrite(g, [Rule("grow", P("neg", "x"), lambda m: m.make("neg", m.make("abs", m["x"])))])
    with pytest.raises(IRError, match="is replaced by what needs it"):
        rewrite(g, [Rule("keep", P("neg", "x", name="n"), lambda m: m.make("abs", m["n"]))])
    with pytest.raises(IRError, match="is replaced by itself"):
        rewrite(g, [Rule("same", P("neg", "x", name="n"), lambda m: m["n"])])


def test_substitute_follows_replacements():
    (x,) = inputs(x="f32[4]")
    a, b, c = (op(name, x) for name in ("neg", "abs", "exp"))
    g = substitute(graph(op("add", a, b)), {a.node: (b,), b.node: (c,)})
    assert names(g) == ["exp", "add"] and g.outputs[0].node.inputs == (c, c)


def test_cse_merges_what_is_equal_and_nothing_else():
    (x,) = inputs(x="f32[T, 4]")
    top = [node("top_k", x, k=k) for k in (2, 2, 3)]
    g = graph(*(op("neg", t[0]) for t in top), top[1][1])
    assert sorted(names(cse(g))) == ["neg", "neg", "top_k", "top_k"]
    zeros = [op("constant", type=Type((), f32), value=np.float32(v).tobytes()) for v in (0.0, -0.0)]
    assert names(cse(graph(*zeros))) == ["constant", "constant"]


def test_a_deep_graph_needs_no_deep_stack():
    (x,) = inputs(x="f32[4]")
    y = x
    for _ in range(3000):
        y = op("exp", y)
    g = graph(op("neg", op("neg", y)))
    assert len(names(cse(rewrite(g, [NEG_NEG])))) == 3000
    assert expand(g, lambda n: True) is g

"""One form for what can be written in several: views and identities go, common ops of models are recognised.

`EXACT` keeps every bit. `RECOGNISED` replaces chains by the named op that means the same in exact arithmetic; a named
op has its own order of rounding, so the result may move by a unit or two in the last place.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ...ir import types as t
from ...ir.graph import Graph, Module, Value, make_input, map_graphs
from ...ir.ops import OPS
from ...ir.rewrite import Made, Match, P, Rule, cse, rewrite, splat
from ...ir.target import Target
from .calls import Resigned, resign


def run(module: Module, target: Target) -> Module:
    """Rules and common subexpressions in every graph, then inputs of called graphs that nothing reads go."""
    return drop_dead_inputs(map_graphs(module, lambda graph: cse(rewrite(cse(graph), RULES))))


def drop_dead_inputs(module: Module) -> Module:
    """Called graphs lose the inputs that they do not read; entries keep theirs, weights excepted."""

    def drop(graph: Graph, is_entry: bool) -> Resigned:
        read = {v.node for n in graph.nodes() for v in n.inputs} | {v.node for v in graph.outputs}
        kept = tuple(n for n in graph.inputs if n in read or is_entry and n.attr("role") != "weight")
        return Resigned(replace(graph, inputs=kept), tuple(n[0] for n in kept))

    return module.with_entries({name: r.graph for name, r in resign(module, drop).items()})


# --- Conditions and replacements that are more than a pattern says ---


def _if_same_type(m: Match) -> Made:
    return m["x"] if m["x"].type == m["y"].type else None


def _compose_broadcasts(m: Match) -> Made:
    inner, outer = m["inner"].node.attr("dims"), m["outer"].node.attr("dims")
    return m.make("broadcast", m["x"], shape=m["outer"].shape, dims=tuple(outer[i] for i in inner))


def _compose_transposes(m: Match) -> Made:
    inner, outer = m["inner"].node.attr("permutation"), m["outer"].node.attr("permutation")
    permutation = tuple(inner[i] for i in outer)
    return m["x"] if permutation == tuple(range(len(inner))) else m.make("transpose", m["x"], permutation=permutation)


def _if_negative_zero(m: Match) -> Made:
    """-0 is the identity of addition; -0 + 0 is 0. Integers have one zero."""
    number = splat(m["zero"])
    return m["x"] if not m["x"].dtype.is_float or number is not None and np.signbit(number) else None


def _if_positive_zero(m: Match) -> Made:
    number = splat(m["zero"])
    return m["x"] if not m["x"].dtype.is_float or number is not None and not np.signbit(number) else None


def _chosen(m: Match) -> Made:
    always = splat(m["p"])
    return None if always is None else m["x"] if always else m["y"]


def _with_bias(m: Match) -> Made:
    """A bias is a vector with a value per output; other addends that broadcast, such as one number, are none."""
    return m.make("linear", m["x"], m["w"], m["bias"]) if m["bias"].shape == m["w"].shape[:1] else None


# What each dtype can be widened to with every value kept.
WIDER = {t.f16: (t.f32, t.f64), t.bf16: (t.f32, t.f64), t.f32: (t.f64,), t.i8: (t.i16, t.i32, t.i64),
         t.i16: (t.i32, t.i64), t.i32: (t.i64,), t.u8: (t.u16, t.u32, t.u64), t.u16: (t.u32, t.u64),
         t.u32: (t.u64,)}  # fmt: skip


def _if_widened(m: Match) -> Made:
    x = m["x"]
    return x if m["y"].dtype == x.dtype and m["wide"].dtype in WIDER.get(x.dtype, ()) else None


EXACT = (
    Rule("no change", P(("reshape", "broadcast", "convert", "bitcast", "slice", "concatenate"), "x", name="y"),
         _if_same_type, "of these ops the one that keeps the type keeps the value"),
    Rule("reshape twice", P("reshape", P("reshape", "x"), name="y"),
         lambda m: m.make("reshape", m["x"], shape=m["y"].shape), "only the last shape counts"),
    Rule("broadcast twice", P("broadcast", P("broadcast", "x", name="inner"), name="outer"),
         _compose_broadcasts, "axis i lands on outer[inner[i]]"),
    Rule("transpose twice", P("transpose", P("transpose", "x", name="inner"), name="outer"),
         _compose_transposes, "axis i comes from inner[outer[i]]"),
    Rule("identity transpose", P("transpose", "x", name="y"),
         lambda m: m["x"] if list(m["y"].node.attr("permutation")) == list(range(m["x"].type.rank)) else None,
         "0, 1, 2, … moves no axis"),
    Rule("reverse twice", P("reverse", P("reverse", "x", name="inner"), name="outer"),
         lambda m: m["x"] if set(m["inner"].node.attr("axes")) == set(m["outer"].node.attr("axes")) else None,
         "reverse is its own inverse"),
    Rule("narrow what was widened", P("convert", P("convert", "x", name="wide"), name="y"), _if_widened,
         "a wider dtype holds every value of the narrower"),
    Rule("times one", P("mul", "x", 1), lambda m: m["x"], "x * 1 = x"),
    Rule("over one", P("div", "x", 1), lambda m: m["x"], "x / 1 = x"),
    Rule("plus zero", P("add", "x", P(("broadcast", "constant"), "*_", name="zero")),
         lambda m: _if_negative_zero(m) if splat(m["zero"]) == 0 else None, "x + -0 = x, and x + 0 = x for integers"),
    Rule("minus zero", P("sub", "x", P(("broadcast", "constant"), "*_", name="zero")),
         lambda m: _if_positive_zero(m) if splat(m["zero"]) == 0 else None, "x - 0 = x; -0 - -0 = 0"),
    Rule("minus minus", P("neg", P("neg", "x")), lambda m: m["x"], "-(-x) = x"),
    Rule("not not", P("not", P("not", "x")), lambda m: m["x"], "~~x = x"),
    Rule("absolute of a sign", P("abs", P(("neg", "abs"), "x")), lambda m: m.make("abs", m["x"]), "|-x| = ||x|| = |x|"),
    Rule("either way", P("select", "p", "x", "x"), lambda m: m["x"], "p ? x : x = x"),
    Rule("bias", P("add", P("linear", "x", "w", single_use=True), P("broadcast", "bias", dims=(1,))), _with_bias,
         "x w' + b: a bias is added to the finished sum"),
    Rule("decided", P("select", "p", "x", "y"), _chosen, "true ? x : y = x"),
)  # fmt: skip


# --- Recognition ---


def as_pattern(value: Value, x: Value) -> Any:
    """The pattern of an elementwise chain: "x" for the value `x`, a number for a constant, P of the rest."""
    if value == x:
        return "x"
    number = splat(value)
    if number is not None:
        return float(number)
    return P(value.node.op.name, *(as_pattern(v, x) for v in value.node.inputs))


def _of_decomposition(op: str) -> Rule:
    """Recognises the chain that the op's own decomposition is made of."""
    x = make_input("x", "arg", t.Type((2,), t.f32))[0]
    decompose = OPS[op].decompose
    assert decompose
    return Rule(op, as_pattern(decompose(x)[0], x), _named(op), "the definition of the op")


def _named(op: str) -> Any:
    """Named ops compute in f32; other dtypes keep the chain."""
    return lambda m: m.make(op, m["x"]) if m["x"].dtype == t.f32 else None


def _softcap(m: Match) -> Made:
    cap, inner = splat(m["cap"]), splat(m["inner"])
    if cap is None or cap != inner or m["x"].dtype != t.f32:
        return None
    return m.make("softcap", m["x"], cap=float(cap))


def _gated(m: Match) -> Made:
    return m.make("gated", m["gate"], m["up"], activation=m["y"].node.op.name)


_CUBE = P("mul", "x", P("mul", "x", "x"))
_TANH = P("tanh", P("mul", 0.7978845608, P("add", "x", P("mul", 0.044715, _CUBE))))
RECOGNISED = (
    *(_of_decomposition(op) for op in ("silu", "gelu_tanh", "gelu")),
    Rule("silu by logistic", P("mul", "x", P("logistic", "x")), _named("silu"), "x * (1 / (1 + e)) = x / (1 + e)"),
    Rule("gelu_tanh by its factor", P("mul", "x", P("mul", 0.5, P("add", 1, _TANH))), _named("gelu_tanh"),
         "x * (0.5 * (1 + t)) = (0.5 * x) * (1 + t)"),
    Rule("gelu by its factor", P("mul", "x", P("mul", 0.5, P("add", 1, P("erf", P("mul", "x", 0.5**0.5))))),
         _named("gelu"), "x * (0.5 * (1 + e)) = (0.5 * x) * (1 + e)"),
    Rule("softcap", P("mul", "cap", P("tanh", P("div", "x", "inner"))), _softcap, "cap * tanh(x / cap)"),
    Rule("gated", P("mul", P(("silu", "gelu_tanh", "gelu"), "gate", name="y", single_use=True), "up"), _gated,
         "activation(gate) * up"),
)  # fmt: skip

RULES = (*EXACT, *RECOGNISED)

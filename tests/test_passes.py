"""Every rule by an example: it applies, and the graph computes the same. Random graphs through the lossless passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from inferc.compiler.passes import canonical, fold, fuse, quantize
from inferc.compiler.passes.hoist import hoist
from inferc.compiler.pipeline import PASSES, run_passes
from inferc.ir.graph import Graph, Module, Value, Weight, subgraphs
from inferc.ir.interpret import interpret
from inferc.ir.ops import OPS
from inferc.ir.rewrite import rewrite
from inferc.ir.text import print_module
from inferc.ir.types import DTYPES, Type
from inferc.ir.verify import verify

from .ir_build import graph, inputs, node, op, sample, typed
from .small_llama import PACKED, PLAIN

SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, 1e-40, -3.5], np.float32)
SIZES = {"T": 3, "S": 2, "C": 8}


def arrays(g: Graph, seed: int = 0) -> dict[str, np.ndarray]:
    """Random arguments of a graph; f32 arguments begin with zeros of both signs, infinities and a denormal."""
    rng, found = np.random.default_rng(seed), {}
    for n in g.inputs:
        t = n.types[0]
        t = Type(tuple(SIZES.get(str(d), d) for d in t.shape), t.dtype)
        found[n.attr("name")] = array = sample(t, rng)
        if t.dtype.name == "f32" and n.attr("role") == "arg" and array.size >= len(SPECIAL) and t.rank < 3:
            array.reshape(-1)[: len(SPECIAL)] = SPECIAL
    return found


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal bits; any NaN equals any other."""
    if a.dtype == np.float32:
        a, b = (np.where(np.isnan(x), np.float32(np.nan), x) for x in (a, b))
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def scalar(value: float, dtype: str = "f32") -> Value:
    return op("constant", value=np.array(value, DTYPES[dtype].numpy).tobytes(), type=typed(f"{dtype}[]"))


def full(value: float, like: Value) -> Value:
    return op("broadcast", scalar(value, like.dtype.name), shape=like.shape)


def product(x: Value, w: Value, *bias: Value) -> Value:
    return op("linear", x, w, *bias)


X, XI, W, CACHE = "f32[T, 32]", "i32[T]", "weight f32[8, 32]", "state f16[S, 2, C, 4]"
HEADS = {"cache": CACHE, "x": "f32[T, 2, 4]", "cos": "f32[T, 2]", "sin": "f32[T, 2]", "s": XI, "p": XI}


def gelu_factor(x: Value, inner: Value) -> Value:
    return op("mul", x, op("mul", full(0.5, x), op("add", full(1, x), inner)))


def tanh_of_cubic(x: Value) -> Value:
    cubic = op("mul", full(0.044715, x), op("mul", op("mul", x, x), x))
    return op("tanh", op("mul", full(0.7978845608, x), op("add", x, cubic)))


def decomposed(name: str) -> Callable[..., Value]:
    return lambda x: OPS[name].decompose(x)[0]


# By rule: the types of an example's inputs, and the example.
EXACT: dict[str, tuple[dict[str, str], Callable[..., Value]]] = {
    "no change": ({"x": X}, lambda x: op("convert", op("reshape", x, shape=x.shape), dtype=x.dtype)),
    "reshape twice": ({"x": X}, lambda x: op("reshape", op("reshape", x, shape=(x.shape[0] * 4, 8)),
                                             shape=(x.shape[0], 2, 16))),
    "broadcast twice": ({"x": "f32[8]"}, lambda x: op("broadcast", op("broadcast", x, shape=(1, 8), dims=(1,)),
                                                      shape=(2, 3, 8), dims=(1, 2))),
    "transpose twice": ({"x": "f32[2, 3, 4]"}, lambda x: op(
        "transpose", op("transpose", x, permutation=(2, 0, 1)), permutation=(0, 2, 1))),
    "identity transpose": ({"x": "f32[3, 3]"}, lambda x: op("transpose", x, permutation=(0, 1))),
    "reverse twice": ({"x": X}, lambda x: op("reverse", op("reverse", x, axes=(1,)), axes=(1,))),
    "narrow what was widened": ({"x": "f16[4, 8]"}, lambda x: op(
        "convert", op("convert", x, dtype=DTYPES["f32"]), dtype=DTYPES["f16"])),
    "times one": ({"x": X}, lambda x: op("mul", full(1, x), x)),
    "over one": ({"x": X}, lambda x: op("div", x, full(1, x))),
    "plus zero": ({"x": X, "i": XI}, lambda x, i: op("add", op("add", full(-0.0, x), x), op("broadcast", op(
        "convert", op("add", i, full(0, i)), dtype=DTYPES["f32"]), shape=x.shape, dims=(0,)))),
    "minus zero": ({"x": X}, lambda x: op("sub", x, full(0.0, x))),
    "minus minus": ({"x": X}, lambda x: op("neg", op("neg", x))),
    "not not": ({"x": "i32[T, 32]"}, lambda x: op("not", op("not", x))),
    "absolute of a sign": ({"x": X}, lambda x: op("abs", op("neg", op("abs", op("abs", x))))),
    "either way": ({"x": X, "p": "bool[T, 32]"}, lambda x, p: op("select", p, x, x)),
    "decided": ({"x": X, "y": X}, lambda x, y: op(
        "select", op("broadcast", scalar(False, "bool"), shape=x.shape), x, y)),
    "bias": ({"x": X, "w": W, "b": "weight f32[8]"}, lambda x, w, b: op(
        "add", op("broadcast", b, shape=(x.shape[0], 8), dims=(1,)), product(x, w))),
    "softcap": ({"x": X}, lambda x: op("mul", op("tanh", op("div", x, full(30, x))), full(30, x))),
    "gated": ({"x": X, "u": X}, lambda x, u: op("mul", u, op("gelu_tanh", x))),
    "silu": ({"x": X}, decomposed("silu")),
    "gelu_tanh": ({"x": X}, decomposed("gelu_tanh")),
    "gelu": ({"x": X}, decomposed("gelu")),
    "linear_add": ({"x": X, "w": W, "b": "weight f32[8]", "r": "f32[T, 8]"},
                   lambda x, w, b, r: op("add", product(x, w, b), r)),
    "gated_linear": ({"x": X, "g": W, "u": "weight q8_0[8, 32]"},
                     lambda x, g, u: op("gated", product(x, g), product(x, u), activation="silu")),
    "gated_linear_quantize": ({"x": X, "g": "weight q4_0[64, 32]", "u": "weight q4_1[64, 32]"}, lambda x, g, u: op(
        "quantize", op("gated_linear", x, g, u, activation="gelu_tanh"), dtype=DTYPES["a8g32"])),
    "rms_norm_quantize": ({"x": "f32[T, 4, 32]", "w": "weight f32[32]"}, lambda x, w: op(
        "quantize", op("rms_norm", x, w, eps=1e-5), dtype=DTYPES["a8g32"])),
    "rope_cache_write": (HEADS, lambda cache, x, cos, sin, s, p: op(
        "cache_write", cache, op("rope", x, cos, sin, style="interleaved"), s, p, window=4)),
}  # fmt: skip
# Equal in exact arithmetic: (inputs, example, greatest difference in units in the last place where both are normal).
ROUNDED: dict[str, tuple[dict[str, str], Callable[..., Value], int]] = {
    "silu by logistic": ({"x": X}, lambda x: op("mul", op("logistic", x), x), 2),
    "gelu_tanh by its factor": ({"x": X}, lambda x: gelu_factor(x, tanh_of_cubic(x)), 2),
    "gelu by its factor": ({"x": X}, lambda x: gelu_factor(x, op("erf", op("mul", x, full(0.5**0.5, x)))), 2),
}  # fmt: skip
RULES = {rule.name: rule for rule in (*canonical.RULES, *fuse.RULES)}


def test_every_rule_has_an_example() -> None:
    assert sorted([*EXACT, *ROUNDED]) == sorted(RULES)
    assert len(RULES) == len(canonical.RULES) + len(fuse.RULES)
    assert all(rule.algebra for rule in RULES.values())


def apply(name: str, types: dict[str, str], example: Callable[..., Value]) -> tuple[np.ndarray, np.ndarray]:
    """What an example computes before and after its rule, which must remove nodes."""
    given = inputs(**types)
    before = graph(example(*given), order=given)
    after = rewrite(before, [RULES[name]])
    verify(after)
    assert sum(1 for _ in after.nodes()) < sum(1 for _ in before.nodes()), f"{name} did not apply"
    with np.errstate(all="ignore"):
        return tuple(interpret(g, arrays(before))[0] for g in (before, after))


@pytest.mark.parametrize("name", EXACT)
def test_rule_keeps_every_bit(name: str) -> None:
    assert same_bits(*apply(name, *EXACT[name]))


@pytest.mark.parametrize("name", ROUNDED)
def test_recognition_moves_the_last_places_at_most(name: str) -> None:
    types, example, places = ROUNDED[name]
    before, after = apply(name, types, example)
    usual = np.isfinite(before) & (np.abs(before) > 1e-3)
    assert usual.sum() > 50
    np.testing.assert_array_max_ulp(before[usual], after[usual], places)


@pytest.mark.parametrize("example", [
    lambda x: op("add", x, full(0.0, x)),  # -0 + 0 is 0
    lambda x: op("sub", x, full(-0.0, x)),
    lambda x: op("mul", x, full(0.0, x)),  # infinity * 0 is no 0
    lambda x: op("convert", op("convert", x, dtype=DTYPES["f16"]), dtype=DTYPES["f32"]),
    lambda x: op("mul", full(30, x), op("tanh", op("div", x, full(20, x)))),
    lambda x: op("add", product(x, x), op("broadcast", op("reshape", scalar(2), shape=(1,)), shape=(x.shape[0],) * 2,
                                          dims=(1,))),  # one number is no bias
])  # fmt: skip
def test_what_would_change_bits_or_meaning_stays(example: Callable[[Value], Value]) -> None:
    before = graph(example(*inputs(x=X)))
    assert [n.op.name for n in rewrite(before, canonical.RULES).nodes()] == [n.op.name for n in before.nodes()]


def test_fusion_needs_a_single_use() -> None:
    x, w, r = inputs(x=X, w=W, r="f32[T, 8]")
    y = product(x, w)
    g = graph(op("add", r, y), y)
    assert rewrite(g, fuse.RULES) is g


def test_a_target_without_fusions_gets_none() -> None:
    x, w, r = inputs(x=X, w=W, r="f32[T, 8]")
    g = graph(op("add", r, product(x, w)), names=("y",))
    module = Module({"step": g}, {"w": Weight("w", w.type, lambda: None)})
    assert "linear_add" not in {n.op.name for n in fuse.run(module, PLAIN).entries["step"].nodes()}


# --- Graph passes ---


def test_siblings_join_over_weight_dtypes_and_biases() -> None:
    x, q, k, v, b = inputs(x=X, q="weight q4_0[8, 32]", k="weight q8_0[4, 32]", v=W, b="weight f32[4]")
    before = graph(product(x, v), product(x, k, b), product(x, q))
    after = fuse.join_siblings(before)
    (group,) = [n for n in after.nodes() if n.op.name == "linear_group"]
    assert group.attr("biases") == (False, True, False) and len(group.types) == 3
    given = arrays(before)
    assert all(map(same_bits, interpret(before, given), interpret(after, given)))


def test_linears_that_depend_on_each_other_stay_apart() -> None:
    x, w = inputs(x="f32[4, 4]", w="weight f32[4, 4]")
    first = product(x, w)
    g = graph(product(x, first), first)
    assert [n.op.name for n in fuse.join_siblings(g).nodes()] == [n.op.name for n in g.nodes()]


def test_one_quantize_for_each_activation() -> None:
    x, a, b, c = inputs(x="f32[T, 256]", a="weight q4_0[8, 256]", b="weight q8_0[8, 256]", c="weight q4_k[8, 256]")
    g = graph(*(product(x, w) for w in (a, b, c)), names=("a", "b", "c"))
    step = quantize.run(with_weights(Module({"step": g}, {})), PACKED).entries["step"]
    assert sorted(str(n.types[0].dtype) for n in step.nodes() if n.op.name == "quantize") == ["a8g32"]


# --- Folding and hoisting ---


def with_weights(module: Module) -> Module:
    """A module whose entries' weights are random."""
    rng = np.random.default_rng(1)
    nodes = {n.attr("name"): n for g in module.entries.values() for n in g.inputs_of("weight")}
    data = {name: sample(n.types[0], rng) for name, n in nodes.items()}
    return replace(module, weights={k: Weight(k, nodes[k].types[0], lambda k=k: data[k]) for k in nodes})


def agree(before: Module, after: Module) -> None:
    """Every entry computes the same bits before and after."""
    verify(after)
    for name, g in before.entries.items():
        given = {k: v for k, v in arrays(g).items() if k not in before.weights}
        with np.errstate(all="ignore"):
            results = [interpret(m, given, entry=name) for m in (before, after)]
        assert results[0].keys() == results[1].keys()
        for output in results[0]:
            assert same_bits(results[0][output], results[1][output]), output


def test_constants_fold_at_any_shape() -> None:
    (x,) = inputs(x=X)
    half = op("div", full(1, x), op("add", full(1, x), full(1, x)))
    size = op("reduce", op("iota", type=typed("i32[7]")), kind="sum", axes=(0,))
    g = graph(op("mul", x, half), size, names=("y", "n"))
    after = fold.run(Module({"step": g}, {}), PLAIN)
    assert [n.op.name for n in after.entries["step"].nodes()] == ["input", "constant", "broadcast", "mul", "constant"]
    agree(Module({"step": g}, {}), after)


def scaled_layer() -> Graph:
    """rms_norm by 1 + w, as a layer whose weight is shifted at each call."""
    x, w = inputs(x=X, w="weight f32[32]")
    return graph(op("rms_norm", x, op("add", w, full(1, w)), eps=1e-5), name="layer", order=(x, w))


def test_computation_on_weights_leaves_calls() -> None:
    layer = scaled_layer()
    x, a, b = inputs(x=X, a="weight f32[32]", b="weight f32[32]")
    y = node("call", node("call", x, a, graph=layer)[0], op("mul", b, b), graph=layer)[0]
    before = with_weights(Module({"step": graph(y, names=("y",), order=(x, a, b))}, {}))
    after = hoist(before)
    assert after.prepare.output_names == ("a", "b")
    assert [n.op.name for n in after.entries["step"].nodes()] == ["input"] * 3 + ["call"] * 2
    (callee,) = {g for n in after.entries["step"].nodes() for g in subgraphs(n)}
    assert [n.op.name for n in callee.nodes()] == ["input", "input", "rms_norm"]
    agree(before, after)


def test_two_forms_of_a_weight_have_two_names() -> None:
    x, w = inputs(x="f32[T, 8]", w="weight f32[8, 8]")
    forms = op("transpose", w, permutation=(1, 0)), op("neg", w), w
    g = graph(*(product(x, form) for form in forms), names=("a", "b", "c"))
    before = with_weights(Module({"step": g}, {}))
    after = hoist(before)
    assert sorted(after.prepare.output_names) == ["w", "w.neg", "w.transpose"]
    agree(before, after)


def test_entries_share_prepared_weights() -> None:
    entries = {}
    for name in ("step", "embed"):
        x, w, v = inputs(x="f32[T, 8]", w="weight f32[8, 8]", v="weight f32[8, 8]")
        form = v if name == "step" else op("neg", v)
        entries[name] = graph(product(x, op("neg", w)), product(x, form), names=("a", "b"))
    before = with_weights(Module(entries, {}))
    after = hoist(before)
    assert sorted(after.prepare.output_names) == ["v", "v.neg", "w"]
    agree(before, after)
    assert hoist(after).prepare.output_names == after.prepare.output_names
    agree(before, hoist(after))


def test_weights_that_are_not_stored_smaller_are_made_where_they_are_used() -> None:
    x, w = inputs(x="f32[4, 32]", w="weight f32[32]")
    shifted = op("broadcast", op("add", w, full(1, w)), shape=(4, 32), dims=(1,))
    before = with_weights(Module({"step": graph(op("mul", x, shifted), names=("y",))}, {}))
    after = hoist(before)
    assert [n.op.name for n in after.entries["step"].nodes()] == ["input", "input", "broadcast", "mul"]
    agree(before, after)


def test_large_results_from_constants_are_prepared() -> None:
    (x,) = inputs(x="f32[2, 512]")
    angles = op("sin", op("convert", op("iota", type=typed("i32[2, 512]"), dim=1), dtype=DTYPES["f32"]))
    before = Module({"step": graph(op("add", x, angles), names=("y",))}, {})
    after = fold.run(before, PLAIN)
    assert after.prepare.output_names == ("constant",)
    agree(before, after)


# --- Random graphs ---

UNARY = ("neg", "abs", "exp", "tanh", "floor", "sign", "silu", "gelu")
BINARY = ("add", "sub", "mul", "div", "max", "min")
LOSSLESS = [p for p in PASSES if not p.lossy]


@st.composite
def modules(draw: st.DrawFn) -> Module:
    """A chain of random ops on [T, 32] with weights, constants, views that cancel, and a layer called twice."""

    def extend(values: list[Value], weights: list[Value], deep: bool) -> Value:
        for _ in range(draw(st.integers(1, 8))):
            x = draw(st.sampled_from(values))
            values.append(draw(st.sampled_from(STEPS if deep else STEPS[:-1]))(x, values, weights))
        return values[-1]

    def unary(x: Value, values: list[Value], weights: list[Value]) -> Value:
        return op(draw(st.sampled_from(UNARY)), x)

    def binary(x: Value, values: list[Value], weights: list[Value]) -> Value:
        return op(draw(st.sampled_from(BINARY)), x, draw(st.sampled_from(values)))

    def with_number(x: Value, values: list[Value], weights: list[Value]) -> Value:
        pair = [x, full(draw(st.sampled_from((0.0, -0.0, 1.0, -1.0, 0.5, 30.0))), x)]
        return op(draw(st.sampled_from(BINARY)), *draw(st.permutations(pair)))

    def views(x: Value, values: list[Value], weights: list[Value]) -> Value:
        x = op("reshape", op("reshape", x, shape=(x.shape[0], 4, 8)), shape=(x.shape[0] * 4, 8))
        x = op("transpose", op("transpose", x, permutation=(1, 0)), permutation=(1, 0))
        return op("reshape", x, shape=values[0].shape)

    def row(x: Value, values: list[Value], weights: list[Value]) -> Value:
        kind = draw(st.sampled_from(("sum", "max")))
        return op("broadcast", op("reduce", x, kind=kind, axes=(1,)), shape=x.shape, dims=(0,))

    def vector(weights: list[Value]) -> Value:
        w = weights[0]
        for name in draw(st.lists(st.sampled_from(("neg", "abs", "add", "mul")), max_size=2)):
            w = op(name, w) if name in UNARY else op(name, w, draw(st.sampled_from((w, full(1, w), full(0.5, w)))))
        return w

    def linear(x: Value, values: list[Value], weights: list[Value]) -> Value:
        y = product(x, draw(st.sampled_from(weights[1:])))
        if draw(st.booleans()):
            y = op("add", y, op("broadcast", vector(weights), shape=y.shape, dims=(1,)))
        return op("add", x, y) if draw(st.booleans()) else y

    def norm(x: Value, values: list[Value], weights: list[Value]) -> Value:
        return op("rms_norm", x, vector(weights), eps=1e-5)

    def gated(x: Value, values: list[Value], weights: list[Value]) -> Value:
        a, b = (product(x, draw(st.sampled_from(weights[1:]))) for _ in range(2))
        return op("mul", op(draw(st.sampled_from(("silu", "gelu"))), a), b)

    def call(x: Value, values: list[Value], weights: list[Value]) -> Value:
        vectors = vector(weights), weights[0]
        for v in vectors[: draw(st.integers(1, 2))]:
            x = node("call", x, v, *weights[1:], graph=layer)[0]
        return x

    STEPS = (unary, binary, with_number, views, row, linear, norm, gated, call)

    types = {"x": X, "v": "weight f32[32]"} | {n: f"weight {n}[32, 32]" for n in ("f32", "q8_0", "f16")}
    x, *weights = given = inputs(**types)
    layer = graph(extend([x], weights, False), name="layer", order=given)
    x, *weights = given = inputs(**types)
    step = graph(extend([x], weights, True), x, names=("y", "x"), order=given)
    return with_weights(Module({"step": step}, {}))


@settings(max_examples=60, deadline=None)
@given(modules())
def test_random_modules_keep_every_bit(module: Module) -> None:
    note(print_module(module))
    target = replace(PACKED, activations={}, cache=DTYPES["f32"])
    agree(module, run_passes(module, target, passes=[replace(p, after=()) for p in LOSSLESS]))

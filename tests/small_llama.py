"""A two-layer decoder built by hand: a called layer shared by both, tied head, caches as state."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from inferc.ir.graph import Graph, Module, Node, Value, Weight, make_input
from inferc.ir.target import ACTIVATIONS, Target
from inferc.ir.types import DTYPES

from .ir_build import node, op, typed
from .tiny_models import random_weight

VOCABULARY, WIDTH, HIDDEN, HEADS, KV_HEADS, HEAD = 48, 256, 512, 4, 2, 64
FUSIONS = frozenset({
    "linear_group", "linear_add", "gated_linear", "gated_linear_quantize", "rms_norm_quantize", "rope_cache_write",
})  # fmt: skip
PACKED = Target("packed", "test", weight_layout="panel16", fusions=FUSIONS, activations=ACTIVATIONS)
PLAIN = Target(name="plain", backend="test", cache=DTYPES["f32"])  # no quantised activations, layouts or fusions
MATRICES = {
    "q": (HEADS * HEAD, WIDTH), "k": (KV_HEADS * HEAD, WIDTH), "v": (KV_HEADS * HEAD, WIDTH),
    "o": (WIDTH, HEADS * HEAD), "gate": (HIDDEN, WIDTH), "up": (HIDDEN, WIDTH), "down": (WIDTH, HIDDEN),
}  # fmt: skip


def layer(types: Mapping[str, str], biases: bool) -> Graph:
    """x + attention(norm(x)), then + down(silu(gate) * up), written with what the passes are there to clean up."""
    given: list[Node] = []

    def take(name: str, type: str, role: str = "arg") -> Value:
        given.append(make_input(name, role, typed(type)))
        return given[-1][0]

    x = take("x", f"f32[T, {WIDTH}]")
    cos, sin = take("cos", f"f32[T, {HEAD // 2}]"), take("sin", f"f32[T, {HEAD // 2}]")
    sequence, position = take("sequence", "i32[T]"), take("position", "i32[T]")
    take("unused", "f32[T]")
    norms = {name: take(f"{name}.norm", f"f32[{WIDTH}]", "weight") for name in ("attention", "mlp")}
    weights = {n: take(n, f"{types.get(n, types[''])}[{r}, {c}]", "weight") for n, (r, c) in MATRICES.items()}
    bias = {n: take(f"{n}.bias", f"f32[{MATRICES[n][0]}]", "weight") for n in ("q", "v") if biases}
    k_cache, v_cache = (take(f"{n}_cache", f"f32[S, {KV_HEADS}, C, {HEAD}]", "state") for n in "kv")

    def linear(name: str, x: Value) -> Value:
        y = op("linear", x, weights[name], at=name)
        if name not in bias:
            return y
        return op("add", y, op("broadcast", bias[name], shape=y.shape, dims=(1,)), at=name)

    def heads(x: Value, count: int) -> Value:
        flat = op("reshape", x, shape=(x.shape[0] * count, HEAD))
        return op("reshape", flat, shape=(x.shape[0], count, HEAD))

    h = op("rms_norm", x, norms["attention"], eps=1e-5, at="attention.norm")
    q, k, v = heads(linear("q", h), HEADS), heads(linear("k", h), KV_HEADS), heads(linear("v", h), KV_HEADS)
    q, k = (op("rope", y, cos, sin, style="neox", at=at) for y, at in ((q, "q.rope"), (k, "k.rope")))
    k_cache = op("cache_write", k_cache, k, sequence, position, at="k.write")
    v_cache = op("cache_write", v_cache, v, sequence, position, at="v.write")
    mixed = op("cached_attention", q, k_cache, v_cache, sequence, position, scale=HEAD**-0.5, at="attention")
    x = op("add", x, linear("o", op("reshape", mixed, shape=(x.shape[0], HEADS * HEAD))), at="o.add")
    h = op("rms_norm", x, norms["mlp"], eps=1e-5, at="mlp.norm")
    gate, up = linear("gate", h), linear("up", h)
    one = op("broadcast", op("constant", value=np.float32(1).tobytes(), type=typed("f32[]")), shape=gate.shape)
    silu = op("div", gate, op("add", one, op("exp", op("neg", gate))), at="mlp.silu")
    x = op("add", x, linear("down", op("mul", silu, up, at="mlp.gated")), at="down.add")
    return Graph("layer", tuple(given), (x, k_cache, v_cache))


def module(types: str | Mapping[str, str] = "q8_0", *, biases: bool = False, layers: int = 2) -> Module:
    """`types` is the dtype of every matrix, or dtypes by name of MATRICES, "" for the others and the embedding."""
    types = {"": types} if isinstance(types, str) else types
    shared = layer(types, biases)
    rng = np.random.default_rng(0)
    weights: dict[str, Weight] = {}
    given: list[Node] = []

    def take(name: str, type: str, role: str = "arg") -> Value:
        given.append(make_input(name, role, typed(type)))
        return given[-1][0]

    def weight(name: str, type: str) -> Value:
        t = typed(type)
        if t.rank == 1:
            array = rng.uniform(0.5, 1.5, t.shape).astype(np.float32)
        else:
            array = np.ascontiguousarray(random_weight(rng, t.shape, t.dtype.name, 0.05))
        raw = array.reshape(-1).view(np.uint8)
        weights[name] = Weight(name, t, lambda: raw)
        return take(name, type, "weight")

    tokens, sequence, position, rows = (take(n, f"i32[{d}]") for n, d in zip(NAMES, "TTTR"))
    table = weight("embd", f"{types['']}[{VOCABULARY}, {WIDTH}]")
    angles = node("rope_angles", position, weight("inv_freq", f"f32[{HEAD // 2}]"), at="rope")
    unused = op("convert", position, dtype=DTYPES["f32"])
    x, states = op("embedding", table, tokens, at="embd"), {}
    for i in range(layers):
        arguments = {"x": x, "cos": angles[0], "sin": angles[1], "sequence": sequence, "position": position,
                     "unused": unused}  # fmt: skip
        operands = []
        for n in shared.inputs:
            name, role = n.attr("name"), n.attr("role")
            if role == "state":
                operands.append(take(f"layers.{i}.{name[0]}", str(n.types[0]), "state"))
            else:
                operands.append(arguments[name] if role == "arg" else weight(f"{i}.{name}", str(n.types[0])))
        called = node("call", *operands, graph=shared, at=f"layers.{i}")
        x, states[f"layers.{i}.k"], states[f"layers.{i}.v"] = called.values
    x = op("rms_norm", op("take_rows", x, rows), weight("norm", f"f32[{WIDTH}]"), eps=1e-5, at="norm")
    logits = op("linear", x, table, at="head")
    step = Graph("step", tuple(given), (logits, *states.values()), ("logits", *states))
    return Module({"step": step}, weights)


NAMES = ("tokens", "sequence", "position", "rows")


def arguments(module: Module) -> dict[str, np.ndarray]:
    """Nine tokens of two sequences, and empty caches of 16 positions."""
    numbers = ([3, 1, 4, 1, 5, 9, 2, 6, 5], [0] * 5 + [1] * 4, [0, 1, 2, 3, 4, 0, 1, 2, 3], [4, 8])
    given = {name: np.array(values, np.int32) for name, values in zip(NAMES, numbers)}
    sizes = {"S": 2, "C": 16}
    for n in module.entries["step"].inputs_of("state"):
        shape = [sizes.get(str(d), d) for d in n.types[0].shape]
        given[n.attr("name")] = np.zeros(shape, n.types[0].dtype.numpy)
    return given

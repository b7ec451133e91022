"""ONNX's recurrent networks: RNN, GRU and LSTM, each a scan over time for each direction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from ...ir.types import Type, i64
from .arrays import Array, stack, where
from .onnx_control import _scan
from .onnx_elementwise import celu, elu, hard_sigmoid, leaky_relu, softplus, softsign
from .onnx_import import Call, Rule, Tensor
from .onnx_shapes import taken_along
from .products import dot

Activation = Callable[[Array], Array]
# name: (function of x and its parameters, their defaults)
ACTIVATIONS: Mapping[str, tuple[Callable[..., Array], tuple[float, ...]]] = {
    "sigmoid": (lambda x: x.logistic(), ()),
    "tanh": (lambda x: x.tanh(), ()),
    "relu": (lambda x: x.maximum(0), ()),
    "affine": (lambda x, a, b: a * x + b, (1.0, 0.0)),
    "leakyrelu": (leaky_relu, (0.01,)),
    "thresholdedrelu": (lambda x, a: where(x > a, x, x.like(0.0)), (1.0,)),
    "scaledtanh": (lambda x, a, b: a * (b * x).tanh(), (1.0, 1.0)),
    "hardsigmoid": (hard_sigmoid, (0.2, 0.5)),
    "elu": (elu, (1.0,)),
    "celu": (celu, (1.0,)),
    "softsign": (softsign, ()),
    "softplus": (softplus, ()),
}


def activations(c: Call, defaults: Sequence[str], directions: int) -> list[list[Activation]]:
    """The activations of each direction; alphas and betas are given in order to those that take them."""
    names = c.attr("activations") or list(defaults) * directions
    alphas, betas = iter(c.attr("activation_alpha") or []), iter(c.attr("activation_beta") or [])
    made: list[Activation] = []
    for name in names:
        if name.lower() not in ACTIVATIONS:
            raise c.error(f"the activation {name!r} is not supported")
        function, usual = ACTIVATIONS[name.lower()]
        given = [next(source, default) for source, default in zip((alphas, betas), usual)]
        made.append(partial(_activated, function, tuple(given)))
    return [made[i * len(defaults) : (i + 1) * len(defaults)] for i in range(directions)]


def _activated(function: Callable[..., Array], parameters: tuple[float, ...], x: Array) -> Array:
    return function(x, *parameters)


Step = Callable[[Array, list[Array]], list[Array]]  # (products of one moment's input, states) -> new states


def recurrent(c: Call, gates: int, states: int, make_step: Callable[..., Step], defaults: Sequence[str]) -> list[Array]:
    """Outputs of all moments [time, directions, batch, hidden], then each last state [directions, batch, hidden]."""
    x, layout = c.x(0), c.attr("layout", 0)
    x = x.swapaxes(0, 1) if layout else x
    time, batch, _ = x.shape
    hidden = c.attr("hidden_size") or c.x(2).shape[2]
    direction = c.attr("direction")
    directions = 2 if direction == "bidirectional" else 1
    functions = activations(c, defaults, directions)
    lengths = c.optional(4)
    initial = [c.optional(i) for i in (5, 6)[:states]]
    outputs, finals = [], []
    for d in range(directions):
        backward = direction == "reverse" or d == 1
        w, r = c.x(1).at(0, d), c.x(2).at(0, d)
        bias = c.x(3).at(0, d) if c.has(3) else None
        # products with the input, for all moments at once
        total = dot(x, w, ((2,), (1,)))
        first = bias.slice(0, 0, gates * hidden) if bias is not None else None
        second = bias.slice(0, gates * hidden) if bias is not None else None
        total = total if first is None else total + first
        begin = []
        for state in initial:
            one = None if state is None else state.at(1 if layout else 0, d)
            begin.append(c.body.full((batch, hidden), 0.0, x.dtype) if one is None else one)
        step = make_step(c, r, second, hidden, functions[d], d)
        if backward:
            total = _reversed(total, lengths)
        made = _run(c, step, total, begin, lengths)
        y = made[states]
        outputs.append(_reversed(y, lengths) if backward else y)
        finals.append(made[:states])
    whole = stack(outputs, 1)
    last = [stack([f[i] for f in finals], 0) for i in range(states)]
    if layout:
        return [whole.transpose(2, 0, 1, 3), *(s.swapaxes(0, 1) for s in last)]
    return [whole, *last]


def _reversed(x: Array, lengths: Array | None) -> Array:
    """Time turned round, in each sequence by itself where they have lengths."""
    if lengths is None:
        return x.reverse(0)
    position, length = x.body.iota(x.shape, 0), lengths.astype(i64).expand(x.shape, (1,))
    return taken_along(x, where(position < length, length - 1 - position, position), 0)


def _run(c: Call, step: Step, total: Array, begin: Sequence[Array], lengths: Array | None) -> list[Array]:
    """The last states, then the first state at each moment; a sequence that has ended keeps them and gives zeros."""
    time = total.shape[0]
    types = [*(s.value.type for s in begin), Type((), i64), Type(total.shape[1:], total.dtype)]

    def build(arguments: list[Array]) -> list[Tensor]:
        *old, moment, row = arguments
        new = step(row, old)
        seen = new[0]
        if lengths is not None:
            alive = (moment < lengths.astype(i64)).expand(new[0].shape, (0,))
            seen = where(alive, new[0], new[0].like(0.0))
            new = [where(alive, n, o) for n, o in zip(new, old)]
        return [Tensor(array=a) for a in (*new, seen)]

    graph, captured = c.importer.close("moment", types, build)
    return _scan(c, graph, captured, begin, [c.body.arange(time), total], time)


def _clipped(c: Call, x: Array) -> Array:
    limit = c.attr("clip")
    return x if not limit else x.maximum(-limit).minimum(limit)


def _product(h: Array, r: Array, bias: Array | None) -> Array:
    y = dot(h, r, ((1,), (1,)))
    return y if bias is None else y + bias


def _rnn(c: Call, r: Array, bias: Array | None, hidden: int, functions: Sequence[Activation], d: int) -> Step:
    return lambda row, states: [functions[0](_clipped(c, row + _product(states[0], r, bias)))]


def _gru(c: Call, r: Array, bias: Array | None, hidden: int, functions: Sequence[Activation], d: int) -> Step:
    f, g = functions
    r_zr, r_h = r.slice(0, 0, 2 * hidden), r.slice(0, 2 * hidden)
    b_zr, b_h = (None, None) if bias is None else (bias.slice(0, 0, 2 * hidden), bias.slice(0, 2 * hidden))

    def step(row: Array, states: list[Array]) -> list[Array]:
        h = states[0]
        both = f(_clipped(c, row.slice(1, 0, 2 * hidden) + _product(h, r_zr, b_zr)))
        z, reset = both.slice(1, 0, hidden), both.slice(1, hidden)
        own = row.slice(1, 2 * hidden)
        if c.attr("linear_before_reset"):
            candidate = own + reset * _product(h, r_h, b_h)
        else:
            candidate = own + _product(reset * h, r_h, b_h)
        return [(1 - z) * g(_clipped(c, candidate)) + z * h]

    return step


def _lstm(c: Call, r: Array, bias: Array | None, hidden: int, functions: Sequence[Activation], d: int) -> Step:
    f, g, h_of = functions
    peephole = c.x(7).at(0, d) if c.has(7) else None

    def seen(cell: Array, gate: int) -> Array | float:
        """What a gate sees of the cell: weights come for input, output, forget."""
        return 0.0 if peephole is None else peephole.slice(0, gate * hidden, (gate + 1) * hidden) * cell

    def step(row: Array, states: list[Array]) -> list[Array]:
        h, cell = states
        total = row + _product(h, r, bias)
        i, o, forget, new = (total.slice(1, k * hidden, (k + 1) * hidden) for k in range(4))
        if peephole is not None:
            i, forget = i + seen(cell, 0), forget + seen(cell, 2)
        i = f(_clipped(c, i))
        kept = 1 - i if c.attr("input_forget") else f(_clipped(c, forget))
        after = kept * cell + i * g(_clipped(c, new))
        o = o + seen(after, 1) if peephole is not None else o
        return [f(_clipped(c, o)) * h_of(after), after]

    return step


RECURRENT: Mapping[str, Rule] = {
    "RNN": lambda c: recurrent(c, 1, 1, _rnn, ("Tanh",)),
    "GRU": lambda c: recurrent(c, 3, 1, _gru, ("Sigmoid", "Tanh")),
    "LSTM": lambda c: recurrent(c, 4, 2, _lstm, ("Sigmoid", "Tanh", "Tanh")),
}

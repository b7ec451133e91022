"""Ops that slide a window over an array."""

from __future__ import annotations

from collections.abc import Sequence

from ...ir.types import Dim
from .context import Lowering, Step
from .shape import KINDS, identity
from .text import Tensor, element_of, largest, number, tensor_type


def _labels(axes: Sequence[int], first: str, second: str) -> str:
    """`[b, f, 0, 1]`: what each axis is, given the axes of the two and of each spatial dimension."""
    names = [first, second, *map(str, range(len(axes) - 2))]
    return "[" + ", ".join(names[axes.index(axis)] for axis in range(len(axes))) + "]"


def _pairs(low: Sequence[Dim], high: Sequence[Dim]) -> str:
    return "[" + ", ".join(f"[{number(l)}, {number(h)}]" for l, h in zip(low, high)) + "]"


def _convolution(step: Step) -> Tensor:
    x, kernel = step.tensors
    low, high = (step.context.shape(step.attr(n)) for n in ("low", "high"))
    dims = (f"{_labels(step.attr('x_dims'), 'b', 'f')}x{_labels(step.attr('w_dims'), 'o', 'i')}->"
            f"{_labels(step.attr('out_dims'), 'b', 'f')}")  # fmt: skip
    windows = [f"stride = {list(step.attr('strides'))}"]
    if low:
        windows.append(f"pad = {_pairs(low, high)}")
    windows += [f"lhs_dilate = {list(step.attr('base_dilation'))}", f"rhs_dilate = {list(step.attr('dilation'))}"]
    element = element_of(step.node.types[0].dtype)
    precision = "HIGHEST" if x.element == "f32" else "DEFAULT"
    exact = f"#stablehlo<precision {precision}>"
    options = (f"batch_group_count = 1 : i64, feature_group_count = {step.attr('groups')} : i64, "
               f"precision_config = [{exact}, {exact}]")  # fmt: skip
    text = (f"stablehlo.convolution({x}, {kernel}) dim_numbers = {dims}, window = {{{', '.join(windows)}}} "
            f"{{{options}}} : ({x.type}, {kernel.type}) -> {tensor_type(step.shape, element)}")  # fmt: skip
    return step.writer.assign(text, step.shape, element)


def _reduce_window(step: Step) -> Tensor:
    low, high = (step.context.shape(step.attr(n)) for n in ("low", "high"))
    names = {"window_dimensions": "window", "window_strides": "strides", "base_dilations": "base_dilation",
             "window_dilations": "dilation"}  # fmt: skip
    settings = {theirs: step.attr(ours) for theirs, ours in names.items()}
    kind = step.attr("kind")
    start = identity(kind, step.x.element)
    return step.writer.reduce_window(step.x, KINDS[kind], step.shape, settings, tuple(zip(low, high)), start)


def running(kind: str) -> Lowering:
    """Combinations over distances of 1, 2, 4 …: after each, an element holds that of twice as many before it."""

    def lower(step: Step) -> Tensor:
        w, x, axis = step.writer, step.x, step.attr("axis")
        none, distance = [0] * x.rank, 1
        start = w.constant(identity(kind, x.element), x.element)
        while distance < largest(x.shape[axis]):
            low, high = list(none), list(none)
            low[axis], high[axis] = (-distance, distance) if step.attr("reverse") else (distance, -distance)
            x = w.map(KINDS[kind], x, w.pad(x, start, low, high, none))
            distance *= 2
        return x

    return lower


WINDOW: dict[str, Lowering] = {
    "convolution": _convolution,
    "reduce_window": _reduce_window,
    "cumsum": running("sum"),
    "cumprod": running("prod"),
    "cummax": running("max"),
    "cummin": running("min"),
}

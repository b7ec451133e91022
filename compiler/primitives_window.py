"""JAX's convolution and windowed reductions as ops of the IR."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..ir.graph import IRError, Value
from ..ir.ops.shape import KINDS
from ..ir.types import Dim, Type

if TYPE_CHECKING:
    from .primitives import Lowering
    from .tracing import Body


def _padding(body: Body, params: Mapping[str, Any]) -> dict[str, tuple[Dim, ...]]:
    columns = zip(*params["padding"]) if params["padding"] else ((), ())
    low, high = (body.trace.shape(column) for column in columns)
    return {"low": low, "high": high}


def convolution(body: Body, params: Mapping[str, Any], operands: list[Value], types: list[Type]) -> Sequence[Value]:
    """`conv_general_dilated`; groups of the batch become groups of the channels."""
    x, w = operands
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    if (count := params["batch_group_count"]) != 1:
        x, groups = _batch_groups_in_channels(body, x, numbers.lhs_spec, count), count
    return body.make(
        "convolution", x, w, strides=params["window_strides"], base_dilation=params["lhs_dilation"],
        dilation=params["rhs_dilation"], groups=groups, x_dims=numbers.lhs_spec, w_dims=numbers.rhs_spec,
        out_dims=numbers.out_spec, dtype=types[0].dtype, **_padding(body, params),
    )  # fmt: skip


def _batch_groups_in_channels(body: Body, x: Value, dims: tuple[int, ...], count: int) -> Value:
    """[count * n, c] over batch and channels → [n, count * c]: group g of the batch becomes group g of the channels."""
    batch, channels = dims[:2]
    sizes = x.shape
    if not isinstance(sizes[batch], int):
        raise IRError(f"conv_general_dilated: groups of a batch of {sizes[batch]} need a fixed batch")
    split = (*sizes[:batch], count, sizes[batch] // count, *sizes[batch + 1 :])
    grouped = body.make("reshape", x, shape=split)[0]
    axis = channels + (channels > batch)
    order = [d for d in range(len(split)) if d != batch]
    order.insert(order.index(axis), batch)
    moved = body.make("transpose", grouped, permutation=tuple(order))[0]
    shape = tuple(s // count if d == batch else s * count if d == channels else s for d, s in enumerate(sizes))
    return body.make("reshape", moved, shape=shape)[0]


def reduce_window(kind: str) -> Lowering:
    def lower(body: Body, params: Mapping[str, Any], operands: list[Value], types: list[Type]) -> Sequence[Value]:
        return body.make(
            "reduce_window", operands[0], kind=kind, window=body.trace.shape(params["window_dimensions"]),
            strides=params["window_strides"], base_dilation=params["base_dilation"],
            dilation=params["window_dilation"], **_padding(body, params),
        )  # fmt: skip

    return lower


# A window reduced by a function of the user's: the op that each primitive is, alone in the function.
COMBINED = {"add": "sum", "mul": "prod", "max": "max", "min": "min", "and": "and", "or": "or", "xor": "xor"}


def combined_by(jaxpr: Any) -> str | None:
    """The kind of reduction that a function of two scalars is: its one operation, or None where it has more."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    eqns = jaxpr.eqns
    alone = len(eqns) == 1 and set(eqns[0].invars) == set(jaxpr.invars) and eqns[0].outvars == jaxpr.outvars
    kind = COMBINED.get(eqns[0].primitive.name) if alone else None
    assert kind is None or kind in KINDS
    return kind


def general_window(body: Body, params: Mapping[str, Any], operands: list[Value], types: list[Type]) -> Sequence[Value]:
    """`reduce_window` with an initial value: the window's result combined with it."""
    kind = combined_by(params["jaxpr"])
    if kind is None or len(operands) != 2:
        raise IRError(
            "reduce_window takes add, mul, max, min, and, or and xor only: write other windows with slices of the array"
        )
    windows = reduce_window(kind)(body, params, operands[:1], types)[0]
    name = next(name for name, k in COMBINED.items() if k == kind)
    start = body.make("broadcast", operands[1], shape=windows.shape, dims=())[0]
    return body.make(name, windows, start)


def running(op: str) -> Lowering:
    def lower(body: Body, params: Mapping[str, Any], operands: list[Value], types: list[Type]) -> Sequence[Value]:
        return body.make(op, operands[0], axis=params["axis"], reverse=params["reverse"])

    return lower


WINDOW_PRIMITIVES: dict[str, Lowering] = {
    "conv_general_dilated": convolution,
    **{f"reduce_window_{kind}": reduce_window(kind) for kind in ("sum", "max", "min")},
    "reduce_window": general_window,
    **{op: running(op) for op in ("cumsum", "cumprod", "cummax", "cummin")},
}

"""The primitives of JAX, each as ops of the IR: a table by the primitive's name.

An entry is a function (body, params, operands, types) -> values: `body` is the graph being built, `params` are the
equation's parameters, `operands` its operands as values, `types` those of its results.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from ..ir.graph import Value
from ..ir.ops.decompose import length
from ..ir.types import Dim, Type, i32
from .primitives_window import WINDOW_PRIMITIVES

if TYPE_CHECKING:
    from .tracing import Body

Params = Mapping[str, Any]
Lowering = Callable[["Body", Params, list[Value], list[Type]], Sequence[Value]]


def _to_shape(body: Body, value: Value, shape: tuple[Dim, ...]) -> Value:
    """JAX lets scalars and axes of 1 stand beside an array in elementwise operations; the IR broadcasts them."""
    if value.shape == shape:
        return value
    return body.make("broadcast", value, shape=shape, dims=tuple(range(len(value.shape))))[0]


def _elementwise(op: str, **attrs: Any) -> Lowering:
    def lower(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
        return body.make(op, *(_to_shape(body, v, types[0].shape) for v in operands), **attrs)

    return lower


def _simple(op: str, **attrs: Callable[[Body, Params, list[Value], list[Type]], Any]) -> Lowering:
    """An op whose attributes are each a function of what there is."""

    def lower(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
        return body.make(op, *operands, **{k: f(body, params, operands, types) for k, f in attrs.items()})

    return lower


def _param(name: str) -> Callable[..., Any]:
    return lambda body, params, operands, types: params[name]


def _shape_of_result(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Any:
    return types[0].shape


def _identity(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
    return operands


def _convert(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
    x = operands[0]
    return [x] if x.dtype == types[0].dtype else body.make("convert", x, dtype=types[0].dtype)


def _dim_as_value(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
    return _convert(body, params, [length(body.trace.dim(params["dim"]))], types)


def _square(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
    return body.make("mul", operands[0], operands[0])


def _filled(body: Body, value: float, type: Type) -> Value:
    """An array of one number."""
    scalar = np.asarray(value, jnp.dtype(type.dtype.numpy or "bfloat16"))
    return _to_shape(body, body.constant(scalar), type.shape)


def _integer_pow(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
    """By repeated squaring, in XLA's order."""
    power, factor, result = abs(params["y"]), operands[0], None
    while power:
        if power & 1:
            result = factor if result is None else body.make("mul", result, factor)[0]
        power >>= 1
        if power:
            factor = body.make("mul", factor, factor)[0]
    one = _filled(body, 1, types[0])
    result = one if result is None else result
    return body.make("div", one, result) if params["y"] < 0 else [result]


def _pow(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
    x, y = (_to_shape(body, v, types[0].shape) for v in operands)
    return body.make("pow", x, y if y.dtype == x.dtype else body.make("convert", y, dtype=x.dtype)[0])


def _exp2(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
    return body.make("exp", *body.make("mul", operands[0], _filled(body, np.log(2.0), types[0])))


def _erfc(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
    return body.make("sub", _filled(body, 1.0, types[0]), *body.make("erf", operands[0]))


def _tan(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
    return body.make("div", *body.make("sin", operands[0]), *body.make("cos", operands[0]))


def _round(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
    return body.make(
        "round", operands[0], mode="even" if params["rounding_method"].name == "TO_NEAREST_EVEN" else "away"
    )


def _select_n(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
    """The case that `which` names; for two cases `which` is a flag."""
    which, *cases = (_to_shape(body, v, types[0].shape) for v in operands)
    if which.dtype.name == "bool":
        return body.make("select", which, cases[1], cases[0]) if len(cases) == 2 else cases
    result = cases[-1]
    for index, case in reversed(list(enumerate(cases[:-1]))):
        below = body.make("compare", which, _filled(body, index, which.type), direction="le")[0]
        result = body.make("select", below, case, result)[0]
    return [result]


def _slice(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
    start, limit = body.trace.shape(params["start_indices"]), body.trace.shape(params["limit_indices"])
    return body.make("slice", operands[0], start=start, limit=limit, stride=params["strides"] or (1,) * len(start))


def _split(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
    axis, shape = params["axis"], operands[0].shape
    ends = list(accumulate(body.trace.shape(params["sizes"])))
    zeros, ones = (0,) * len(shape), (1,) * len(shape)
    results: list[Value] = []
    for low, high in zip([0, *ends], ends):
        start, limit = (*zeros[:axis], low, *zeros[axis + 1 :]), (*shape[:axis], high, *shape[axis + 1 :])
        results += body.make("slice", operands[0], start=start, limit=limit, stride=ones)
    return results


def _pad(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
    low, high, interior = (body.trace.shape(column) for column in zip(*params["padding_config"])) or ((), (), ())
    return body.make("pad", *operands, low=low, high=high, interior=interior)


def _reduce(kind: str) -> Lowering:
    def lower(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
        return body.make("reduce", operands[0], kind=kind, axes=tuple(sorted(params["axes"])))

    return lower


def _dot_general(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
    contracting, batch = params["dimension_numbers"]
    return body.make("dot_general", *operands, contracting=contracting, batch=batch, dtype=types[0].dtype)


def _starts(body: Body, values: Sequence[Value]) -> list[Value]:
    return [v if v.dtype == i32 else body.make("convert", v, dtype=i32)[0] for v in values]


def _dynamic_slice(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
    return body.make("dynamic_slice", operands[0], *_starts(body, operands[1:]), sizes=types[0].shape)


def _dynamic_update_slice(body: Body, params: Params, operands: list[Value], types: list[Type]):
    return body.make("dynamic_update_slice", *operands[:2], *_starts(body, operands[2:]))


GATHER_MODES = {"CLIP": "clip", "FILL_OR_DROP": "fill", "PROMISE_IN_BOUNDS": "promise"}
GATHER_FIELDS = ("offset_dims", "collapsed_slice_dims", "start_index_map", "operand_batching_dims",
                 "start_indices_batching_dims")  # fmt: skip
SCATTER_FIELDS = ("update_window_dims", "inserted_window_dims", "scatter_dims_to_operand_dims",
                  "operand_batching_dims", "scatter_indices_batching_dims")  # fmt: skip


def _fields(params: Params, names: Sequence[str]) -> dict[str, Any]:
    numbers = params["dimension_numbers"]
    return {name: tuple(getattr(numbers, name)) for name in names} | {"mode": GATHER_MODES[params["mode"].name]}


def _gather(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
    sizes = body.trace.shape(params["slice_sizes"])
    fields = _fields(params, GATHER_FIELDS)
    return body.make("gather", *operands, slice_sizes=sizes, fill_value=params.get("fill_value"), **fields)


def _scatter(kind: str) -> Lowering:
    def lower(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
        return body.make("scatter", *operands, kind=kind, **_fields(params, SCATTER_FIELDS))

    return lower


def _scatter_sub(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
    x, indices, updates = operands
    negative = body.make("neg", updates)[0]
    return body.make("scatter", x, indices, negative, kind="add", **_fields(params, SCATTER_FIELDS))


def _types(values: Sequence[Value]) -> list[Type]:
    return [v.type for v in values]


def _cond(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
    index, *rest = operands
    jaxprs = params["branches"]
    graphs, captured = body.branches(jaxprs, [_types(rest)] * len(jaxprs), [f"branch{i}" for i in range(len(jaxprs))])
    return body.make("cond", index, *captured, *rest, branches=tuple(graphs))


def _while(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
    in_cond, in_body = params["cond_nconsts"], params["body_nconsts"]
    for_cond, for_body, carry = operands[:in_cond], operands[in_cond : in_cond + in_body], operands[in_cond + in_body :]
    jaxprs = params["cond_jaxpr"], params["body_jaxpr"]
    graphs, captured = body.branches(
        jaxprs, [_types(for_cond + carry), _types(for_body + carry)], ("condition", "body")
    )
    return body.make(
        "while", *captured, *for_cond, *captured, *for_body, *carry, cond=graphs[0], body=graphs[1],
        cond_consts=in_cond + len(captured), body_consts=in_body + len(captured),
    )  # fmt: skip


def _scan(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
    fixed = params["num_consts"] + params["num_carry"]
    rows = [Type(t.shape[1:], t.dtype) for t in _types(operands[fixed:])]
    graphs, captured = body.branches([params["jaxpr"]], [[*_types(operands[:fixed]), *rows]], ("body",))
    return body.make(
        "scan", *captured, *operands, body=graphs[0], length=body.trace.dim(params["length"]),
        consts=params["num_consts"] + len(captured), carry=params["num_carry"], reverse=params["reverse"],
    )  # fmt: skip


SAME_NAME = (
    "add sub mul div max min rem neg abs sign floor ceil exp log expm1 log1p tanh logistic sqrt rsqrt sin cos erf not "
    "and or xor shift_left shift_right_logical shift_right_arithmetic is_finite clamp"
)
PRIMITIVES: dict[str, Lowering] = {
    **{name: _elementwise(name) for name in SAME_NAME.split()},
    **{name: _elementwise("compare", direction=name) for name in "eq ne lt le gt ge".split()},
    **{f"reduce_{kind}": _reduce(kind) for kind in "sum max min prod and or xor".split()},
    **{f"scatter{end}": _scatter(kind) for kind in ("add", "mul", "min", "max") for end in (f"-{kind}", f"_{kind}")},
    **{name: _identity for name in "copy copy_p optimization_barrier sharding_constraint stop_gradient".split()},
    "add_any": _elementwise("add"),
    "pow": _pow,
    "integer_pow": _integer_pow,
    "square": _square,
    "exp2": _exp2,
    "erfc": _erfc,
    "tan": _tan,
    "round": _round,
    "select_n": _select_n,
    "convert_element_type": _convert,
    "dim_as_value": _dim_as_value,
    "bitcast_convert_type": _simple("bitcast", dtype=lambda body, params, operands, types: types[0].dtype),
    "iota": _simple("iota", type=lambda body, params, operands, types: types[0], dim=_param("dimension")),
    "broadcast_in_dim": _simple("broadcast", shape=_shape_of_result, dims=_param("broadcast_dimensions")),
    "reshape": _simple("reshape", shape=_shape_of_result),
    "squeeze": _simple("reshape", shape=_shape_of_result),
    "transpose": _simple("transpose", permutation=_param("permutation")),
    "rev": _simple("reverse", axes=_param("dimensions")),
    "slice": _slice,
    "split": _split,
    "pad": _pad,
    "concatenate": _simple("concatenate", axis=_param("dimension")),
    "argmax": _simple("argmax", axis=lambda b, params, o, t: params["axes"][0], dtype=lambda b, p, o, t: t[0].dtype),
    "argmin": _simple("argmin", axis=lambda b, params, o, t: params["axes"][0], dtype=lambda b, p, o, t: t[0].dtype),
    "sort": _simple("sort", axis=_param("dimension"), keys=_param("num_keys")),
    "top_k": _simple("top_k", k=_param("k")),
    "dot_general": _dot_general,
    "gather": _gather,
    "scatter": _scatter("set"),
    "scatter-sub": _scatter_sub,
    "scatter_sub": _scatter_sub,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "cond": _cond,
    "while": _while,
    "scan": _scan,
    **WINDOW_PRIMITIVES,
}

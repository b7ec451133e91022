"""JAX functions → graphs, by way of `jax.make_jaxpr`.

Composites named "inferc.<op>" stay whole, functions under `jax.jit` become `call` with one shared graph for equal bodies,
JAX's own jitted helpers are inlined, and every other primitive is looked up in PRIMITIVES. The type that each op infers
must be the one that JAX says; weights are traced as f32 and keep their own type in the graph.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np

from ..errors import InfercError
from ..ir.graph import INPUT, Graph, IRError, Node, Origin, Value, Weight, make, make_input
from ..ir.ops import OPS
from ..ir.types import DTYPES, Dim, Sym, Type, f32, i32, parse_dim, symbols
from . import named_ops

CONSTANT_BYTES = 1024  # a larger constant becomes a weight
# Operands, by op and index, that take block and half-float weights as they are. Elsewhere `dequantize` comes between.
TAKES_FORMATS = {("embedding", 0), ("linear", 1), ("expert_linear", 1)}
LIBRARY = (str(Path(jax.__file__).parent), named_ops.__file__, __file__)  # frames in these are not the user's
NAMED_DTYPES = {d.numpy or "bfloat16": d for d in DTYPES.values() if d.numpy or d.name == "bf16"}


@dataclass(frozen=True)
class Input:
    """An operand of the traced function: `role` as in `ir.graph`, `type` as in the graph."""

    name: str
    role: str
    type: Type


def trace(
    function: Callable[..., Sequence[Any]], inputs: Sequence[Input], *, name: str, output_names: Sequence[str] = ()
) -> tuple[Graph, dict[str, Weight]]:
    """The graph of `function(*arrays) -> sequence of arrays`, and its large constants, which are weights of the graph.

    Raises InfercError, naming the primitive and the line that used it, for what the IR has no op for; IRError if an op
    infers another type than JAX.
    """
    known = {s.name: s for i in inputs for d in i.type.shape for s in symbols(d)}
    scope = _scope(tuple(sorted(known.values())))
    # make_jaxpr caches by the function's identity, so that a function traced before is traced anew under a new one.
    closed = jax.make_jaxpr(lambda *arrays: function(*arrays))(*(_aval(i, scope) for i in inputs))
    trace = _Trace(known)
    nodes = [make_input(i.name, i.role, i.type) for i in inputs]
    graph, captured = trace.graph(name, closed, nodes)
    return Graph(name, (*graph.inputs[len(captured) :], *captured), graph.outputs, tuple(output_names)), trace.weights


@lru_cache(maxsize=64)
def _scope(known: tuple[Sym, ...]) -> jax.export.SymbolicScope:
    """One scope per set of symbols: JAX refuses to mix dimensions of two, also in its own caches."""
    return jax.export.SymbolicScope([c for s in known for c in (f"{s.name} >= {s.lo}", f"{s.name} <= {s.hi}")])


def _aval(input: Input, scope: jax.export.SymbolicScope) -> jax.ShapeDtypeStruct:
    type = input.type
    shape = jax.export.symbolic_shape(",".join(f"{d}" for d in type.shape) + ",", scope=scope) if type.shape else ()
    retyped = input.role == "weight" and (type.dtype.is_block or type.dtype.name in ("f16", "bf16"))
    return jax.ShapeDtypeStruct(shape, f32.numpy if retyped else type.dtype.numpy or "bfloat16")


@dataclass
class _Trace:
    """What the graphs of one trace share: symbols, weights made of constants, and graphs by what was traced."""

    known: Mapping[str, Sym]
    weights: dict[str, Weight] = field(default_factory=dict)
    functions: dict[Any, tuple[Graph, tuple[Node, ...]]] = field(default_factory=dict)
    names: Counter[str] = field(default_factory=Counter)

    def graph(self, name: str, closed: Any, inputs: Sequence[Node]) -> tuple[Graph, tuple[Node, ...]]:
        """The graph of a closed jaxpr. Its large constants are captured: weight inputs that come before `inputs`."""
        body = _Body(self)
        outputs = [
            body.as_traced(value, aval)
            for value, aval in zip(body.evaluate(closed, [n[0] for n in inputs], Origin()), closed.out_avals)
        ]
        captured = tuple(body.captured.values())
        return Graph(name, (*captured, *inputs), tuple(outputs)), captured

    def function(self, eqn: Any, operands: Sequence[Value]) -> tuple[Graph, tuple[Node, ...]]:
        """The graph of a jitted function, shared by every use of the same jaxpr on operands of the same types and roles."""
        closed, name = eqn.params["jaxpr"], eqn.params["name"]
        key = closed.jaxpr, tuple((v.type, _role(v)) for v in operands)
        if key not in self.functions:
            names = _argument_names(closed, len(operands))
            inputs = [make_input(n, _role(v), v.type) for n, v in zip(names, operands)]
            self.names[name] += 1
            unique = name if self.names[name] == 1 else f"{name}_{self.names[name]}"
            self.functions[key] = self.graph(unique, closed, inputs)
        return self.functions[key]

    def dim(self, dim: Any) -> Dim:
        return int(dim) if isinstance(dim, (int, np.integer)) else parse_dim(str(dim), self.known)

    def shape(self, shape: Sequence[Any]) -> tuple[Dim, ...]:
        return tuple(self.dim(d) for d in shape)

    def type(self, aval: Any) -> Type:
        if str(aval.dtype) not in NAMED_DTYPES:
            raise IRError(f"the dtype {aval.dtype} is not supported")
        return Type(self.shape(aval.shape), NAMED_DTYPES[str(aval.dtype)])


def _role(value: Value) -> str:
    return value.node.attr("role") if value.node.op is INPUT else "arg"


def _argument_names(closed: Any, count: int) -> list[str]:
    """The parameters of a jitted function; an entry of a dict by its key, as in weights['attn_q.weight']."""
    names = list(getattr(getattr(closed.jaxpr, "debug_info", None), "arg_names", None) or ())
    if len(names) != count or not all(names):
        return [f"arg{i}" for i in range(count)]
    short = [".".join(re.findall(r"\['(.*?)'\]", n)) or re.sub(r"\[(.*?)\]", r".\1", n) for n in names]
    return [s if short.count(s) == 1 else n for s, n in zip(short, names)]


class _Body:
    """One graph while it is built."""

    def __init__(self, trace: _Trace) -> None:
        self.trace = trace
        self.captured: dict[str, Node] = {}
        self.dequantized: dict[Value, Value] = {}
        self.origin = Origin()

    def evaluate(self, closed: Any, operands: Sequence[Value], outer: Origin) -> list[Value]:
        """Applies a jaxpr to values. `outer` is where it is called: it leads the paths, and stands in for lost sources."""
        jaxpr = getattr(closed, "jaxpr", closed)
        environment: dict[Any, Value] = dict(zip(jaxpr.invars, operands, strict=True))
        environment |= {var: self.constant(value) for var, value in zip(jaxpr.constvars, getattr(closed, "consts", ()))}

        def read(atom: Any) -> Value:
            return self.constant(np.asarray(atom.val, atom.aval.dtype)) if hasattr(atom, "val") else environment[atom]

        for eqn in jaxpr.eqns:
            scope = (
                re.sub(r"\w+\(|\)", "", str(eqn.source_info.name_stack)).replace("/", ".").strip(".")
            )  # no vmap(...)
            sources = frozenset(filter(None, [_location(eqn)])) or outer.sources
            self.origin = Origin(".".join(filter(None, (outer.path, scope))), sources)
            environment |= zip(eqn.outvars, self.apply(eqn, [read(v) for v in eqn.invars]), strict=True)
        return [read(v) for v in jaxpr.outvars]

    def apply(self, eqn: Any, operands: list[Value]) -> Sequence[Value]:
        name, params, origin = eqn.primitive.name, eqn.params, self.origin
        op = params["name"].removeprefix(named_ops.PREFIX) if name == "composite" else ""
        if op and op != params["name"]:
            attrs = {key: tree.unflatten(leaves) for key, leaves, tree in params["attributes"]}
            formats = [(op, i) in TAKES_FORMATS for i in range(len(operands))]
            plain = [
                v if takes else self.as_traced(v, var.aval) for v, var, takes in zip(operands, eqn.invars, formats)
            ]
            results: Sequence[Value] = self.make(op, *plain, **attrs)
        elif name in ("jit", "pjit") and _is_users(params["jaxpr"]):
            graph, captured = self.trace.function(eqn, operands)
            self.origin = origin
            return self.make("call", *self.capture(captured), *operands, graph=graph)
        elif name in INLINED:
            inner = next(params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr", "call") if key in params)
            return self.evaluate(inner, operands, origin)
        elif name in PRIMITIVES:
            types = [self.trace.type(v.aval) for v in eqn.outvars]
            plain = [self.as_traced(v, var.aval) for v, var in zip(operands, eqn.invars)]
            results = PRIMITIVES[name](self, _plain_integers(params), plain, types)
        else:
            raise InfercError(
                f"the JAX operation {name!r} is not supported (used at {_location(eqn, full=True) or ', '.join(origin.sources)}); "
                "write that line with other operations"
            )
        for var, value in zip(eqn.outvars, results, strict=True):
            if value.type != (said := self.trace.type(var.aval)):
                raise IRError(f"{op or name} at {origin}: the op infers {value.type}, JAX says {said}")
        return results

    def make(self, op: str, *operands: Value, **attrs: Any) -> tuple[Value, ...]:
        """Applies an op of the IR here."""
        if op not in OPS:
            raise IRError(f"{op} at {self.origin}: the composite {named_ops.PREFIX}{op} is no op of the IR")
        return make(OPS[op], *operands, origin=self.origin, **attrs).values

    def as_traced(self, value: Value, aval: Any) -> Value:
        """A weight in the f32 that it was traced as; any other value as it is."""
        if str(aval.dtype) == value.dtype.numpy or value.dtype.name == str(aval.dtype).replace("bfloat16", "bf16"):
            return value
        if value not in self.dequantized:
            self.dequantized[value] = self.make("dequantize", value)[0]
        return self.dequantized[value]

    def constant(self, value: Any) -> Value:
        """A constant node, or above CONSTANT_BYTES a weight that this graph captures."""
        array = np.asarray(value)
        type = self.trace.type(array)
        if array.nbytes <= CONSTANT_BYTES:
            return self.make("constant", value=array.tobytes(), type=type)[0]
        bits = array.view(np.uint16) if type.dtype.name == "bf16" else array
        digest = hashlib.sha256(repr(type).encode() + bits.tobytes()).hexdigest()
        weight = Weight(f"constants.{digest[:12]}", type, lambda: bits)
        self.trace.weights.setdefault(weight.name, weight)
        return self.capture((make_input(weight.name, "weight", type),))[0]

    def capture(self, weights: Sequence[Node]) -> list[Value]:
        """This graph's own inputs for weights that a graph below captured."""
        return [self.captured.setdefault(n.attr("name"), n)[0] for n in weights]

    def branches(self, jaxprs: Sequence[Any], operand_types: Sequence[Sequence[Type]], names: Sequence[str]):
        """Graphs of control flow with one list of captured weights before their inputs, and that list in this graph."""
        built = []
        for closed, types, name in zip(jaxprs, operand_types, names):
            origin = self.origin
            inputs = [make_input(f"arg{i}", "arg", t) for i, t in enumerate(types)]
            built.append((*self.trace.graph(name, closed, inputs), inputs))
            self.origin = origin
        union = {n.attr("name"): n for _, captured, _ in built for n in captured}
        graphs = []
        for graph, captured, inputs in built:
            own = {n.attr("name"): n for n in captured}
            leading = tuple(own.get(k) or make_input(k, "weight", n.types[0]) for k, n in union.items())
            graphs.append(Graph(graph.name, (*leading, *inputs), graph.outputs))
        return graphs, self.capture(tuple(union.values()))


def _plain_integers(params: Any) -> Any:
    """Parameters with Python integers: vmap leaves NumPy's, which the IR does not take for dimensions."""
    match params:
        case np.integer():
            return int(params)
        case dict():
            return {k: _plain_integers(v) for k, v in params.items()}
        case tuple() if type(params) is tuple:
            return tuple(map(_plain_integers, params))
    return params


def _location(eqn: Any, full: bool = False) -> str:
    """The user's line that made an equation, as file:line; "" where JAX kept none."""
    traceback = eqn.source_info.traceback
    for frame in traceback.frames if traceback else ():
        if not frame.file_name.startswith(LIBRARY):
            return f"{frame.file_name if full else Path(frame.file_name).name}:{frame.line_num}"
    return ""


def _is_users(closed: Any) -> bool:
    """Whether a jitted function is the user's: jax.numpy is made of jitted helpers too, and those are inlined."""
    source = getattr(getattr(closed.jaxpr, "debug_info", None), "func_src_info", None) or ""
    return bool(source) and LIBRARY[0] not in source


INLINED = frozenset(
    "jit pjit closed_call core_call custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr remat remat2 checkpoint "
    "custom_vmap_call composite".split()
)

# --- Primitives: each (body, params, operands, result types) -> values ---

Lowering = Callable[[_Body, Mapping[str, Any], list[Value], list[Type]], Sequence[Value]]


def _to_shape(body: _Body, value: Value, shape: tuple[Dim, ...]) -> Value:
    """JAX lets scalars and axes of 1 stand beside an array in elementwise operations; the IR broadcasts them."""
    if value.shape == shape:
        return value
    return body.make("broadcast", value, shape=shape, dims=tuple(range(len(value.shape))))[0]


def _elementwise(op: str, **attrs: Any) -> Lowering:
    def lower(body: _Body, params: Mapping[str, Any], operands: list[Value], types: list[Type]) -> Sequence[Value]:
        return body.make(op, *(_to_shape(body, v, types[0].shape) for v in operands), **attrs)

    return lower


def _simple(op: str, **attrs: Callable[[_Body, Mapping[str, Any], list[Value], list[Type]], Any]) -> Lowering:
    """An op whose attributes are each a function of what there is."""

    def lower(body: _Body, params: Mapping[str, Any], operands: list[Value], types: list[Type]) -> Sequence[Value]:
        return body.make(op, *operands, **{k: f(body, params, operands, types) for k, f in attrs.items()})

    return lower


def _param(name: str) -> Callable[..., Any]:
    return lambda body, params, operands, types: params[name]


def _dims(name: str) -> Callable[..., Any]:
    return lambda body, params, operands, types: body.trace.shape(params[name])


def _shape_of_result(body: _Body, params: Mapping[str, Any], operands: list[Value], types: list[Type]) -> Any:
    return types[0].shape


def _identity(body: _Body, params: Mapping[str, Any], operands: list[Value], types: list[Type]) -> Sequence[Value]:
    return operands


def _convert(body: _Body, params: Mapping[str, Any], operands: list[Value], types: list[Type]) -> Sequence[Value]:
    x = operands[0]
    return [x] if x.dtype == types[0].dtype else body.make("convert", x, dtype=types[0].dtype)


def _square(body: _Body, params: Mapping[str, Any], operands: list[Value], types: list[Type]) -> Sequence[Value]:
    return body.make("mul", operands[0], operands[0])


def _filled(body: _Body, value: float, type: Type) -> Value:
    """An array of one number."""
    scalar = np.asarray(value, jax.numpy.dtype(type.dtype.numpy or "bfloat16"))
    return _to_shape(body, body.constant(scalar), type.shape)


def _integer_pow(body: _Body, params: Mapping[str, Any], operands: list[Value], types: list[Type]) -> Sequence[Value]:
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


def _pow(body: _Body, params: Mapping[str, Any], operands: list[Value], types: list[Type]) -> Sequence[Value]:
    x, y = (_to_shape(body, v, types[0].shape) for v in operands)
    return body.make("pow", x, y if y.dtype == x.dtype else body.make("convert", y, dtype=x.dtype)[0])


def _exp2(body: _Body, params: Mapping[str, Any], operands: list[Value], types: list[Type]) -> Sequence[Value]:
    return body.make("exp", *body.make("mul", operands[0], _filled(body, np.log(2.0), types[0])))


def _erfc(body: _Body, params: Mapping[str, Any], operands: list[Value], types: list[Type]) -> Sequence[Value]:
    return body.make("sub", _filled(body, 1.0, types[0]), *body.make("erf", operands[0]))


def _tan(body: _Body, params: Mapping[str, Any], operands: list[Value], types: list[Type]) -> Sequence[Value]:
    return body.make("div", *body.make("sin", operands[0]), *body.make("cos", operands[0]))


def _round(body: _Body, params: Mapping[str, Any], operands: list[Value], types: list[Type]) -> Sequence[Value]:
    return body.make(
        "round", operands[0], mode="even" if params["rounding_method"].name == "TO_NEAREST_EVEN" else "away"
    )


def _select_n(body: _Body, params: Mapping[str, Any], operands: list[Value], types: list[Type]) -> Sequence[Value]:
    """The case that `which` names; for two cases `which` is a flag."""
    which, *cases = (_to_shape(body, v, types[0].shape) for v in operands)
    if which.dtype.name == "bool":
        return body.make("select", which, cases[1], cases[0]) if len(cases) == 2 else cases
    result = cases[-1]
    for index, case in reversed(list(enumerate(cases[:-1]))):
        below = body.make("compare", which, _filled(body, index, which.type), direction="le")[0]
        result = body.make("select", below, case, result)[0]
    return [result]


def _slice(body: _Body, params: Mapping[str, Any], operands: list[Value], types: list[Type]) -> Sequence[Value]:
    start, limit = body.trace.shape(params["start_indices"]), body.trace.shape(params["limit_indices"])
    return body.make("slice", operands[0], start=start, limit=limit, stride=params["strides"] or (1,) * len(start))


def _split(body: _Body, params: Mapping[str, Any], operands: list[Value], types: list[Type]) -> Sequence[Value]:
    axis, shape = params["axis"], operands[0].shape
    ends = list(accumulate(body.trace.shape(params["sizes"])))
    zeros, ones = (0,) * len(shape), (1,) * len(shape)
    results = []
    for low, high in zip([0, *ends], ends):
        start, limit = (*zeros[:axis], low, *zeros[axis + 1 :]), (*shape[:axis], high, *shape[axis + 1 :])
        results += body.make("slice", operands[0], start=start, limit=limit, stride=ones)
    return results


def _pad(body: _Body, params: Mapping[str, Any], operands: list[Value], types: list[Type]) -> Sequence[Value]:
    low, high, interior = (body.trace.shape(column) for column in zip(*params["padding_config"])) or ((), (), ())
    return body.make("pad", *operands, low=low, high=high, interior=interior)


def _reduce(kind: str) -> Lowering:
    def lower(body: _Body, params: Mapping[str, Any], operands: list[Value], types: list[Type]) -> Sequence[Value]:
        return body.make("reduce", operands[0], kind=kind, axes=tuple(sorted(params["axes"])))

    return lower


def _dot_general(body: _Body, params: Mapping[str, Any], operands: list[Value], types: list[Type]) -> Sequence[Value]:
    contracting, batch = params["dimension_numbers"]
    return body.make("dot_general", *operands, contracting=contracting, batch=batch, dtype=types[0].dtype)


def _starts(body: _Body, values: Sequence[Value]) -> list[Value]:
    return [v if v.dtype == i32 else body.make("convert", v, dtype=i32)[0] for v in values]


def _dynamic_slice(body: _Body, params: Mapping[str, Any], operands: list[Value], types: list[Type]) -> Sequence[Value]:
    return body.make("dynamic_slice", operands[0], *_starts(body, operands[1:]), sizes=types[0].shape)


def _dynamic_update_slice(body: _Body, params: Mapping[str, Any], operands: list[Value], types: list[Type]):
    return body.make("dynamic_update_slice", *operands[:2], *_starts(body, operands[2:]))


GATHER_MODES = {"CLIP": "clip", "FILL_OR_DROP": "fill", "PROMISE_IN_BOUNDS": "promise"}
GATHER_FIELDS = ("offset_dims", "collapsed_slice_dims", "start_index_map", "operand_batching_dims",
                 "start_indices_batching_dims")  # fmt: skip
SCATTER_FIELDS = ("update_window_dims", "inserted_window_dims", "scatter_dims_to_operand_dims",
                  "operand_batching_dims", "scatter_indices_batching_dims")  # fmt: skip


def _fields(params: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    numbers = params["dimension_numbers"]
    return {name: tuple(getattr(numbers, name)) for name in names} | {"mode": GATHER_MODES[params["mode"].name]}


def _gather(body: _Body, params: Mapping[str, Any], operands: list[Value], types: list[Type]) -> Sequence[Value]:
    sizes = body.trace.shape(params["slice_sizes"])
    fields = _fields(params, GATHER_FIELDS)
    return body.make("gather", *operands, slice_sizes=sizes, fill_value=params.get("fill_value"), **fields)


def _scatter(kind: str) -> Lowering:
    def lower(body: _Body, params: Mapping[str, Any], operands: list[Value], types: list[Type]) -> Sequence[Value]:
        return body.make("scatter", *operands, kind=kind, **_fields(params, SCATTER_FIELDS))

    return lower


def _types(values: Sequence[Value]) -> list[Type]:
    return [v.type for v in values]


def _cond(body: _Body, params: Mapping[str, Any], operands: list[Value], types: list[Type]) -> Sequence[Value]:
    index, *rest = operands
    jaxprs = params["branches"]
    graphs, captured = body.branches(jaxprs, [_types(rest)] * len(jaxprs), [f"branch{i}" for i in range(len(jaxprs))])
    return body.make("cond", index, *captured, *rest, branches=tuple(graphs))


def _while(body: _Body, params: Mapping[str, Any], operands: list[Value], types: list[Type]) -> Sequence[Value]:
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


def _scan(body: _Body, params: Mapping[str, Any], operands: list[Value], types: list[Type]) -> Sequence[Value]:
    fixed = params["num_consts"] + params["num_carry"]
    rows = [Type(t.shape[1:], t.dtype) for t in _types(operands[fixed:])]
    graphs, captured = body.branches([params["jaxpr"]], [[*_types(operands[:fixed]), *rows]], ("body",))
    return body.make(
        "scan", *captured, *operands, body=graphs[0], length=body.trace.dim(params["length"]),
        consts=params["num_consts"] + len(captured), carry=params["num_carry"], reverse=params["reverse"],
    )  # fmt: skip


SAME_NAME = (
    "add sub mul div max min rem neg abs sign floor ceil exp log expm1 log1p tanh logistic sqrt rsqrt sin cos erf not and "
    "or xor shift_left shift_right_logical shift_right_arithmetic is_finite clamp"
)
PRIMITIVES: dict[str, Lowering] = {
    **{name: _elementwise(name) for name in SAME_NAME.split()},
    **{name: _elementwise("compare", direction=name) for name in "eq ne lt le gt ge".split()},
    **{f"reduce_{kind}": _reduce(kind) for kind in "sum max min prod and or".split()},
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
    "cumsum": _simple("cumsum", axis=_param("axis"), reverse=_param("reverse")),
    "sort": _simple("sort", axis=_param("dimension"), keys=_param("num_keys")),
    "top_k": _simple("top_k", k=_param("k")),
    "dot_general": _dot_general,
    "gather": _gather,
    "scatter": _scatter("set"),
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "cond": _cond,
    "while": _while,
    "scan": _scan,
}

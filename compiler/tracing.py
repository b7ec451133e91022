"""JAX functions → graphs, by way of `jax.make_jaxpr`.

Composites named "inferc.<op>" stay whole, functions under `jax.jit` become `call` with one shared graph for equal
bodies, JAX's own jitted helpers are inlined, every other primitive is looked up in `compiler.primitives`. The type that
each op infers must be the one that JAX says; weights are traced as f32 and keep their own type in the graph.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from traceback import walk_tb
from typing import Any

import jax
import jax.export
import numpy as np

from ..errors import InfercError
from ..ir.graph import INPUT, Graph, IRError, Node, Origin, Value, Weight, make, make_input
from ..ir.ops import OPS
from ..ir.types import DTYPES, Dim, Sym, Type, f32, parse_dim, symbols
from . import named_ops, primitives_complex
from .primitives import PRIMITIVES
from .primitives_complex import Complex, is_complex
from .primitives_random import data_of, is_key, select_keys, starts_with_zero, with_data
from .primitives_refused import REFUSED

CONSTANT_BYTES = 1024  # a larger constant becomes a weight
# Operands, by op and index, that take block and half-float weights as they are. Elsewhere `dequantize` comes between.
TAKES_FORMATS = {("embedding", 0), ("linear", 1), ("expert_linear", 1)}
# Frames in these are not the user's.
LIBRARY = (str(Path(jax.__file__).parent), named_ops.__file__, __file__, str(Path(__file__).parent / "primitives"),
           str(Path(__file__).parent / "frontends"))  # fmt: skip
NAMED_DTYPES = {d.numpy or "bfloat16": d for d in DTYPES.values() if d.numpy or d.name == "bf16"}


@dataclass(frozen=True)
class Input:
    """An operand of the traced function: `role` as in `ir.graph`, `type` as in the graph.

    A weight `as_is` is traced in its own dtype, one of elements; others are traced as f32.
    """

    name: str
    role: str
    type: Type
    as_is: bool = False


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
    retyped = input.role == "weight" and not input.as_is and (type.dtype.is_block or type.dtype.name in ("f16", "bf16"))
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
        body = Body(self)
        outputs = [
            body.as_traced(value, aval)
            for value, aval in zip(body.evaluate(closed, [n[0] for n in inputs], Origin()), closed.out_avals)
        ]
        captured = tuple(body.captured.values())
        if any(isinstance(v, Complex) for v in outputs):
            raise InfercError(f"{name} returns complex numbers: return their real and imaginary parts")
        return Graph(name, (*captured, *inputs), tuple(outputs)), captured

    def function(self, eqn: Any, operands: Sequence[Value]) -> tuple[Graph, tuple[Node, ...]]:
        """The graph of a jitted function, shared by every use of one jaxpr on operands of the same types and roles."""
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
        """That of the graph: of complex numbers, of each part; of random keys, of their data."""
        if is_key(aval.dtype):
            aval = data_of(aval)
        if is_complex(aval.dtype):
            return Type(self.shape(aval.shape), DTYPES["f32" if aval.dtype == np.complex64 else "f64"])
        if str(aval.dtype) not in NAMED_DTYPES:
            raise IRError(f"the dtype {aval.dtype} is not supported; use floats of 16 bits or integers of 8, or more")
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


class Body:
    """One graph while it is built."""

    def __init__(self, trace: _Trace) -> None:
        self.trace = trace
        self.captured: dict[str, Node] = {}
        self.dequantized: dict[Value, Value] = {}
        self.origin = Origin()
        self.line = ""  # of the user's source, with its whole path
        self.avals: list[Any] = []  # what JAX says of the operands of the equation at hand

    def evaluate(self, closed: Any, operands: Sequence[Value], outer: Origin) -> list[Value]:
        """Applies a jaxpr to values. `outer` is where it is called: it leads paths, and stands in for lost sources."""
        jaxpr = getattr(closed, "jaxpr", closed)
        environment: dict[Any, Any] = dict(zip(jaxpr.invars, operands, strict=True))
        environment |= {var: self.constant(value) for var, value in zip(jaxpr.constvars, getattr(closed, "consts", ()))}

        def read(atom: Any) -> Any:
            if not hasattr(atom, "val"):
                return environment[atom]
            return self.constant(atom.val if is_key(atom.aval.dtype) else np.asarray(atom.val, atom.aval.dtype))

        line = self.line
        for eqn in jaxpr.eqns:
            self.line = _location(eqn, full=True) or line
            scope = (
                re.sub(r"\w+\(|\)", "", str(eqn.source_info.name_stack)).replace("/", ".").strip(".")
            )  # no vmap(...)
            sources = frozenset(filter(None, [_location(eqn)])) or outer.sources
            self.origin = Origin(".".join(filter(None, (outer.path, scope))), sources)
            environment |= zip(eqn.outvars, self.apply(eqn, [read(v) for v in eqn.invars]), strict=True)
        self.line = line
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
            results: Sequence[Any] = self.make(op, *plain, **attrs)
        elif name in ("jit", "pjit") and _is_users(params["jaxpr"]) and not self.has_complex(eqn, operands):
            graph, captured = self.trace.function(eqn, operands)
            return self.make("call", *self.capture(captured), *operands, graph=graph)
        elif name in INLINED:
            inner = next(params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr", "call") if key in params)
            return self.evaluate(inner, operands, origin)
        elif name in PRIMITIVES or (name not in REFUSED and self.has_complex(eqn, operands)):
            plain = [self.as_traced(v, var.aval) for v, var in zip(operands, eqn.invars)]
            self.avals = [v.aval for v in eqn.invars]
            try:
                types = [self.trace.type(v.aval) for v in eqn.outvars]
                if self.has_complex(eqn, operands):
                    results = primitives_complex.apply(self, name, params, plain, types)
                elif name not in CONTROL and not name.startswith("random_") and any(
                    is_key(v.aval.dtype) for v in eqn.outvars
                ):
                    results = self.moved_keys(name, params, plain, types, eqn.outvars[0].aval)
                else:
                    results = self.primitive(name, params, plain, types)
            except IRError as error:
                raise InfercError(f"{name} (used at {self.line}): {error}") from error
        else:
            why = REFUSED.get(name, "write that line with other operations")
            raise InfercError(f"the JAX operation {name!r} is not supported (used at {self.line}); {why}")
        for var, value in zip(eqn.outvars, results, strict=True):
            said = self.trace.type(var.aval)
            for part in (value.re, value.im) if isinstance(value, Complex) else (value,):
                if part.type != said:
                    raise IRError(f"{op or name} at {origin}: the op infers {part.type}, JAX says {said}")
        return results

    def has_complex(self, eqn: Any, operands: Sequence[Any]) -> bool:
        """Whether an equation takes or gives complex numbers."""
        return any(isinstance(v, Complex) for v in operands) or any(is_complex(v.aval.dtype) for v in eqn.outvars)

    def primitive(self, name: str, params: Any, operands: list[Value], types: list[Type]) -> Sequence[Value]:
        """A row of the table, applied here."""
        return PRIMITIVES[name](self, _plain_integers(params), operands, types)

    def moved_keys(self, name: str, params: Any, operands: list[Value], types: list[Type], aval: Any):
        """A primitive that moves typed random keys, on their data."""
        if name == "select_n":
            return self.primitive(name, params, select_keys(self, operands, types[0].shape), types)
        if name == "dynamic_slice":
            return self.primitive(name, params, starts_with_zero(self, operands), types)
        return self.primitive(name, with_data(name, params, aval), operands, types)

    def inline(self, function: Callable[..., Any], operands: Sequence[Value], keys: bool = False) -> Sequence[Value]:
        """The results of a JAX function of the operands of the equation at hand, traced here. Random keys are given as
        `keys`, else as their data."""
        avals = (data_of(a) if is_key(a.dtype) and not keys else jax.ShapeDtypeStruct(a.shape, a.dtype)
                 for a in self.avals)  # fmt: skip
        closed = jax.make_jaxpr(lambda *arrays: jax.tree.leaves(function(*arrays)))(*avals)
        return self.evaluate(closed, operands, self.origin)

    def make(self, op: str, *operands: Value, **attrs: Any) -> tuple[Value, ...]:
        """Applies an op of the IR here."""
        if op not in OPS:
            raise IRError(f"{op} at {self.origin}: the composite {named_ops.PREFIX}{op} is no op of the IR")
        return make(OPS[op], *operands, origin=self.origin, **attrs).values

    def as_traced(self, value: Value, aval: Any) -> Value:
        """A weight in the f32 that it was traced as; any other value as it is. Raises IRError for complex numbers where
        a graph ends."""
        if isinstance(value, Complex) or is_key(aval.dtype):
            return value
        if str(aval.dtype) == value.dtype.numpy or value.dtype.name == str(aval.dtype).replace("bfloat16", "bf16"):
            return value
        if value not in self.dequantized:
            self.dequantized[value] = self.make("dequantize", value)[0]
        return self.dequantized[value]

    def constant(self, value: Any) -> Any:
        """A constant node, or above CONSTANT_BYTES a weight that this graph captures; of complex numbers both parts."""
        if isinstance(value, jax.core.Tracer):
            raise InfercError(
                "a traced array was stored outside of the function, a side effect, and read again: return it instead"
            )
        array = np.asarray(jax.random.key_data(value) if is_key(getattr(value, "dtype", np.int32)) else value)
        if is_complex(array.dtype):
            return Complex(*(self.constant(np.array(part)) for part in (array.real, array.imag)))
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
        for n in weights:
            if (name := n.attr("name")) not in self.captured:
                self.captured[name] = make_input(name, "weight", n.types[0])
        return [self.captured[n.attr("name")][0] for n in weights]

    def branches(self, jaxprs: Sequence[Any], operand_types: Sequence[Sequence[Type]], names: Sequence[str]):
        """Graphs of control flow with one list of captured weights before their inputs, and that list in this graph."""
        built = []
        for closed, types, name in zip(jaxprs, operand_types, names):
            inputs = [make_input(f"arg{i}", "arg", t) for i, t in enumerate(types)]
            built.append((*self.trace.graph(name, closed, inputs), inputs))
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
    frames = [f for f in (traceback.frames if traceback else ()) if not f.file_name.startswith(LIBRARY)]
    if full:  # the line of the user's own that it came from, before that of a library
        frames = [f for f in frames if "site-packages" not in f.file_name] or frames
    if not frames:
        return ""
    return f"{frames[0].file_name if full else Path(frames[0].file_name).name}:{frames[0].line_num}"


def user_line(traceback: Any) -> str:
    """The innermost line outside of libraries and this package in an exception's traceback, as file:line; "" for none.
    Where all is of libraries, the innermost outside of JAX."""
    frames = [] if traceback is None else [(f.f_code.co_filename, n) for f, n in walk_tb(traceback)]
    package = str(Path(__file__).parent.parent)
    own = [f"{file}:{line}" for file, line in frames if not file.startswith((*LIBRARY, package, "<"))]
    return ([line for line in own if "site-packages" not in line] or own or [""])[-1]


def _is_users(closed: Any) -> bool:
    """Whether a jitted function is the user's: jax.numpy is made of jitted helpers too, and those are inlined."""
    source = getattr(getattr(closed.jaxpr, "debug_info", None), "func_src_info", None) or ""
    return bool(source) and LIBRARY[0] not in source


CONTROL = frozenset(("scan", "while", "cond"))  # what they carry may be random keys: they look at types alone
INLINED = frozenset(
    "jit pjit closed_call core_call custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr remat remat2 checkpoint "
    "custom_vmap_call composite".split()
)

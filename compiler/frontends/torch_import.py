"""Graphs of `torch.export` → graphs of the IR: values, dimensions, and what a rule of the ATen table is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import reduce
from math import prod
from operator import add, mul, sub, truediv
from typing import Any

import numpy as np
import sympy  # type: ignore[import-untyped]
import torch
from torch.fx import Node

from ...errors import InfercError
from ...ir.graph import IRError, Origin, Value, Weight
from ...ir.types import DTYPES, Dim, DType, Type, array_dtype, bf16, dim_max, dim_min, f64, floordiv, mod
from .arrays import Array, Body
from .refused import torch_advice

OF_TORCH: Mapping[torch.dtype, DType] = {
    torch.float32: DTYPES["f32"], torch.float16: DTYPES["f16"], torch.bfloat16: DTYPES["bf16"],
    torch.float64: DTYPES["f64"], torch.bool: DTYPES["bool"], torch.int8: DTYPES["i8"], torch.int16: DTYPES["i16"],
    torch.int32: DTYPES["i32"], torch.int64: DTYPES["i64"], torch.uint8: DTYPES["u8"], torch.uint16: DTYPES["u16"],
    torch.uint32: DTYPES["u32"], torch.uint64: DTYPES["u64"],
}  # fmt: skip
TO_TORCH = {ours: theirs for theirs, ours in OF_TORCH.items()}
PARTS = {torch.complex64: torch.float32, torch.complex128: torch.float64}  # of complex numbers, what each part is
LARGEST_DIM = 1 << 16


def dtype_of(dtype: torch.dtype, where: str) -> DType:
    """The dtype of the IR. Raises InfercError for one that it has not."""
    if dtype not in OF_TORCH:
        raise InfercError(f"{where}: tensors of {dtype} are not supported; convert the model to another dtype")
    return OF_TORCH[dtype]


def array_of(tensor: torch.Tensor) -> np.ndarray:
    """A tensor's memory as the interpreter holds values, without a copy where it is contiguous."""
    plain = tensor.detach().cpu().contiguous()
    return plain.view(torch.uint16).numpy() if plain.dtype == torch.bfloat16 else plain.numpy()


def dim_of(size: Any, known: Mapping[str, Dim]) -> Dim:
    """A size, which may be an expression over torch's symbols. Raises IRError for an operation that sizes have not."""
    if isinstance(size, (int, np.integer)):
        return int(size)
    return _expression(size.node.expr, known)


def _expression(e: sympy.Expr, known: Mapping[str, Dim]) -> Dim:
    if e.is_Integer:
        return int(e)
    if e.is_Symbol:
        if str(e) not in known:
            raise IRError(f"{e} is a number that depends on the data; compute with a tensor instead")
        return known[str(e)]
    name = type(e).__name__
    if name in ROUNDED:
        above, below = _fraction(e.args[0], known)
        return floordiv(above, below) if name != "CeilToInt" else -floordiv(-above, below)
    if e.is_Pow or name == "PowByNatural":
        if e.args[1].is_Integer and int(e.args[1]) > 0:
            return prod([_expression(e.args[0], known)] * int(e.args[1]))
    elif name in OF_SIZES:
        return OF_SIZES[name](*(_expression(a, known) for a in e.args))
    raise IRError(f"the size {e} is none that can be computed; give the dimension a fixed size")


ROUNDED = ("TruncToInt", "FloorToInt", "CeilToInt", "floor")  # sizes are never negative
OF_SIZES: Mapping[str, Callable[..., Dim]] = {
    "Add": lambda *args: reduce(add, args), "Mul": lambda *args: prod(args), "FloorDiv": floordiv,
    "CleanDiv": floordiv, "Mod": mod, "PythonMod": mod, "ModularIndexing": lambda a, b, c: mod(floordiv(a, b), c),
    "Max": lambda *args: reduce(dim_max, args), "Min": lambda *args: reduce(dim_min, args),
}  # fmt: skip


def _fraction(e: sympy.Expr, known: Mapping[str, Dim]) -> tuple[Dim, int]:
    """A float that is a size times or plus numbers, as a fraction."""
    name = type(e).__name__
    if e.is_Float or e.is_Rational:
        number = Fraction(float(e)).limit_denominator(1 << 12)
        return number.numerator, number.denominator
    if name == "ToFloat":
        return _expression(e.args[0], known), 1
    if name in ("Add", "Mul", "IntTrueDiv", "FloatTrueDiv"):
        (a, b), *rest = (_fraction(x, known) for x in e.args)
        for c, d in rest:
            if name == "Add":
                a, b = a * d + c * b, b * d
            elif name == "Mul":
                a, b = a * c, b * d
            elif isinstance(c, int) and c > 0:
                a, b = a * d, b * c
            else:
                raise IRError(f"the size {e} is none that can be computed; give the dimension a fixed size")
        return a, b
    return _expression(e, known), 1


def number_of(e: sympy.Expr, known: Mapping[str, Dim], body: Body) -> Array:
    """A float that is computed from sizes, as a scalar in f64, or a comparison of such. Raises IRError for a function
    that is not known."""
    if e.is_Float or e.is_Rational:
        return body.constant(float(e), f64)
    name = type(e).__name__
    if name in OF_NUMBERS:
        return reduce(OF_NUMBERS[name], (number_of(a, known, body) for a in e.args))
    if name == "Not":
        return ~number_of(e.args[0], known, body)
    if name.startswith("OpaqueUnaryFn_") and (op := name.removeprefix("OpaqueUnaryFn_")) in UNARY:
        return number_of(e.args[0], known, body).unary(op)
    return body.dim(_expression(e.args[0] if name == "ToFloat" else e, known), f64)


UNARY = ("sqrt", "exp", "log", "sin", "cos", "tanh")
OF_NUMBERS: Mapping[str, Callable[[Array, Array], Array]] = {
    "Add": add, "Mul": mul, "IntTrueDiv": truediv, "FloatTrueDiv": truediv,
    "Pow": lambda a, b: a.body.apply("pow", a, b), "FloatPow": lambda a, b: a.body.apply("pow", a, b),
    "Max": Array.maximum, "Min": Array.minimum, "And": Array.__and__, "Or": Array.__or__,
    "Equality": lambda a, b: a.compare("eq", b), "Unequality": lambda a, b: a.compare("ne", b),
    "LessThan": Array.__le__, "GreaterThan": Array.__ge__, "StrictLessThan": Array.__lt__,
    "StrictGreaterThan": Array.__gt__,
}  # fmt: skip


def size_in(value: Value) -> Dim:
    """The size that a scalar holds. Raises IRError for one that depends on data."""
    node = value.node
    if node.op.name == "constant" and value.dtype.is_integer:
        return int(np.frombuffer(node.attr("value"), array_dtype(value.type))[0])
    if node.op.name in ("reshape", "convert", "broadcast") and value.dtype.is_integer:
        return size_in(node.inputs[0])
    if node.op.name == "reduce" and node.attr("kind") == "sum" and node.inputs[0].node.op.name == "broadcast":
        (ones,) = node.inputs
        return prod(ones.shape[a] for a in node.attr("axes")) * size_in(ones.node.inputs[0])  # as `length` writes it
    if node.op.name in OF_SCALARS:
        return OF_SCALARS[node.op.name](*(size_in(v) for v in node.inputs))
    raise IRError("a number that depends on the data decides how the program goes on; compute with a tensor instead")


OF_SCALARS: Mapping[str, Callable[..., Dim]] = {"add": add, "sub": sub, "mul": mul, "min": dim_min, "max": dim_max}


@dataclass(frozen=True)
class Complex:
    """Real and imaginary parts of an array, of one type."""

    re: Array
    im: Array

    @property
    def shape(self) -> tuple[Dim, ...]:
        return self.re.shape

    @property
    def rank(self) -> int:
        return self.re.rank


class Unsupported(InfercError):
    """An operation that the table has no row for."""


@dataclass
class Call:
    """One node while its rule runs: arguments by the names of ATen's schema, as attributes, and the expected results.

    Tensors are arrays, sizes dimensions, the rest is as in Python.
    """

    importer: Importer
    node: Node
    arguments: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        if name not in self.arguments:
            raise AttributeError(name)
        return self.arguments[name]

    def get(self, name: str, default: Any = None) -> Any:
        value = self.arguments.get(name)
        return default if value is None else value

    @property
    def body(self) -> Body:
        return self.importer.body

    @property
    def results(self) -> tuple[torch.Tensor, ...]:
        value = self.node.meta.get("val", ())  # an assertion has none
        return tuple(value) if isinstance(value, (tuple, list)) else (value,)

    @property
    def dtype(self) -> DType:
        """That of the first result; of complex numbers, of their parts."""
        dtype = self.results[0].dtype
        return dtype_of(PARTS.get(dtype, dtype), self.where)

    @property
    def shape(self) -> tuple[Dim, ...]:
        """That of the first result."""
        return tuple(self.importer.dim(d) for d in self.results[0].shape)

    def meta(self, name: str) -> Any:
        """An argument as torch knows it: a tensor without data, or a number."""
        names = [a.name for a in self.node.target._schema.arguments]  # type: ignore[union-attr]
        index = names.index(name)
        given = self.node.args[index] if index < len(self.node.args) else self.node.kwargs.get(name)
        return given.meta["val"] if isinstance(given, Node) else given

    @property
    def where(self) -> str:
        return self.importer.located(self.node)

    def error(self, problem: str) -> InfercError:
        return InfercError(f"{self.where}: {problem}")


Rule = Callable[[Call], Any]


@dataclass
class Importer:
    """The graph of one program while it is imported."""

    name: str
    table: Mapping[str, Rule]
    known: dict[str, Dim]  # sizes by torch's names; those of results join them
    complex_table: Mapping[str, Rule] = field(default_factory=dict)  # where an operand or a result is complex
    higher: Mapping[str, Rule] = field(default_factory=dict)  # operations that take graphs
    body: Body = field(default_factory=Body)
    stored: dict[Any, Array] = field(default_factory=dict)  # weights by the memory they lie in

    def dim(self, size: Any) -> Dim:
        return dim_of(size, self.known)

    def type(self, tensor: torch.Tensor, where: str) -> Type:
        return Type(tuple(map(self.dim, tensor.shape)), dtype_of(tensor.dtype, where))

    def weight(self, name: str, tensor: torch.Tensor) -> Array | Complex:
        """A parameter, buffer or constant: tensors that share memory are one weight, small ones are constants. Each
        part of complex numbers is one."""
        if tensor.dtype in PARTS:
            parts = (self.weight(f"{name}.{part}", getattr(tensor.detach(), part).contiguous())
                     for part in ("real", "imag"))  # fmt: skip
            return Complex(*parts)  # type: ignore[arg-type]
        dtype = dtype_of(tensor.dtype, f"{self.name}: {name}")
        if tensor.numel() * tensor.element_size() <= 64:
            bits = array_of(tensor)
            return self.body.constant(bits.view("bfloat16") if dtype == bf16 else bits, dtype)
        key = tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype
        if key not in self.stored:
            type = Type(tuple(tensor.shape), dtype)
            self.stored[key] = self.body.weight(Weight(name, type, lambda: array_of(tensor)))
        return self.stored[key]

    def located(self, node: Node) -> str:
        """The operation, and the user's line that made it."""
        trace = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines() if "File " in line]
        last = f" ({trace[-1]})" if trace else ""
        return f"{self.name}: {node.target}{last}"

    def run(self, nodes: Sequence[Node], values: dict[Node, Any]) -> Any:
        """Imports nodes into `values`, which has the placeholders; what the output node gives."""
        for node in nodes:
            if node.op == "output":
                return self._argument(node.args[0], values)
            if node.op == "call_function":
                values[node] = self.apply(node, values)
            elif node.op == "get_attr":
                values[node] = getattr(node.graph.owning_module, str(node.target))
        return None

    def apply(self, node: Node, values: Mapping[Node, Any]) -> Any:
        made, target = node.meta.get("val"), node.target
        name = str(getattr(target, "__name__", ""))
        if name == "getitem":
            return values[node.args[0]][node.args[1]]  # type: ignore[index]
        if isinstance(made, (torch.SymInt, torch.SymFloat, torch.SymBool, int)) and not isinstance(made, bool):
            return self._number(node, values, made)
        if isinstance(target, torch._ops.HigherOrderOperator):
            rule = self.higher.get(target.name())
            arguments = {"operands": [self._argument(a, values) for a in node.args]}
            name = overload = target.name()
        elif hasattr(target, "_schema"):
            name = target._schema.name.removeprefix("aten::")
            overload = f"{name}.{target._schema.overload_name}".rstrip(".")
            arguments = self._bound(node, values)
            is_complex = _has_complex(list(arguments.values())) or _gives_complex(made)
            table = self.complex_table if is_complex else self.table
            rule = table.get(overload) or table.get(name)
            if rule is None and is_complex and (overload in self.table or name in self.table):
                where = self.located(node)
                raise Unsupported(f"{where}: {overload} of complex numbers is not supported; use torch.view_as_real")
        else:
            raise Unsupported(f"{self.located(node)}: {target} is not supported")
        if rule is None:
            raise Unsupported(
                f"{self.located(node)}: the operation {overload} is not supported; {torch_advice(name)}"
            )
        call = Call(self, node, arguments)
        path = list((node.meta.get("nn_module_stack") or {"": (node.name,)}).values())[-1][0] or node.name
        self.body.origin = Origin(str(path).removeprefix("L['self'].").strip("."), frozenset([node.name]))
        try:
            result = rule(call)
        except IRError as error:
            raise InfercError(f"{call.where}: {error}") from error
        return self._checked(call, result)

    def _number(self, node: Node, values: Mapping[Node, Any], made: Any) -> Dim | Array | None:
        """A number that torch computes from sizes: an integer, which may be an element of a tensor that was made of
        sizes, as a size; others as a scalar. None where only assertions read it and it is not known."""
        try:
            if not isinstance(made, (torch.SymInt, int)):
                return number_of(made.node.expr, self.known, self.body)
            if str(node.target) == "aten._local_scalar_dense.default" and str(made) not in self.known:
                self.known[str(made)] = size_in(values[node.args[0]].value)  # type: ignore[index]
            return self.dim(made)
        except IRError as error:
            if _only_asserted(node):
                return None
            raise InfercError(f"{self.located(node)}: {error}") from error

    def _checked(self, call: Call, result: Any) -> Any:
        """The results in the types that torch says. Raises IRError where shapes differ."""
        if result is None:
            return None
        results = result if isinstance(result, (tuple, list)) else (result,)
        expected = call.results
        made: list[Any] = []
        for r, e in zip(results, expected):
            if not isinstance(r, (Array, Complex)) or not isinstance(e, torch.Tensor):
                made.append(r)
                continue
            for size, ours in zip(e.shape, r.shape):
                if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol:
                    self.known.setdefault(str(size), ours)  # a size that torch does not know
            wanted = Type(tuple(map(self.dim, e.shape)), dtype_of(PARTS.get(e.dtype, e.dtype), call.where))
            parts = [p.astype(wanted.dtype) for p in ((r.re, r.im) if isinstance(r, Complex) else (r,))]
            if parts[0].shape != wanted.shape or (e.dtype in PARTS) != isinstance(r, Complex):
                raise InfercError(f"{call.where}: gives {parts[0].value.type}, torch says {wanted}")
            made.append(Complex(*parts) if isinstance(r, Complex) else parts[0])
        return made if isinstance(result, (tuple, list)) else made[0]

    def _bound(self, node: Node, values: Mapping[Node, Any]) -> dict[str, Any]:
        arguments: dict[str, Any] = {}
        schema = node.target._schema  # type: ignore[union-attr]
        for i, a in enumerate(schema.arguments):
            if i < len(node.args) and not a.kwarg_only:
                value: Any = node.args[i]
            elif a.name in node.kwargs:
                value = node.kwargs[a.name]
            else:
                value = a.default_value if a.has_default_value() else None
            arguments[a.name] = self._argument(value, values)
        return arguments

    def _argument(self, value: Any, values: Mapping[Node, Any]) -> Any:
        if isinstance(value, Node):
            return values[value]
        if isinstance(value, (tuple, list)):
            return [self._argument(v, values) for v in value]
        return self.dim(value) if isinstance(value, torch.SymInt) else value


def _only_asserted(node: Node) -> bool:
    """Whether nothing but assertions reads a number."""
    return all("assert" in str(u.target) or isinstance(u.meta.get("val"), (torch.SymInt, torch.SymBool, bool))
               and _only_asserted(u) for u in node.users)  # fmt: skip


def _has_complex(values: Any) -> bool:
    if isinstance(values, (tuple, list)):
        return any(map(_has_complex, values))
    return isinstance(values, (Complex, complex))


def _gives_complex(made: Any) -> bool:
    if isinstance(made, (tuple, list)):
        return any(map(_gives_complex, made))
    return isinstance(made, torch.Tensor) and made.dtype in PARTS

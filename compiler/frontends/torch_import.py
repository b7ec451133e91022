"""Graphs of `torch.export` → graphs of the IR: values, dimensions, and what a rule of the ATen table is given."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from ...errors import InfercError
from ...ir.graph import IRError, Origin, Weight, make_input
from ...ir.graph import Node as IRNode
from ...ir.types import DTYPES, Dim, DType, Expr, Type, bf16, f64
from .arrays import Array, Body, stack
from .refused import TORCH, torch_advice
from .torch_sizes import COMPUTE, OF_PYTHON, dim_of, number_of, size_in

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


def _late(call: Call) -> list[str]:
    """The arguments that are arrays where ATen takes numbers."""
    schema = call.node.target._schema.arguments if hasattr(call.node.target, "_schema") else ()  # type: ignore[union-attr]
    found = {a.name: call.arguments[a.name] for a in schema if "Tensor" not in str(a.type)}
    return [n for n, v in found.items() if any(isinstance(x, Array) for x in (v if isinstance(v, list) else [v]))]


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
    arguments: list[IRNode] = field(default_factory=list)  # inputs of the program, so far
    of_pairs: set[str] = field(default_factory=set)  # those of complex numbers
    random: int = 0  # operations that draw random numbers, so far
    around: list[Node] = field(default_factory=list)  # operations of control flow that hold the node at hand

    @cached_property
    def seed(self) -> Array:
        """What random numbers are made of: an argument of programs that draw some."""
        name = "random_seed" if any(n.attr("name") == "seed" for n in self.arguments) else "seed"
        self.arguments.append(make_input(name, "arg", Type((), DTYPES["i64"])))
        return Array(self.arguments[-1][0], self.body)

    def dim(self, size: Any) -> Dim:
        return dim_of(size, self.known)

    def type(self, tensor: torch.Tensor, where: str) -> Type:
        return Type(tuple(map(self.dim, tensor.shape)), dtype_of(tensor.dtype, where))

    def argument(self, name: str, tensor: torch.Tensor) -> Array | Complex:
        """An argument of the program; complex numbers come as pairs in a last axis."""
        pairs = tensor.dtype in PARTS
        where = f"{self.name}: the input {name}"
        type = Type(tuple(map(self.dim, tensor.shape)), dtype_of(PARTS.get(tensor.dtype, tensor.dtype), where))
        self.arguments.append(make_input(name, "arg", Type((*type.shape, 2), type.dtype) if pairs else type))
        array = Array(self.arguments[-1][0], self.body)
        if not pairs:
            return array
        self.of_pairs.add(name)
        return Complex(array.at(-1, 0), array.at(-1, 1))

    def result(self, value: Any) -> Array:
        """A result of the program as an array: of complex numbers their pairs, of a number or a size a scalar."""
        if isinstance(value, Complex):
            return stack([value.re, value.im], -1)
        if isinstance(value, (bool, int, float)):
            return self.body.constant(value)
        if isinstance(value, Expr):
            return self.body.dim(value)
        if not isinstance(value, Array):
            kind = type(value).__name__
            raise InfercError(f"{self.name}: a result is a {kind}, no tensor; return tensors and numbers")
        return value

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
        own = [line for line in trace if "site-packages" not in line and 'File "<' not in line] or trace
        if self.around and 'File "<' in "".join(own[-1:]):
            return self.located(self.around[0]).replace(str(self.around[0].target), str(node.target), 1)
        module = list((node.meta.get("nn_module_stack") or {"": ("",)}).values())[-1][0]
        path = re.sub(r"^L\['self'\]\.?", "", str(module)).strip(".")
        where = ", ".join([*own[-1:], *([f"module {path}"] if path else [])])
        return f"{self.name}: {node.target}{f' ({where})' if where else ''}"

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
        names = _late(call)
        if names and (problem := self._depends(call)):
            raise problem
        try:
            result = rule(call)
        except (IRError, TypeError, ValueError, AttributeError) as error:
            if problem := self._depends(call):
                raise problem from error
            if names:
                raise call.error(f"{names[0]} must be a number that does not depend on the data; {COMPUTE}") from error
            if isinstance(error, IRError):
                raise call.error(str(error)) from error
            raise
        return self._checked(call, result)

    def _number(self, node: Node, values: Mapping[Node, Any], made: Any) -> Dim | Array | None:
        """A number that torch computes from sizes: an integer, which may be an element of a tensor that was made of
        sizes, as a size; others, and those that depend on the data, such as most of `item()`, as a scalar. None where
        only assertions read it and it is not known."""
        operands = [self._argument(a, values) for a in node.args]
        is_item = "_local_scalar_dense" in str(node.target)
        try:
            if not isinstance(made, (torch.SymInt, int)):
                return number_of(made.node.expr, self.known, self.body)
            if is_item and str(made) not in self.known:
                self.known[str(made)] = size_in(operands[0].value)
            return self.dim(made)
        except IRError as error:
            if is_item:
                return operands[0].reshape(())  # type: ignore[no-any-return]
            name = str(getattr(node.target, "__name__", node.target)).removeprefix("sym_")
            if name in OF_PYTHON and None not in operands and any(isinstance(a, Array) for a in operands):
                return self._scalar(name, operands)
            if _only_asserted(node):
                return None
            raise InfercError(f"{self.located(node)}: {error}") from error

    def _scalar(self, name: str, operands: Sequence[Any]) -> Array:
        """What Python computes with numbers, in i64 or f64."""
        arrays = [a if isinstance(a, Array) else self.body.constant(a) if isinstance(a, (bool, int, float)) else
                  self.body.dim(a) for a in operands]  # fmt: skip
        wide = f64 if any(a.dtype.is_float for a in arrays) or name in ("truediv", "float") else DTYPES["i64"]
        return OF_PYTHON[name](*(a if a.dtype == DTYPES["bool"] else a.astype(wide) for a in arrays))

    def _depends(self, call: Call) -> InfercError | None:
        """The error of results whose shapes depend on the data."""
        try:
            for result in call.results:
                if isinstance(result, torch.Tensor):
                    tuple(map(self.dim, result.shape))
        except IRError:
            name = call.node.target._schema.name.removeprefix("aten::") if hasattr(call.node.target, "_schema") else ""
            advice = TORCH.get(name, "use torch.where or a mask, give it a fixed size, or do this to the results")
            return call.error(f"the shape of its result depends on the data; {advice}")
        return None

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

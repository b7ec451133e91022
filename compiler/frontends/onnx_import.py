"""ONNX graphs → graphs of the IR, node by node, by the tables of `onnx_operators`.

What only shapes depend on is computed while importing: a `Tensor` may be known, as numbers or as expressions over
symbolic dimensions. Operators without a row that ONNX defines as a function of others are imported as that function.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, FunctionProto, GraphProto, NodeProto, TensorProto, TypeProto, helper, numpy_helper

from ...errors import InfercError
from ...ir.graph import Graph, IRError, Node, Origin, Weight, make_input
from ...ir.interpret import run as run_graph
from ...ir.interpret import to_array
from ...ir.types import DTYPES, Dim, DType, Expr, Type, array_shape, i64, symbol
from .arrays import CONSTANT_BYTES, Array, Body, Limited, as_bits, concatenate, dtype_of, numpy_of
from .refused import onnx_advice

LARGEST_DIM = 1 << 16  # what a dimension without a given bound may be
FOLDED = 1 << 14  # elements of a tensor that is computed while importing
ELEMENT_TYPES: Mapping[int, DType] = {
    getattr(TensorProto, name): DTYPES[ours]
    for name, ours in {
        "FLOAT": "f32", "FLOAT16": "f16", "BFLOAT16": "bf16", "DOUBLE": "f64", "BOOL": "bool", "INT8": "i8",
        "INT16": "i16", "INT32": "i32", "INT64": "i64", "UINT8": "u8", "UINT16": "u16", "UINT32": "u32",
        "UINT64": "u64",
    }.items()
}  # fmt: skip
TENSOR_TYPES = {ours: number for number, ours in ELEMENT_TYPES.items()}


class UnknownShape(InfercError):
    """A shape depends on what is given at run time."""


@dataclass(frozen=True)
class Tensor:
    """A value of an ONNX graph: an array of the graph being built, or known while importing, or both.

    `known` holds numbers, or for int64 Python objects: ints and expressions.
    """

    known: np.ndarray | None = None
    array: Array | None = None


def dtype_named(number: int, where: str) -> DType:
    """The dtype of ONNX's element type. Raises InfercError for those that the IR has not."""
    if number not in ELEMENT_TYPES:
        name = TensorProto.DataType.Name(number) if number in TensorProto.DataType.values() else str(number)
        raise InfercError(f"{where}: tensors of type {name} are not supported; convert the model to another type")
    return ELEMENT_TYPES[number]


@dataclass(frozen=True)
class Frame:
    """Where names are looked up: in a graph, or in the body of a function with its own opsets and attributes."""

    values: MutableMapping[str, Tensor]
    opsets: Mapping[str, int]
    attributes: Mapping[str, AttributeProto] = field(default_factory=dict)
    path: str = ""


Result = Tensor | Array
Rule = Callable[["Call"], "Result | Sequence[Result | None]"]


@dataclass
class Call:
    """One node while its rule runs: operands, attributes (with its schema's defaults), the body it is built in."""

    importer: Importer
    node: NodeProto
    frame: Frame
    operands: list[Tensor | None]
    schema: onnx.defs.OpSchema | None  # None of operators that are not ONNX's own

    @property
    def body(self) -> Body:
        return self.importer.body

    @property
    def version(self) -> int:
        """The opset of the operator's domain."""
        return self.frame.opsets.get(self.node.domain, 1)

    def has(self, index: int) -> bool:
        return index < len(self.operands) and self.operands[index] is not None

    def x(self, index: int = 0) -> Array:
        """An operand as an array."""
        operand = self.operands[index] if index < len(self.operands) else None
        if operand is None:
            raise InfercError(f"{self.where}: input {index} is missing")
        return self.importer.array(operand)

    def xs(self) -> list[Array]:
        return [self.x(i) for i in range(len(self.operands))]

    def optional(self, index: int) -> Array | None:
        return self.x(index) if self.has(index) else None

    def dims(self, index: int) -> list[Dim]:
        """An operand that shapes depend on, as a list of dimensions, which may be symbolic."""
        operand = self.operands[index]
        assert operand is not None
        if operand.known is not None and operand.known.dtype == object:
            return list(operand.known.reshape(-1))
        return [int(v) for v in self.numbers(index).reshape(-1)]

    def numbers(self, index: int) -> np.ndarray:
        """An operand whose numbers must be known. Raises InfercError where they depend on what is given at run time."""
        operand = self.operands[index]
        assert operand is not None
        found = self.importer.numbers(operand)
        if found is None:
            name = self.node.input[index]
            raise UnknownShape(
                f"{self.where}: its input {name!r} decides a shape and must be known when compiling, but it depends on "
                "inputs of the model; make it an initializer, or compute it from shapes"
            )
        return found

    def maybe(self, index: int) -> np.ndarray | None:
        """The numbers of an operand where they are known without any input of the model."""
        operand = self.operands[index] if index < len(self.operands) else None
        return None if operand is None else self.importer.numbers(operand, static=False)

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute as Python's; else the schema's default, else `default`."""
        for a in self.node.attribute:
            if a.name == name:
                if a.ref_attr_name:
                    if a.ref_attr_name not in self.frame.attributes:
                        break
                    a = self.frame.attributes[a.ref_attr_name]
                return _python(helper.get_attribute_value(a))
        described = self.schema.attributes.get(name) if self.schema else None
        if described is not None and described.default_value.type:
            return _python(helper.get_attribute_value(described.default_value))
        return default

    @property
    def outputs(self) -> int:
        """How many results are named; results in between may have no name."""
        return len(self.node.output)

    def wants(self, index: int) -> bool:
        return index < len(self.node.output) and bool(self.node.output[index])

    @property
    def where(self) -> str:
        name = self.node.name or next((o for o in self.node.output if o), "")
        return f"{self.importer.name}: {self.node.op_type} {self.frame.path}{name!r}"

    def error(self, problem: str) -> InfercError:
        return InfercError(f"{self.where}: {problem}")


def _python(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list) or type(value).__name__.startswith("Repeated"):
        return [_python(v) for v in value]
    return value


@dataclass
class Importer:
    """What the graphs of one model share. `static` holds values of inputs that may be read while importing."""

    name: str
    functions: Mapping[tuple[str, str, str], FunctionProto]
    operators: Mapping[tuple[str, str], Rule]
    foldable: Mapping[str, Callable[..., np.ndarray | None]]
    static: Mapping[str, np.ndarray] = field(default_factory=dict)
    body: Body = field(default_factory=Body)
    baked: set[str] = field(default_factory=set)  # the inputs of `static` that were read

    # --- tensors ---

    def array(self, tensor: Tensor) -> Array:
        """The tensor as a value of the graph."""
        if tensor.array is not None:
            return tensor.array
        known = tensor.known
        assert known is not None
        if known.dtype != object:
            return self.body.constant(known)
        if not known.size:
            return self.body.constant(np.zeros(known.shape, np.int64))
        dims = [self.body.dim(d) for d in known.reshape(-1)]
        if all(isinstance(d, int) for d in known.reshape(-1)):
            return self.body.constant(known.astype(np.int64))
        return concatenate([d.reshape(1) for d in dims], 0).reshape(*known.shape)

    def numbers(self, tensor: Tensor, static: bool = True) -> np.ndarray | None:
        """The tensor's numbers if they can be known now: from constants, weights and, if `static`, given inputs."""
        if tensor.known is not None:
            if tensor.known.dtype != object:
                return tensor.known
            if all(isinstance(d, int) for d in tensor.known.reshape(-1)):
                return tensor.known.astype(np.int64)
            return None
        assert tensor.array is not None
        graph = Graph("known", (), (tensor.array.value,))
        inputs = [n for n in graph.nodes() if n.op.name == "input"]
        names = [n.attr("name") for n in inputs]
        given = [n for n, node in zip(names, inputs) if node.attr("role") == "arg"]
        symbolic = any(isinstance(d, Expr) for n in graph.nodes() for t in n.types for d in t.shape)
        if symbolic or not all(static and name in self.static for name in given):
            return None
        self.baked.update(given)
        arrays = tuple(
            as_bits(self.static[name]) if name in given else to_array(n.types[0], self.body.weights[name].load())
            for name, n in zip(names, inputs)
        )
        (result,) = run_graph(Graph("known", tuple(inputs), graph.outputs), arrays, {}, None)
        dtype = tensor.array.dtype
        return np.asarray(result).view(numpy_of(dtype)) if dtype.name == "bf16" else np.asarray(result)

    def tensor(self, proto: TensorProto, load: Callable[[], np.ndarray] | None = None) -> Tensor:
        """A tensor of the file: known where it is small, a weight read when the artifact is written where it is not."""
        dtype = dtype_named(proto.data_type, f"{self.name}: the tensor {proto.name!r}")
        read = load or (lambda: numpy_helper.to_array(proto))
        shape = tuple(proto.dims)
        if np.prod(shape, dtype=np.int64) * dtype.block_bytes <= CONSTANT_BYTES:
            return Tensor(known=read())
        if not proto.name or proto.name in self.body.inputs:
            return Tensor(array=self.body.constant(read()))
        return Tensor(array=self.body.weight(Weight(proto.name, Type(shape, dtype), lambda: as_bits(read()))))

    # --- graphs ---

    def run(self, nodes: Sequence[NodeProto], frame: Frame) -> None:
        """Imports nodes, in their order, into `frame.values`."""
        for node in nodes:
            results = self.apply(node, frame)
            for name, result in zip(node.output, results):
                if name and result is not None:
                    frame.values[name] = result

    def apply(self, node: NodeProto, frame: Frame) -> list[Tensor | None]:
        domain = "" if node.domain == "ai.onnx" else node.domain
        function = self.functions.get((domain, node.op_type, getattr(node, "overload", "")))
        operands = [frame.values.get(name) if name else None for name in node.input]
        for name, operand in zip(node.input, operands):
            if name and operand is None:
                raise InfercError(f"{self.name}: {node.op_type} {node.name!r} reads {name!r}, which nothing makes")
        outer = self.body.origin
        name = node.name or next((o for o in node.output if o), node.op_type)
        self.body.origin = Origin(frame.path + name.replace("/", ".").strip("."), frozenset([f"{node.op_type} {name}"]))
        try:
            if function is not None:
                return self.inline(function, node, operands, frame)
            return self._apply_operator(node, domain, operands, frame)
        except Limited:
            raise
        except IRError as error:
            raise InfercError(f"{self.name}: {node.op_type} {name!r}: {error}") from error
        finally:
            self.body.origin = outer

    def _apply_operator(self, node: NodeProto, domain: str, operands: list[Tensor | None],
                        frame: Frame) -> list[Tensor | None]:  # fmt: skip
        version = frame.opsets.get(domain, 1)
        rule = self.operators.get((domain, node.op_type))
        schema = None
        if onnx.defs.has(node.op_type, domain) or rule is None:
            try:
                schema = onnx.defs.get_schema(node.op_type, version, domain)
            except onnx.defs.SchemaError:
                raise InfercError(f"{self.name}: {unknown_operator(domain, node, version)}") from None
        call = Call(self, node, frame, operands, schema)
        fold = self.foldable.get(node.op_type)
        if fold and not domain and all(o is None or o.known is not None for o in operands):
            folded = fold(call, *(None if o is None else o.known for o in operands))
            if folded is not None and np.size(folded) <= FOLDED:
                return [Tensor(known=np.asarray(folded))]
        if rule is None:
            return self.as_function(call)
        made = rule(call)
        results: list[Any] = list(made) if isinstance(made, (tuple, list)) else [made]
        return [Tensor(array=r) if isinstance(r, Array) else r for r in results]

    def as_function(self, call: Call) -> list[Tensor | None]:
        """An operator that ONNX defines by others."""
        node, version = call.node, call.version
        schema: Any = call.schema  # whose stubs lack what follows
        if schema.has_function:
            return self.inline(schema.function_body, node, call.operands, call.frame)
        if schema.has_context_dependent_function:
            plain = NodeProto()
            plain.CopyFrom(node)
            for a in [a for a in plain.attribute if a.ref_attr_name]:
                plain.attribute.remove(a)
                if a.ref_attr_name in call.frame.attributes:
                    given = plain.attribute.add()
                    given.CopyFrom(call.frame.attributes[a.ref_attr_name])
                    given.name = a.name
            types = [self._type(o).SerializeToString() for o in call.operands]
            text = schema.get_context_dependent_function_with_opset_version(version, plain.SerializeToString(), types)
            function = FunctionProto()
            function.ParseFromString(text)
            return self.inline(function, node, call.operands, call.frame)
        raise InfercError(
            f"{call.where}: the operator {node.op_type} is not supported; {onnx_advice(node.op_type)}"
        )

    def _type(self, tensor: Tensor | None) -> TypeProto:
        if tensor is None:
            return TypeProto()
        if tensor.known is not None:
            dtype = i64 if tensor.known.dtype == object else dtype_of(tensor.known)
            shape: Sequence[Dim] = tensor.known.shape
        else:
            assert tensor.array is not None
            dtype, shape = tensor.array.dtype, tensor.array.shape
        return helper.make_tensor_type_proto(TENSOR_TYPES[dtype], [d if isinstance(d, int) else str(d) for d in shape])

    def inline(self, function: FunctionProto, node: NodeProto, operands: Sequence[Tensor | None],
               frame: Frame) -> list[Tensor | None]:  # fmt: skip
        """The body of a function in the place of its call."""
        attributes = {a.name: a for a in function.attribute_proto}
        for a in node.attribute:
            if not a.ref_attr_name:
                attributes[a.name] = a
            elif a.ref_attr_name in frame.attributes:
                attributes[a.name] = frame.attributes[a.ref_attr_name]
        schema_domain = "" if node.domain == "ai.onnx" else node.domain
        if onnx.defs.has(node.op_type, schema_domain):
            for name, described in onnx.defs.get_schema(node.op_type, schema_domain).attributes.items():
                if name not in attributes and described.default_value.type:
                    attributes[name] = described.default_value
        own = {("" if o.domain == "ai.onnx" else o.domain): o.version for o in function.opset_import}
        opsets = {**frame.opsets, **own}
        values = {n: o for n, o in zip(function.input, operands) if o is not None}
        name = node.name or next((o for o in node.output if o), "")
        inner = Frame(values, opsets, attributes, f"{frame.path}{name.replace('/', '.').strip('.')}.")
        for inside in function.node:  # an optional operand that was not given is no name
            inside_inputs = [n if n in values or n not in function.input else "" for n in inside.input]
            if inside_inputs != list(inside.input):
                plain = NodeProto()
                plain.CopyFrom(inside)
                del plain.input[:]
                plain.input.extend(inside_inputs)
                inside = plain
            self.run([inside], inner)
        return [values.get(n) for n in function.output]

    def subgraph(self, graph: GraphProto, frame: Frame, arguments: Sequence[Tensor]) -> list[Tensor]:
        """The outputs of a graph attribute for these arguments, imported in place."""
        values = ChainMap({i.name: a for i, a in zip(graph.input, arguments)}, frame.values)  # type: ignore[arg-type]
        inner = replace(frame, values=values)
        for initializer in graph.initializer:
            values[initializer.name] = self.tensor(initializer)
        self.run(graph.node, inner)
        return [values[o.name] for o in graph.output]

    def close(self, name: str, types: Sequence[Type], build: Callable[[list[Array]], Sequence[Tensor]]):
        """The graph of control flow that `build` makes of arguments of these types, and what it captured."""
        nodes = [make_input(f"arg{i}", "arg", t) for i, t in enumerate(types)]
        with self.body.scope():
            outputs = [self.array(t) for t in build([Array(n[0], self.body) for n in nodes])]
            return self.body.close(name, nodes, outputs)


def symbols_for(
    inputs: Sequence[onnx.ValueInfoProto], bounds: Mapping[str, tuple[int, int]], limits: Mapping[str, tuple[int, int]]
) -> Iterator[tuple[str, Type]]:
    """Name and type of each input; its symbolic dimensions are symbols within `bounds`, by their names, and
    `limits`, by those of the symbols."""
    for value in inputs:
        kind = value.type.WhichOneof("value")
        if kind != "tensor_type":
            raise InfercError(f"the input {value.name!r} is no tensor ({kind}); only tensors are supported")
        described = value.type.tensor_type
        if not described.HasField("shape"):
            raise InfercError(f"the input {value.name!r} has no shape; give it one, with names for what varies")
        dtype = dtype_named(described.elem_type, f"the input {value.name!r}")
        shape: list[Dim] = []
        for i, d in enumerate(described.shape.dim):
            if d.HasField("dim_value") and d.dim_value >= 0:
                shape.append(d.dim_value)
                continue
            text = d.dim_param if d.HasField("dim_param") and d.dim_param else f"{value.name}_{i}"
            name = "".join(c if c.isalnum() else "_" for c in text)
            name = name if name[0].isalpha() else f"d{name}"
            low, high = bounds.get(text, bounds.get(name, (1, LARGEST_DIM)))
            least, most = limits.get(name, (low, high))
            low, high = max(low, least), min(high, most)
            shape.append(low if low == high else symbol(name, low, high))
        yield value.name, Type(tuple(shape), dtype)


def unknown_operator(domain: str, node: NodeProto, version: int) -> str:
    """What is wrong with an operator that neither ONNX nor a table here has, and what to do."""
    name = node.name or next((o for o in node.output if o), "")
    if domain:
        return (f"the operator {domain}.{node.op_type} (node {name!r}) is not supported; use the model as it was "
                "before an optimizer or quantiser, or export it with standard operators")  # fmt: skip
    return (f"ai.onnx has no operator {node.op_type} in opset {version} (node {name!r}); export the model with "
            "standard operators")  # fmt: skip


def shape_of(tensor: Tensor) -> tuple[Dim, ...]:
    if tensor.known is not None:
        return tensor.known.shape
    assert tensor.array is not None
    return tensor.array.shape


def dtype_of_tensor(tensor: Tensor) -> DType:
    if tensor.known is not None:
        return i64 if tensor.known.dtype == object else dtype_of(tensor.known)
    assert tensor.array is not None
    return tensor.array.dtype


__all__ = ["Call", "Frame", "Importer", "Rule", "Tensor", "array_shape", "Node", "symbols_for", "shape_of"]

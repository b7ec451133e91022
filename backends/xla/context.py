"""What a row of the table of lowerings is given: the writer, the sizes, and what is promised about the tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ...ir.graph import Graph, IRError, Node
from ...ir.types import Dim, DType, Type, evaluate, f32, substitute
from .parts import part_types
from .text import Shape, Size, Tensor, Writer

Value = tuple[Tensor, ...]  # the tensors that one value of the IR is held in: `parts.part_types` says which


@dataclass(frozen=True)
class Facts:
    """What a specialisation of a step may rely on, beyond the sizes of its tokens, rows and slots.

    `form` is how tokens belong to slots. "one": all tokens that are no padding are of one sequence, at ascending
    positions one apart, padding last. "each": token t is of slot t or padding. "mixed": nothing is known. `span` bounds
    position + 1 of every token and is what caches are read up to; 0 is their whole length.
    """

    form: str = "mixed"
    span: int = 0


@dataclass
class Context:
    """The lowering of one module: `dims` are the values of symbols. A function may leave some open (`is_open`): their
    sizes are expressions, and the text has holes for them. `compute` is the dtype that products multiply in;
    `platform` is one that the program is for alone, so that it may use that one's kernels, or "" where it is for all.
    `devices` evaluate the program together, each on its parts of the model: they share the columns of the matrices
    `summed`, as layers call them.
    """

    dims: Mapping[str, int]
    facts: Facts = Facts()
    compute: DType = f32
    platform: str = ""
    is_open: bool = False
    devices: int = 1
    summed: frozenset[str] = frozenset()
    functions: dict[Graph, str] = field(default_factory=dict)  # names of the functions written, callees first
    texts: list[str] = field(default_factory=list)

    def size(self, dim: Dim) -> Size:
        if self.is_open:
            return substitute(dim, self.dims)
        try:
            return evaluate(dim, self.dims)
        except KeyError as error:
            raise IRError(str(error.args[0])) from error

    def shape(self, dims: Sequence[Dim]) -> Shape:
        return tuple(self.size(d) for d in dims)

    def type(self, t: Type) -> Type:
        """The type with its dimensions as ints."""
        return Type(self.shape(t.shape), t.dtype)

    def held(self, t: Type) -> list[tuple[Shape, str]]:
        """Shape and element of each tensor that holds a value of the type."""
        return [(p.shape, p.element) for p in part_types(self.type(t))]


@dataclass(frozen=True)
class Step:
    """One node being lowered: where it writes and what it reads."""

    context: Context
    writer: Writer
    node: Node
    operands: tuple[Value, ...]

    @property
    def x(self) -> Tensor:
        """The first operand of an op whose operands are elements."""
        return self.operands[0][0]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All operands, each of elements."""
        return tuple(v[0] for v in self.operands)

    def attr(self, name: str):
        return self.node.attr(name)

    def operand_type(self, index: int) -> Type:
        return self.context.type(self.node.inputs[index].type)

    @property
    def shape(self) -> Shape:
        """Of the first result."""
        return self.context.shape(self.node.types[0].shape)


# What lowers a node: a tensor where it has one result that is held in one, else the tensors of each result.
Lowering = Callable[[Step], Tensor | tuple[Value, ...]]

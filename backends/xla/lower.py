"""Graph → StableHLO: a table from ops to what writes them, and the walk over a graph that uses it."""

from __future__ import annotations

from collections.abc import Sequence

from ...ir.graph import Graph, IRError
from ...ir.graph import Value as IRValue
from .cache import CACHE
from .context import Context, Lowering, Step, Value
from .control import control, flat
from .elementwise import ELEMENTWISE
from .index import INDEX
from .linear import LINEAR
from .shape import SHAPE
from .text import Tensor, Writer, identifier, module_text
from .window import WINDOW


def _emit(step: Step, graph: Graph, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Calls the function of a graph, written when first called."""
    context = step.context
    like = [h for v in graph.outputs for h in context.held(v.type)]
    return step.writer.call(function_of(context, graph), operands, like)


LOWERINGS: dict[str, Lowering] = {
    **ELEMENTWISE, **SHAPE, **WINDOW, **INDEX, **control(_emit), **LINEAR, **CACHE,
    "input": lambda step: (step.operands[0],),  # never called: an input's tensors are the function's own
}  # fmt: skip


def function_of(context: Context, graph: Graph) -> str:
    """The name of a graph's function in the module; callees are written before it."""
    if graph not in context.functions:
        base = identifier(graph.name) or "graph"
        taken = set(context.functions.values()) | {"main"}
        name = next(n for n in (base, *(f"{base}_{i}" for i in range(1, 1 << 20))) if n not in taken)
        context.functions[graph] = name  # before its callees, which may be called alike
        context.texts.append(write_function(context, graph, name))
    return context.functions[graph]


def write_function(context: Context, graph: Graph, name: str, public: bool = False,
                   attributes: Sequence[str] = ()) -> str:  # fmt: skip
    """The text of a graph as a function; `attributes` are those of its tensors, in order, where there are any."""
    w = Writer()
    given: list[Tensor] = []
    values: dict[IRValue, Value] = {}
    for node in graph.inputs:
        parts = tuple(w.fresh(shape, element) for shape, element in context.held(node.types[0]))
        values[node[0]] = parts
        given += parts
    place = ""
    for node in graph.nodes():
        if node[0] in values:
            continue
        if node.origin.path != place and node.origin.path:
            place = node.origin.path
            w.comment(place)
        where = f"{node.op.name} at {node.origin}" if node.origin.path else node.op.name
        row = LOWERINGS.get(node.op.name)
        if row is None:
            raise IRError(f"{where}: the XLA backend has no row for this op")
        try:
            made = row(Step(context, w, node, tuple(values[v] for v in node.inputs)))
        except IRError as error:
            raise IRError(f"{where}: {error}") from error
        results = ((made,),) if isinstance(made, Tensor) else made
        _check(where, context, node.types, results)
        values.update(zip(node.values, results))
    outputs = flat([values[v] for v in graph.outputs])
    notes = [f"{graph.name}({', '.join(str(n.attr('name')) for n in graph.inputs)})"]
    return w.function(name, list(zip(given, attributes or [""] * len(given))), outputs, public, notes)


def _check(where: str, context: Context, types: Sequence, results: Sequence[Value]) -> None:
    """A row's results are held as their types say."""
    for t, value in zip(types, results, strict=True):
        if [(p.shape, p.element) for p in value] != context.held(t):
            raise IRError(f"{where}: gave {', '.join(p.type for p in value)} for {t}")


def lower(context: Context, graph: Graph, name: str = "program", attributes: Sequence[str] = ()) -> str:
    """The module whose `main` is the graph. Raises IRError for an op without a row, naming where it came from."""
    main = write_function(context, graph, "main", True, attributes)
    return module_text(name, [*context.texts, main])

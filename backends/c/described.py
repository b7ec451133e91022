"""The entry `run` with a described signature: PREFIX_run takes arrays that carry their shapes, and checks them.

It stands before the entry's typed function, PREFIX_call.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ...ir.graph import Graph, IRError
from ...ir.types import Dim, Expr, Sym, Type, bounds, multiple_of, symbols
from .text import c_string, comment_text, dim_c, folded, runtime_text

ENTRY, TYPED = "run", "call"  # the entry, and what its typed function is called
MOST = (1 << 31) - 1
AXIS = "an axis that is {} alone or a multiple of it"

Named = Sequence[tuple[str, Type]]


def function_name(entry: str) -> str:
    """The typed function of an entry, without the prefix."""
    return TYPED if entry == ENTRY else entry


def header_text(inputs: Named, outputs: Named) -> str:
    """The part of the header. Raises IRError for a size that no argument has as an axis."""
    both = ("input", inputs), ("output", outputs)
    lines = [f" *   {what} {i}: {comment_text(name)} {type}" for what, arrays in both
             for i, (name, type) in enumerate(arrays)]  # fmt: skip
    text = runtime_text("function.h").replace("@SIGNATURE@", "\n".join(lines))
    return text.replace("@MAX_RANK@", str(max(1, *(t.rank for _, t in (*inputs, *outputs)))))


def implementation_text(graph: Graph, inputs: Named, outputs: Named, dims: Sequence[Sym]) -> str:
    """The part of the implementation; `dims` are the symbols that the typed function takes, in order."""
    place = {s.name: f"dim[{i}]" for i, s in enumerate(dims)}
    sized = ", ".join(["model", *place.values()])
    data = [f"inputs[{i}].data" for i in range(len(inputs))] + [f"outputs[{i}].data" for i in range(len(outputs))]
    values = {
        "TABLES": "\n\n".join([*_table("inputs", inputs), *_table("outputs", outputs)]),
        "INPUTS": str(len(inputs)), "OUTPUTS": str(len(outputs)), "OUTPUTS_HELD": str(max(1, len(outputs))),
        "MEASURE": "\n".join(_measured(inputs, place)), "SHAPES": "\n".join(_shaped(outputs, place)),
        "DIMS": str(max(1, len(dims))), "SIZED": sized,
        "CALL": ", ".join(["model", "workspace", "bytes", *place.values(), *data]),
    }  # fmt: skip
    text = runtime_text("function.c")
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    return "\n".join(folded(line) if len(line) > 116 else line for line in text.splitlines()) + "\n"


def _table(what: str, arrays: Named) -> Iterable[str]:
    """Axes of each array, then the arrays."""
    rows = []
    for i, (name, type) in enumerate(arrays):
        axes = f"{what}_{i}_axes"
        entries = "".join(f"\n    {{{c_string(str(d))}, {max(0, bounds(d)[0])}, {min(bounds(d)[1], MOST)}}},"
                          for d in type.shape)  # fmt: skip
        if entries:
            yield f"static const model_axis {axes}[] = {{{entries}\n}};"
        rows.append(f"\n    {{{c_string(name)}, MODEL_{str(type.dtype).upper()}, {type.rank}, "
                    f"{axes if entries else 'NULL'}}},")  # fmt: skip
    rows = rows or ["\n    {NULL, MODEL_BOOL, 0, NULL},"]
    yield f"static const model_parameter {what}_described[] = {{{''.join(rows)}\n}};"


def _measured(inputs: Named, place: dict[str, str]) -> Iterable[str]:
    """Sizes with a name come from the first axis that is one, or a multiple of one; every other axis must agree."""
    found: dict[str, str] = {}
    checks = []
    axes = [(f"in[{i}].dims[{d}]", size) for i, (_, type) in enumerate(inputs) for d, size in enumerate(type.shape)
            if isinstance(size, Expr)]  # fmt: skip
    for axis, size in sorted(axes, key=lambda item: str(item[1]) not in place):  # a name alone before multiples
        known = multiple_of(size)
        if known and (name := known[0].name) in place and name not in found:
            _, factor, offset = known
            start = f"({axis} - {offset})".replace("- -", "+ ") if offset else axis
            if factor != 1:
                checks.append(f"  if ({start} % {factor}) return false;")
            found[name] = f"  {place[name]} = {start}{f' / {factor}' if factor != 1 else ''};"
        else:
            checks.append(f"  if ({axis} != {_in_c(size, place)}) return false;")
    if missing := [name for name in place if name not in found]:
        raise IRError(f"no argument has {AXIS.format(', '.join(missing))}: {ENTRY} cannot know its size")
    yield from found.values()
    yield from checks
    if not found:
        yield "  (void)dim;"


def _shaped(outputs: Named, place: dict[str, str]) -> Iterable[str]:
    for i, (_, type) in enumerate(outputs):
        for d, size in enumerate(type.shape):
            yield f"  out[{i}].dims[{d}] = {_in_c(size, place)};"
    if not any(t.rank for _, t in outputs):
        yield "  (void)out;"


def _in_c(size: Dim, place: dict[str, str]) -> str:
    if isinstance(size, Expr) and (unknown := [s.name for s in symbols(size) if s.name not in place]):
        raise IRError(f"no argument has {AXIS.format(', '.join(unknown))}: {ENTRY} cannot know its size")
    return dim_c(size, place)

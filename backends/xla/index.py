"""Ops that compute an address. StableHLO moves windows inside, gather's modes beyond that are a mask."""

from __future__ import annotations

from collections.abc import Callable

from ...ir.types import Dim, dim_min
from .context import Lowering, Step
from .shape import limits
from .text import FLOATS, Shape, Tensor, Writer

COMBINE: dict[str, str] = {"add": "add", "mul": "multiply", "max": "maximum", "min": "minimum"}


def _dynamic_slice(step: Step) -> Tensor:
    x, *starts = step.tensors
    return step.writer.dynamic_slice(x, starts, step.context.shape(step.attr("sizes")))


def _dynamic_update_slice(step: Step) -> Tensor:
    x, update, *starts = step.tensors
    return step.writer.dynamic_update_slice(x, update, starts)


def _list(values: tuple[int, ...]) -> str:
    return "[" + ", ".join(map(str, values)) + "]"


def _limits(w: Writer, x: Tensor, indices: Tensor, axes: tuple[int, ...], sizes: Shape) -> Tensor:
    """The greatest start that fits, for each component of the indices, as a tensor like them."""
    most = int(limits(indices.element)[1])
    rows = [w.constant(dim_min(x.shape[a] - sizes[a], most), indices.element, (1,)) for a in axes]
    row = w.concatenate(rows, 0)
    return w.broadcast(row, indices.shape, (indices.rank - 1,))


def _fill(element: str, value: float | None) -> float | int | bool:
    """What an address outside reads: `value`, else NaN, the lowest signed or the highest unsigned integer, or true."""
    if value is not None:
        return value
    low, high = limits(element)
    return float("nan") if element in FLOATS else True if element == "i1" else low if element[0] == "i" else high


def _gather(step: Step) -> Tensor:
    w, (x, indices) = step.writer, step.tensors
    offset_dims, index_map = step.attr("offset_dims"), step.attr("start_index_map")
    sizes = step.context.shape(step.attr("slice_sizes"))
    numbers = ", ".join((
        f"offset_dims = {_list(offset_dims)}",
        f"collapsed_slice_dims = {_list(step.attr('collapsed_slice_dims'))}",
        f"operand_batching_dims = {_list(step.attr('operand_batching_dims'))}",
        f"start_indices_batching_dims = {_list(step.attr('start_indices_batching_dims'))}",
        f"start_index_map = {_list(index_map)}",
        f"index_vector_dim = {indices.rank - 1}",
    ))  # fmt: skip
    found = w.gather(x, indices, step.shape, numbers, sizes)
    if step.attr("mode") != "fill" or not index_map:
        return found
    inside = w.both(w.compare(indices, w.splat(0, indices), "GE"),
                    w.compare(indices, _limits(w, x, indices, index_map, sizes), "LE"))  # fmt: skip
    fits = w.reduce(inside, "and", (indices.rank - 1,), True)
    batch = [i for i in range(found.rank) if i not in offset_dims]
    fill = _fill(found.element, step.attr("fill_value"))
    return w.select(w.broadcast(fits, found.shape, batch), found, w.splat(fill, found))


def _scatter(step: Step) -> Tensor:
    w, (x, indices, updates) = step.writer, step.tensors
    window = step.attr("update_window_dims")
    inserted, batching = step.attr("inserted_window_dims"), step.attr("operand_batching_dims")
    index_map = step.attr("scatter_dims_to_operand_dims")
    if step.attr("mode") == "clip" and index_map:
        kept = [i for i in range(x.rank) if i not in (*inserted, *batching)]
        sizes: list[Dim] = [1] * x.rank
        for axis, d in zip(kept, window):
            sizes[axis] = updates.shape[d]
        most = _limits(w, x, indices, index_map, tuple(sizes))
        indices = w.map("minimum", w.map("maximum", indices, w.splat(0, indices)), most)
    numbers = ", ".join((
        f"update_window_dims = {_list(window)}",
        f"inserted_window_dims = {_list(inserted)}",
        f"input_batching_dims = {_list(batching)}",
        f"scatter_indices_batching_dims = {_list(step.attr('scatter_indices_batching_dims'))}",
        f"scatter_dims_to_operand_dims = {_list(index_map)}",
        f"index_vector_dim = {indices.rank - 1}",
    ))  # fmt: skip
    kind = step.attr("kind")
    combine: Callable[[Tensor, Tensor], Tensor] = (
        (lambda old, new: new) if kind == "set" else lambda old, new: w.map(COMBINE[kind], old, new)
    )
    return w.scatter(x, indices, updates, numbers, combine)


INDEX: dict[str, Lowering] = {
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "gather": _gather,
    "scatter": _scatter,
}

"""Products with weights, in the form that XLA keeps fused.

For few tokens a product is a multiplication and one reduction, in which weights are unpacked where they are read: one
kernel, and of memory exactly the packed bytes. For many tokens the weight is widened first and multiplied by the
device's matrix product: XLA then writes the wide weight to memory, which many tokens share. In between, programs for
GPUs alone have kernels of their own (`triton.py`); those for TPUs alone have one form for any number of tokens
(`tpu.py`).
"""

from __future__ import annotations

from ...ir.graph import IRError
from ...ir.numerics.linear import SMALLEST
from ...ir.types import ACTIVATION_SIZES, Type, f32
from . import tpu, triton
from .blocks import multiplied, widen
from .context import Context, Lowering, Step, Value
from .text import Size, Tensor, Writer, element_of

FEW = 8  # tokens up to which a weight is read anew for each rather than widened once


def product(step: Step, x: Value, x_type: Type, weight: Value, weight_type: Type) -> Tensor:
    """x [T, K] times the rows of a weight [N, K], f32 [T, N]."""
    w, n = step.writer, weight_type.sizes[0]
    tokens: Size = x_type.shape[0]
    compute = element_of(step.context.compute)
    wide = widen(w, x_type, x)
    if step.context.platform == "tpu":
        return tpu.product(w, weight_type, weight, w.convert(wide, compute))
    if weight_type.dtype.name in (compute, "f32"):
        return w.dot(w.convert(wide, compute), w.convert(weight[0], compute), ((1,), (1,)), element="f32")
    many = not isinstance(tokens, int) or tokens > FEW
    own = step.context.platform in triton.PLATFORMS and isinstance(tokens, int) and triton.fits(weight_type, tokens)
    if own and (many or not triton.is_simple(weight_type)):
        return triton.product(w, weight_type, weight, w.convert(wide, compute))
    if many:
        rows = w.convert(widen(w, weight_type, weight), compute)
        return w.dot(w.convert(wide, compute), rows, ((1,), (1,)), element="f32")
    if weight_type.dtype.is_block:
        products, axes = multiplied(w, weight_type, weight, wide)
        return w.reshape(w.total(products, axes), (tokens, n))
    shape = (tokens, *weight_type.sizes) if tokens > 1 else weight_type.sizes
    left = w.broadcast(wide, shape, (0, 2)) if tokens > 1 else w.broadcast(w.reshape(wide, shape[1:]), shape, (1,))
    right = w.broadcast(w.convert(weight[0], "f32"), shape, range(len(shape) - 2, len(shape)))
    return w.reshape(w.total(w.mul(left, right), (len(shape) - 1,)), (tokens, n))


def _linear_at(step: Step, weight: int, *bias: int) -> Tensor:
    """The product of operand 0 with an operand, summed where devices have parts of it, and a bias added."""
    w = step.writer
    y = product(step, step.operands[0], step.operand_type(0), step.operands[weight], step.operand_type(weight))
    of = step.node.inputs[weight].node
    if step.context.devices > 1 and of.op.name == "input" and of.attr("name") in step.context.summed:
        y = w.sum_of_devices(y, step.context.devices)
    return w.add(y, w.broadcast(step.operands[bias[0]][0], y.shape, (1,))) if bias else y


def _linear(step: Step) -> Tensor:
    return _linear_at(step, 1, *range(2, len(step.operands)))


def _linear_add(step: Step) -> Tensor:
    return step.writer.add(step.operands[2][0], _linear_at(step, 1, *range(3, len(step.operands))))


def _linear_group(step: Step) -> tuple[Value, ...]:
    biases = step.attr("biases")
    following = iter(range(1 + len(biases), len(step.operands)))
    return tuple((_linear_at(step, 1 + i, *([next(following)] if has else [])),) for i, has in enumerate(biases))


def _expert_linear(step: Step) -> Tensor:
    """Few tokens gather their experts' rows; with many, each expert is multiplied by all and chosen from."""
    w, ids = step.writer, step.operands[2][0]
    x_type, weight_type = step.operand_type(0), step.operand_type(1)
    experts, n, k = weight_type.sizes
    tokens, used = ids.shape
    wide = widen(w, x_type, step.operands[0])
    if tokens <= FEW and step.context.platform == "tpu":
        compute = element_of(step.context.compute)
        return tpu.of_experts(w, weight_type, step.operands[1], w.convert(wide, compute), ids)
    if tokens <= FEW:
        chosen = tuple(take(w, part, ids) for part in step.operands[1])
        values = widen(w, Type((tokens, used, n, k), weight_type.dtype), chosen)
        left = w.broadcast(wide, values.shape, (0, 3))
        return w.total(w.mul(left, values), (3,))
    total = w.constant(0, "f32", (tokens, used, n))
    for expert in range(experts):
        rows = tuple(w.reshape(w.part(p, 0, expert, expert + 1), p.shape[1:]) for p in step.operands[1])
        y = product(step, (wide,), Type((tokens, k), f32), rows, Type((n, k), weight_type.dtype))
        is_this = w.compare(ids, w.splat(expert, ids), "EQ")
        total = w.select(w.broadcast(is_this, total.shape, (0, 1)), w.broadcast(y, total.shape, (0, 2)), total)
    return total


def take(w: Writer, table: Tensor, ids: Tensor) -> Tensor:
    """table[ids] over the first axis, for ids of any rank."""
    rest = table.shape[1:]
    shape = (*ids.shape, *rest)
    offsets = ", ".join(str(ids.rank + i) for i in range(len(rest)))
    numbers = (f"offset_dims = [{offsets}], collapsed_slice_dims = [0], start_index_map = [0], "
               f"index_vector_dim = {ids.rank}")  # fmt: skip
    return w.gather(table, w.reshape(ids, (*ids.shape, 1)), shape, numbers, (1, *rest))


def _embedding(step: Step) -> Tensor:
    """Only the rows of the ids are unpacked."""
    t, ids = step.operand_type(0), step.operands[1][0]
    if step.context.platform == "tpu" and t.dtype.is_block and ids.rank == 1:
        return tpu.rows_of(step.writer, t, step.operands[0], ids)
    rows = tuple(take(step.writer, part, ids) for part in step.operands[0])
    return widen(step.writer, Type((*ids.shape, t.sizes[1]), t.dtype), rows)


def _quantize(step: Step) -> Tensor | tuple[Value, ...]:
    return quantized(step.context, step.writer, step.x, step.context.type(step.node.types[0]))


def quantized(context: Context, w: Writer, x: Tensor, t: Type) -> Tensor | tuple[Value, ...]:
    """f32 [..., K] in an activation dtype, as `numerics.linear.quantize` has it."""
    if t.dtype.name not in ACTIVATION_SIZES:
        return w.convert(x, element_of(t.dtype))
    groups = w.reshape(x, (*x.shape[:-1], x.shape[-1] // t.dtype.block, t.dtype.block))
    q, d = in_groups(w, groups)
    flat = w.reshape(w.convert(q, "i8"), x.shape)
    sixteens = w.reshape(w.convert(flat, "i32"), (*x.shape[:-1], x.shape[-1] // 16, 16))
    return ((flat, d, w.total(sixteens, (sixteens.rank - 1,))),)


def in_groups(w: Writer, x: Tensor) -> tuple[Tensor, Tensor]:
    """f32 [..., values] → whole numbers of -127..127 as f32 of that shape, and their scale f32 [...]."""
    last = x.rank - 1
    most = w.highest(w.map("abs", x), (last,))
    used = w.compare(most, w.splat(float(SMALLEST), most), "GT")
    d = w.select(used, w.div(most, w.splat(127, most)), w.splat(0, most))
    inverse = w.select(used, w.div(w.splat(127, most), most), w.splat(0, most))
    scaled = w.mul(x, w.broadcast(inverse, x.shape, range(last)))
    bounded = w.map("minimum", w.map("maximum", scaled, w.splat(-127, x)), w.splat(127, x))
    return w.map("round_nearest_even", bounded), d


def _same(step: Step) -> tuple[Value, ...]:
    """Packing for CPUs changes nothing here, and grid points lie in the format that they are computed with as."""
    return (step.operands[0],)


def _concat_rows(step: Step) -> tuple[Value, ...]:
    return (tuple(step.writer.concatenate(parts, 0) for parts in zip(*step.operands)),)


def _take_rows(step: Step) -> Tensor:
    x, rows = step.tensors
    if x.rank != 2:
        raise IRError("takes rows of a matrix")
    return take(step.writer, x, rows)


LINEAR: dict[str, Lowering] = {
    "linear": _linear,
    "linear_add": _linear_add,
    "linear_group": _linear_group,
    "expert_linear": _expert_linear,
    "embedding": _embedding,
    "take_rows": _take_rows,
    "quantize": _quantize,
    "dequantize": lambda step: widen(step.writer, step.operand_type(0), step.operands[0]),
    "pack": _same,
    "unpack": _same,
    "recode": _same,
    "concat_rows": _concat_rows,
}

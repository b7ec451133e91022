"""Rows of a table as f32: fetched and widened one by one, from packed panels or from row-major floats."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ...ir.graph import IRError, Node
from ...ir.quant import FORMATS, Format, is_direct, planes_of
from ...ir.target import Target
from ...ir.types import DType
from .kernels import Call, DimValue, Kernel, Operand, Result, Run

# Dense dtypes: the C type of an element, the words that widen one, elements of a row that lie together in a panel.
_DENSE = {"f32": ("float", "{}", 1), "f16": ("uint16_t", "f16_value({})", 1), "bf16": ("uint16_t", "bf16_value({})", 2)}

_BF16_VALUE = Kernel("bf16_value", """\
INLINE float bf16_value(uint16_t h) {
  const uint32_t bits = (uint32_t)h << 16;
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
""")


def _dense_row(dtype: str, layout: str) -> str:
    element, value, together = _DENSE[dtype]
    if layout:
        padded = "(k + 1) / 2 * 2" if together == 2 else "k"
        at = f"(i / {together} * 16 + lane) * {together} + i % {together}" if together > 1 else "i * 16 + lane"
        first = f"(const {element} *)(const void *)table + (size_t)(row / 16) * 16 * (size_t)({padded})"
        lane = "\n  const int32_t lane = row % 16;"
    else:
        first, at, lane = f"(const {element} *)(const void *)table + (size_t)row * (size_t)k", "i", ""
    return f"""\
  const {element} *w = {first};{lane}
  for (int32_t i = 0; i < k; i++) y[i] = {value.format(f"w[{at}]")};"""


def _stored(planes: tuple[tuple[int, int], ...], field: Callable[[int, int], str]) -> str:
    """A stored integer from its planes: `field(plane bits, first line or word of the plane)` reads one."""
    parts, first = [], 0
    for bits, position in planes:
        text = f"({field(bits, first)} & {(1 << bits) - 1})"
        parts.append(f"{text} << {position}" if position else text)
        first += bits
    return " | ".join(parts)


def _less(value: str, zero: int) -> str:
    return f"(int32_t)({value})" + (f" - {zero}" if zero else "")


def _block_row(fmt: Format) -> str:
    """(d * scale) * q, then + m or - dmin * min: the order of `ir.quant.dequantize`."""
    lines, at = ["const float d = f16_value(half[lane]);"], 32
    if fmt.mins:
        lines.append("const float m = f16_value(half[16 + lane]);")
        at += 32
    scales = at
    at += fmt.scale_count * fmt.scale_bits * 2

    def integer(index: str) -> str:
        def field(bits: int, first: int) -> str:
            base = scales + fmt.scale_count * first * 2
            per = 32 // bits
            return f"panel_word(w + {base}, ({index}) / {per}, lane) >> {bits} * (({index}) % {per})"

        text = _stored(planes_of(fmt.scale_bits), field)
        return f"(int8_t)({text})" if fmt.scale_signed else _less(text, fmt.scale_zero)

    def quad_field(bits: int, first: int) -> str:
        return f"line[{64 * first} + 64 * (j % {bits})] >> {bits} * (j / {bits})" if bits < 8 else "line[64 * j]"

    q = _stored(planes_of(fmt.bits), quad_field)
    q = f"(int8_t)({q})" if fmt.signed else _less(q, fmt.zero)
    scale = f"const float scale = d * (float)({integer('g')});" if fmt.scale_bits else "const float scale = d;"
    after = ""
    if fmt.mins == "add":
        after = " + m"
    elif fmt.mins == "subtract":
        after, scale = " - low", f"{scale}\n      const float low = m * (float)({integer(f'{fmt.groups} + g')});"
    head = "\n    ".join(lines)
    return f"""\
  const int lane = row % 16;
  const uint8_t *w = table + (size_t)(row / 16) * (size_t)(k / {fmt.block}) * {16 * fmt.dtype.block_bytes};
  for (int32_t b = 0; b < k / {fmt.block}; b++, w += {16 * fmt.dtype.block_bytes}) {{
    const uint16_t *half = (const void *)w;
    {head}
    for (int g = 0; g < {fmt.groups}; g++) {{
      {scale}
      for (int i = {fmt.group} * g; i < {fmt.group} * (g + 1); i++) {{
        const int j = i % 32 / 4;
        const uint8_t *line = w + {at} + i / 32 * {64 * fmt.bits} + 4 * lane + i % 4;
        *y++ = scale * (float)({q}){after};
      }}
    }}
  }}"""


_WORD = Kernel("panel_word", """\
/* A lane of one of the words of packed scales. */
INLINE uint32_t panel_word(const uint8_t *words, int word, int lane) {
  uint32_t x;
  memcpy(&x, words + word * 64 + lane * 4, 4);
  return x;
}
""")


def _kernel(dtype: DType, layout: str) -> Kernel:
    fmt = FORMATS.get(dtype.name)
    row = _block_row(fmt) if fmt else _dense_row(dtype.name, layout)
    needs = (_WORD,) if fmt and fmt.scale_bits else (_BF16_VALUE,) if dtype.name == "bf16" else ()
    name = f"embedding_{dtype}" + ("_rows" if not layout else "")
    return Kernel(name, f"""\
/* y[k] = a row of the table in {dtype} */
static inline void {name}_row(const uint8_t *table, int32_t row, int32_t k, float *y) {{
{row}
}}

typedef struct {{ const uint8_t *table; const int32_t *ids; float *y; int32_t k; }} {name}_args;

static void {name}_body(const void *args, int32_t begin, int32_t end, int32_t worker) {{
  const {name}_args *a = args;
  (void)worker;
  for (int32_t t = begin; t < end; t++) {name}_row(a->table, a->ids[t], a->k, a->y + (size_t)t * (size_t)a->k);
}}

/* y[tokens][k] = table[ids[tokens]][k] */
static void {name}(const run *r, int32_t tokens, int32_t k, const uint8_t *table, const int32_t *ids, float *y) {{
  const {name}_args args = {{table, ids, y, k}};
  parallel(r, tokens, 1 + 16384 / k, {name}_body, &args);
}}
""", needs)  # fmt: skip


def embedding(node: Node, target: Target) -> Call:
    """embedding(table[V,K], ids i32[T]): any direct dtype in panels, float dtypes row-major too."""
    table, ids = (v.type for v in node.inputs)
    k = table.shape[1]
    if not is_direct(table.dtype) or not (table.layout or not table.dtype.is_block):
        raise IRError(f"needs a table of a directly computed dtype, packed where it has blocks, not {table}")
    if not isinstance(k, int):
        raise IRError(f"the inner dimension of {table} must be known")
    args = (Run(), DimValue(ids.shape[0]), DimValue(k), Operand(0), Operand(1), Result())
    return Call(_kernel(table.dtype, table.layout), args)


LOWERINGS: Mapping[str, Callable[[Node, Target], Call]] = {"embedding": embedding}

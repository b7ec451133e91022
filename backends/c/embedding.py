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
    halves = ["d"] * fmt.has_d + ["m"] * bool(fmt.mins)
    lines = ["const uint16_t *half = (const void *)w;"] if halves else []
    unit = f" * {fmt.unit}f" if fmt.unit != 1 else ""
    for i, name in enumerate(halves):
        at_half = f"half[{16 * i} + lane]" if i else "half[lane]"
        lines.append(f"const float {name} = f16_value({at_half}){unit if name == 'd' else ''};")
    scales = 32 * len(halves)
    at = scales + fmt.scale_count * fmt.scale_bits * 2

    def packed(index: str) -> str:
        def field(bits: int, first: int) -> str:
            base, size = scales + fmt.scale_count * first * 2, min(32, fmt.scale_count * bits)
            per = size // bits
            return f"panel_word(w + {base}, {size}, ({index}) / {per}, lane) >> {bits} * (({index}) % {per})"

        return _stored(planes_of(fmt.scale_bits), field)

    def quad_field(bits: int, first: int) -> str:
        return f"line[{64 * first} + 64 * (j % {bits})] >> {bits} * (j / {bits})" if bits < 8 else "line[64 * j]"

    q = _stored(planes_of(fmt.bits), quad_field)
    codes = ""
    if fmt.codes:
        q, codes = f"codes[{q}]", f"static const int8_t codes[] = {{{', '.join(map(str, fmt.codes))}}};\n  "
    else:
        q = f"(int8_t)({q})" if fmt.signed else _less(q, fmt.zero)
    factors = ["d"] * fmt.has_d
    if fmt.scale_bits:
        factors.append(_SCALES[fmt.scale_kind].format(_less(packed("g"), fmt.scale_zero)))
    scale, after = f"const float scale = {' * '.join(factors)};", ""
    if fmt.mins == "add":
        after = " + m"
    elif fmt.mins == "subtract":
        after, scale = " - low", f"{scale}\n      const float low = m * (float)({packed(f'{fmt.groups} + g')});"
    head = "\n    ".join(lines)
    return f"""\
  {codes}const int lane = row % 16;
  const uint8_t *w = table + (size_t)(row / 16) * (size_t)(k / {fmt.block}) * {16 * fmt.dtype.block_bytes};
  for (int32_t b = 0; b < k / {fmt.block}; b++, w += {16 * fmt.dtype.block_bytes}) {{
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


# C: what a packed scale means, as in `ir.quant.formats.SCALES`.
_SCALES = {
    "unsigned": "(float)({})",
    "signed": "(float)(int8_t)({})",
    "odd": "(float)(2 * ({}) + 1)",
    "e8m0": "scale_e8m0({})",
    "ue4m3": "scale_ue4m3({})",
}

_WORD = Kernel("panel_word", """\
/* A lane of one of the words of packed scales, of `size` bits. */
INLINE uint32_t panel_word(const uint8_t *words, int size, int word, int lane) {
  uint32_t x = 0;
  for (int i = size / 8; i-- > 0;) x = x << 8 | words[(word * 16 + lane) * (size / 8) + i];
  return x;
}
/* 2^(s - 128) */
INLINE float scale_e8m0(int32_t s) {
  const uint32_t bits = s < 2 ? 0x200000u << s : (uint32_t)(s - 1) << 23;
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
/* Half of a float of 4 bits of exponent and 3 of fraction; its NaN is zero, the bit above is ignored. */
INLINE float scale_ue4m3(int32_t s) {
  const int exponent = s >> 3 & 15, fraction = s & 7;
  if (s == 0x7f) return 0.0f;
  return (float)(exponent ? (8 + fraction) << (exponent - 1) : fraction) * 0x1p-10f;
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

"""The C of block products on aarch64 with int8 matrix products: two rows by two tokens over eight k an instruction.

The same packed panels and planes as `linear_block`, but that two quads of a row are stored side by side (zipped), and a
tile's tokens are summed in pairs. Integer sums are exact, so the bits are those of its F_tile.
"""

from __future__ import annotations

from ...ir.quant import Format
from .linear_job import each
from .tuning import Tile

I8MM = frozenset({"neon_i8mm"})  # targets with such products


def pair_stores(fmt: Format, at: str) -> str:
    """C: 32 values of panel p from `line` to the quads `at` onwards, in pairs. Tiles are of one panel."""
    quads = f"{fmt.dtype}_quad(line, 2 * j), {fmt.dtype}_quad(line, 2 * j + 1)"
    return f"{each(4, 'j')} pair_store(u->quad[{at} + 2 * j][p], {quads});"


def pair_tile(fmt: Format, tile: Tile) -> str:
    """C of F_tile."""
    dtype, most, tokens = fmt.dtype, tile.tokens[-1], each("T", "t")
    pairs = each("(T + 1) / 2", "i")
    start = "pair_sum(dot[t / 2], t % 2)"
    if not fmt.mins and (fmt.zero or fmt.signed):
        start = f"i32_add(i32_splat(terms[t * term_row + g]), {start})"
    scale = f"scale[t * scale_row + {'g' if fmt.group == 32 else 'g / 2'}]"
    also = ", then y += offset * (scale * sum of x)" if fmt.mins else ""
    offset = f"""
    {tokens} {{
      float term;
      memcpy(&term, &terms[t * term_row + g], sizeof term);
      y[t] = f32_add(y[t], f32_mul(f32_load(u->offset[g][0]), f32_splat(term)));
    }}""" if fmt.mins else ""  # fmt: skip
    return f"""\
/* T tokens over `groups` groups of {fmt.group}: y += (scale * scale of x) * sum of q * x{also}.
 * Of an odd number the last token is summed twice. */
INLINE void {dtype}_tile(const int T, const {dtype}_planes *u, int32_t groups, const int8_t *x, size_t x_row,
                         const float *scale, const int32_t *terms, size_t term_row, float *acc) {{
  const size_t scale_row = x_row / sizeof *scale;
  vf32 y[{most}];
  (void)terms, (void)term_row;
  {tokens} y[t] = f32_load(acc + t * 32);
  for (int32_t g = 0; g < groups; g++, x += {fmt.group}) {{
    vpair dot[{(most + 1) // 2}];
    {pairs} dot[i] = pair_zero();
    {each(fmt.group // 8, "j")} {{
      const uint8_t *w = u->quad[{fmt.group // 4} * g + 2 * j][0];
      {pairs} {{
        const int8_t *first = x + 2 * i * x_row + 8 * j, *second = 2 * i + 1 < T ? first + x_row : first;
        dot[i] = pair_dot8(dot[i], w, first, second);
      }}
    }}
    {tokens} {{
      const vi32 sum = {start};
      const vf32 d = f32_mul(f32_load(u->scale[g][0]), f32_splat({scale}));
      y[t] = f32_add(y[t], f32_mul(d, f32_from_i32(sum)));
    }}{offset}
  }}
  {tokens} f32_store(acc + t * 32, y[t]);
}}
"""

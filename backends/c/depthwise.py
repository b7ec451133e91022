"""Convolutions of each channel with a filter of its own, channels last, and what follows them element by element.

A worker takes rows of the result. Neighbours of a row by up to 64 channels are computed in registers, each as one chain
over the window's positions, so that what several of them read is loaded once; where the window leaves the image it
reads zeros. Channels are split evenly: with too few
chains side by side the CPU waits for each step.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from ...ir.graph import IRError, Node, Value
from ...ir.ops.fused import channels_last
from ...ir.target import Target
from ...ir.types import f32
from . import loop
from .epilogue import epilogue, named
from .kernels import Call
from .loop_function import GRAIN, dim_text, kernel_name
from .loop_model import Loop, Read, axes
from .product import GROUP, PRODUCT, tiles
from .text import indented

PLACES, MOST_PLACES = 4, 8  # neighbours that are computed together; where there is one vector of channels


def is_depthwise(node: Node) -> bool:
    """Whether the kernel takes a convolution: two spatial axes of known size, channels last, in f32."""
    x, w = node.inputs
    settings = {name: node.attr(name) for name in ("x_dims", "w_dims", "out_dims")}
    groups = node.attr("groups")
    known = all(isinstance(d, int) for d in (*x.shape[1:], *w.shape, *node.attr("low"), *node.attr("high")))
    plain = x.type.rank == 4 and x.dtype == node.types[0].dtype == f32 and settings == channels_last(2)
    alone = groups == x.shape[-1] == w.shape[-1] and w.shape[2] == 1 and node.attr("base_dilation") == (1, 1)
    return plain and known and alone


def depthwise(node: Node, anchor: Node, finish: Loop, operands: Mapping[Value, int], target: Target) -> Call:
    """The call for `node`, which computes `finish` of the convolution `anchor`."""
    x, w = anchor.inputs
    if not is_depthwise(anchor):
        raise IRError(f"the convolution of {x.type} with {w.type} is not depthwise with channels last")
    _, height, width, channels = x.shape
    taps_y, taps_x, _, _ = w.shape
    batch, out_y, out_x, _ = anchor.types[0].shape
    (stride_y, stride_x), (dilation_y, dilation_x) = anchor.attr("strides"), anchor.attr("dilation")
    top, left = anchor.attr("low")
    assert isinstance(width, int) and isinstance(out_x, int) and isinstance(channels, int)
    assert isinstance(taps_x, int) and isinstance(taps_y, int)
    end = epilogue(anchor, finish, (batch,))
    wide = len(tiles(target)) >= GROUP  # whether the registers hold a group of vectors for each place
    vectors = -(-channels // 16)
    groups = -(-vectors // GROUP)
    size, larger = vectors // groups, vectors % groups  # vectors of a group, and groups that have one more
    lanes = channels - (vectors - 1) * 16
    places = MOST_PLACES if wide and vectors == 1 else PLACES
    positions = (places - 1) * stride_x + (taps_x - 1) * dilation_x + 1
    tile = "@_tile(V, last, g->w + c, at, c, sums);" if wide else (
        "for (int v = 0; v < V; v++, c += 16) @_tile(1, v + 1 < V ? 16 : last, g->w + c, at, c, sums + v * 16);")
    counts = [(size + 1, larger), (size, groups - larger - 1)]  # all groups but the last
    lines = [f"for (int32_t n = 0; n < {count}; n++, c += {16 * n}) @_group({n}, 16, g, at, row, count, c, sums);"
             for n, count in counts if count > 0]  # fmt: skip
    calls = "\n".join(["int32_t c = 0;", *lines, f"@_group({size}, {lanes}, g, at, row, count, c, sums);"])
    text = f"""\
/* {x.type} with {w.type}, depthwise, strides {stride_y}x{stride_x}, to {finish.result.type} */
{end.source}
static const float @_zeros[{channels}];
typedef struct {{ const float *x, *w; @_args rest; }} @_given;

/* Where the window's positions of {places} places of row (b, i) from j on are, line by line: a position's channels. */
static void @_find(const @_given *g, int64_t b, int32_t i, int32_t j, const float **at) {{
  for (int32_t p = 0; p < {taps_y}; p++) {{
    const int32_t s = i * {stride_y} + p * {dilation_y} - {top};
    const float *line = s >= 0 && s < {height} ? g->x + (b * {height} + s) * {width * channels} : NULL;
    for (int32_t n = 0; n < {positions}; n++) {{
      const int32_t z = j * {stride_x} + n - {left};
      *at++ = line && z >= 0 && z < {width} ? line + (int64_t)z * {channels} : @_zeros;
    }}
  }}
}}

/* Sums of {places} places for P vectors of channels from c on, the last of `last`. */
INLINE void @_tile(const int P, const int last, const float *w, const float *const *at, int32_t c, float *sums) {{
  vf32 y[{places}][{GROUP}];
  UNROLL for (int m = 0; m < {places}; m++)
    UNROLL for (int v = 0; v < P; v++) y[m][v] = f32_zero();
  for (int32_t p = 0; p < {taps_y}; p++, at += {positions}, w += {taps_x * channels})
    UNROLL for (int v = 0; v < P; v++) {{
      const int whole = v + 1 < P || last == 16;
      UNROLL for (int32_t q = 0; q < {taps_x}; q++) {{
        const float *weights = w + q * {channels} + v * 16;
        const vf32 f = whole ? f32_load(weights) : f32_load_n(weights, last);
        UNROLL for (int m = 0; m < {places}; m++) {{
          const float *from = at[m * {stride_x} + q * {dilation_x}] + c + v * 16;
          y[m][v] = f32_fma(whole ? f32_load(from) : f32_load_n(from, last), f, y[m][v]);
        }}
      }}
    }}
  UNROLL for (int m = 0; m < {places}; m++)
    UNROLL for (int v = 0; v < P; v++) f32_store(sums + m * GROUP + v * 16, y[m][v]);
}}

/* A group of V vectors of channels from c on: its sums, and what follows them. */
INLINE void @_group(const int V, const int last, const @_given *g, const float *const *at, int32_t row, int32_t count,
                    int32_t c, float *sums) {{
  const int32_t first = c;
  {tile}
  @_finish(&g->rest, sums, row, count, first, (V - 1) * 16 + last);
}}

static void @_part(const void *args, int32_t begin, int32_t end, int32_t worker) {{
  const @_given *g = args;
  const float *at[{taps_y * positions}];
  _Alignas(64) float sums[{places} * GROUP];
  (void)worker;
  for (int32_t n = begin; n < end; n++)
    for (int32_t j = 0; j < {out_x}; j += {places}) {{
      const int32_t row = n * {out_x} + j, count = int_min({out_x} - j, {places});
      @_find(g, n / {out_y}, n % {out_y}, j, at);
{indented(indented(indented(calls)))}
    }}
}}

static void @({end.signature()}) {{
  const @_given given = {{x, w, {{{end.values}}}}};
  parallel(r, {dim_text(batch * out_y)}, {max(1, 4 * GRAIN // (out_x * channels * taps_y * taps_x))}, @_part, &given);
}}
"""
    kernel = named(text, kernel_name("depthwise", finish.result.type), (PRODUCT,))
    return Call(kernel, end.arguments(operands, x, w), regions=1)


def convolution(node: Node, target: Target) -> Call:
    """Of a depthwise convolution its own kernel, of others the general loop."""
    if not is_depthwise(node) or prod(node.types[0].shape[1:]) == 0:
        return loop.lower_loop(node, target)
    shape = node.types[0].shape
    own = Loop(node[0], shape, Read(node[0], axes(len(shape)), shape))
    return depthwise(node, node, own, {v: i for i, v in enumerate(node.inputs)}, target)


LOWERINGS = {"convolution": convolution}

"""Random uses of JAX's primitives: dtypes, shapes, layouts, and the parameters of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st
from jax import lax

FLOATS = ("float32", "float16", "bfloat16")
INTS = ("int8", "int16", "int32", "uint8", "uint16", "uint32")
NUMBERS = FLOATS + INTS
ANY = (*NUMBERS, "bool")


@dataclass(frozen=True)
class Case:
    name: str
    function: Callable[..., Any]
    operands: list[np.ndarray] = field(compare=False)
    settings: Any = None

    def __str__(self) -> str:
        shapes = ", ".join(f"{x.dtype}{list(x.shape)}" for x in self.operands)
        return f"{self.name}({shapes}) {self.settings}"


Draw = Callable[[st.SearchStrategy], Any]


def array(draw: Draw, shape: Sequence[int], dtype: str, *, low: float = -4, high: float = 4) -> np.ndarray:
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    if dtype == "bool":
        return rng.random(shape) < 0.5
    if dtype in INTS:
        return rng.integers(0 if dtype[0] == "u" else int(low), int(high) + 1, shape).astype(dtype)
    return rng.uniform(low, high, shape).astype(jnp.dtype(dtype))


def shapes(draw: Draw, least: int = 0, most: int = 4) -> tuple[int, ...]:
    return tuple(draw(st.lists(st.integers(1, 6), min_size=least, max_size=most)))


def axis_of(draw: Draw, shape: Sequence[int]) -> int:
    return int(draw(st.integers(0, len(shape) - 1)))


# ---- one family each ------------------------------------------------------------------------------------------------

UNARY = {
    **dict.fromkeys("neg abs sign".split(), NUMBERS),
    **dict.fromkeys("floor ceil exp expm1 tanh logistic sin cos erf is_finite square tan sinh cosh atan asinh cbrt "
                    "exp2 erfc".split(), FLOATS),
    "not": INTS + ("bool",), "population_count": INTS, "clz": INTS,
}  # fmt: skip
POSITIVE = "log log1p sqrt rsqrt lgamma digamma".split()
BINARY = {
    **dict.fromkeys("add sub mul max min".split(), NUMBERS), "div": NUMBERS, "rem": FLOATS[:1] + INTS,
    "atan2": FLOATS[:1], "nextafter": FLOATS[:1],
    **dict.fromkeys("bitwise_and bitwise_or bitwise_xor".split(), INTS + ("bool",)),
    **dict.fromkeys("shift_left shift_right_logical shift_right_arithmetic".split(), INTS),
    **dict.fromkeys("eq ne lt le gt ge".split(), ANY),
}  # fmt: skip


def unary(draw: Draw) -> Case:
    if draw(st.booleans()):
        name = draw(st.sampled_from(sorted(UNARY)))
        function = lax.bitwise_not if name == "not" else getattr(lax, name)
        return Case(name, function, [array(draw, shapes(draw), draw(st.sampled_from(UNARY[name])))])
    name = draw(st.sampled_from(POSITIVE))
    return Case(name, getattr(lax, name), [array(draw, shapes(draw), draw(st.sampled_from(FLOATS)), low=0.5, high=9)])


def binary(draw: Draw) -> Case:
    """With operands whose axes of 1 are spread, which jnp writes as broadcasts."""
    name = draw(st.sampled_from(sorted(BINARY)))
    dtype, shape = draw(st.sampled_from(BINARY[name])), shapes(draw)
    keep = [draw(st.booleans()) for _ in shape]
    other = tuple(d if k else 1 for d, k in zip(shape, keep))
    b = array(draw, other, dtype, low=1, high=3) if "shift" in name else array(draw, other, dtype)
    b = np.where(b == 0, np.ones((), b.dtype), b) if name in ("div", "rem") else b

    def function(x: Any, y: Any) -> Any:
        return getattr(lax, name)(x, jnp.broadcast_to(y, x.shape))

    return Case(name, function, [array(draw, shape, dtype), b])


def conversion(draw: Draw) -> Case:
    a, b = draw(st.sampled_from(ANY)), draw(st.sampled_from(ANY))
    return Case("convert", lambda x: x.astype(b), [array(draw, shapes(draw), a, low=0, high=90)], b)


def view(draw: Draw) -> Case:
    shape, dtype = shapes(draw, 1), draw(st.sampled_from(ANY))
    x = array(draw, shape, dtype)
    kind = draw(st.sampled_from("transpose reverse slice pad reshape tile concatenate stack expand roll".split()))
    axis = axis_of(draw, shape)
    if kind == "transpose":
        order = draw(st.permutations(range(len(shape))))
        return Case(kind, lambda x: x.transpose(order), [x], order)
    if kind == "reverse":
        return Case(kind, lambda x: jnp.flip(x, axis), [x], axis)
    if kind == "slice":
        parts = [sorted((draw(st.integers(0, d)), draw(st.integers(0, d)))) for d in shape]
        parts = [(a, max(b, a + 1)) if a < d else (d - 1, d) for (a, b), d in zip(parts, shape)]
        steps = [draw(st.integers(1, 3)) for _ in shape]
        return Case(kind, lambda x: lax.slice(x, [a for a, _ in parts], [b for _, b in parts], steps), [x], parts)
    if kind == "pad":
        edges = [(draw(st.integers(-1 if d > 2 else 0, 2)), draw(st.integers(0, 2)), draw(st.integers(0, 2)))
                 for d in shape]  # fmt: skip
        return Case(kind, lambda x, v: lax.pad(x, v, edges), [x, array(draw, (), dtype)], edges)
    if kind == "reshape":
        return Case(kind, lambda x: x.reshape(-1)[None].reshape(x.shape[::-1]), [x])
    if kind == "tile":
        return Case(kind, lambda x: jnp.repeat(jnp.tile(x, 2), 2, axis), [x], axis)
    if kind == "concatenate":
        y = array(draw, (*shape[:axis], draw(st.integers(1, 4)), *shape[axis + 1 :]), dtype)
        return Case(kind, lambda x, y: jnp.concatenate([x, y, x], axis), [x, y], axis)
    if kind == "stack":
        return Case(kind, lambda x: jnp.stack([x, x[::-1]], axis), [x], axis)
    if kind == "expand":
        return Case(kind, lambda x: jnp.broadcast_to(jnp.expand_dims(x, axis), (*x.shape[:axis], 3, *x.shape[axis:])),
                    [x], axis)  # fmt: skip
    return Case(kind, lambda x: jnp.roll(x, 2, axis), [x], axis)


def reduction(draw: Draw) -> Case:
    shape = shapes(draw, 1)
    kind = draw(st.sampled_from("sum prod max min all any argmax argmin".split()))
    dtype = draw(st.sampled_from(("bool",) if kind in ("all", "any") else NUMBERS))
    axes = axis_of(draw, shape) if kind[:3] == "arg" else tuple(i for i in range(len(shape)) if draw(st.booleans()))
    x = array(draw, shape, dtype, low=-2, high=2)
    return Case(kind, lambda x: getattr(jnp, kind)(x, axes), [x], axes)


def running(draw: Draw) -> Case:
    shape = shapes(draw, 1)
    kind = draw(st.sampled_from("cumsum cumprod cummax cummin cumlogsumexp".split()))
    dtype = draw(st.sampled_from(FLOATS[:1] if kind == "cumlogsumexp" else NUMBERS))
    axis, reverse = axis_of(draw, shape), draw(st.booleans())
    x = array(draw, shape, dtype, low=-1, high=2)
    return Case(kind, lambda x: getattr(lax, kind)(x, axis, reverse), [x], (axis, reverse))


def order(draw: Draw) -> Case:
    shape = shapes(draw, 1)
    dtype, axis = draw(st.sampled_from(NUMBERS)), axis_of(draw, shape)
    x = array(draw, shape, dtype)
    kind = draw(st.sampled_from("sort argsort top_k sort_pairs".split()))
    if kind == "top_k":
        return Case(kind, lambda x: lax.top_k(x, min(3, x.shape[-1])), [x])
    if kind == "sort_pairs":
        y = array(draw, shape, "int32")
        return Case(kind, lambda x, y: lax.sort([x, y, x], dimension=axis, num_keys=2), [x, y], axis)
    return Case(kind, lambda x: getattr(jnp, kind)(x, axis), [x], axis)


def product(draw: Draw) -> Case:
    """dot_general with batch, contracted and free axes anywhere."""
    dtype = draw(st.sampled_from(("float32", "float32", "bfloat16", "float16", "int32", "int8")))
    sizes = {name: draw(st.integers(1, 5)) for name in "bcmnpq"}
    batch = draw(st.sampled_from(("", "b", "bc")))
    summed = draw(st.sampled_from(("p", "pq", "")))
    left = draw(st.permutations(batch + summed + draw(st.sampled_from(("", "m")))))
    right = draw(st.permutations(batch + summed + draw(st.sampled_from(("", "n")))))
    numbers = tuple((tuple(left.index(a) for a in names), tuple(right.index(a) for a in names))
                    for names in (summed, batch))  # fmt: skip
    operands = [array(draw, [sizes[a] for a in names], dtype, low=-2, high=2) for names in (left, right)]
    wide = jnp.float32 if dtype in FLOATS else jnp.int32
    function = partial(lax.dot_general, dimension_numbers=numbers, precision="highest", preferred_element_type=wide)
    return Case("dot", function, operands, numbers)


def convolution(draw: Draw) -> Case:
    rank = draw(st.integers(1, 3))
    groups = draw(st.sampled_from((1, 1, 2, 3)))
    space = "DHW"[-rank:]
    x_spec, w_spec, o_spec = (tuple(draw(st.permutations(f"{a}{space}"))) for a in ("NC", "OI", "NC"))
    size = {"N": 2, "C": groups * draw(st.integers(1, 3)), **{s: draw(st.integers(3, 7)) for s in space}}
    kernel = {"I": size["C"] // groups, "O": groups * draw(st.integers(1, 3)),
              **{s: draw(st.integers(1, 3)) for s in space}}  # fmt: skip
    settings = dict(
        window_strides=[draw(st.integers(1, 2)) for _ in space],
        padding=[(draw(st.integers(0, 2)), draw(st.integers(0, 2))) for _ in space],
        lhs_dilation=[draw(st.sampled_from((1, 1, 2))) for _ in space],
        rhs_dilation=[draw(st.sampled_from((1, 1, 2))) for _ in space], feature_group_count=groups,
    )  # fmt: skip
    dtype = draw(st.sampled_from(("float32", "float32", "float16", "int32")))
    numbers = tuple("".join(s) for s in (x_spec, w_spec, o_spec))
    operands = [array(draw, [size[a] for a in x_spec], dtype, low=-1, high=1),
                array(draw, [kernel[a] for a in w_spec], dtype, low=-1, high=1)]  # fmt: skip
    function = partial(lax.conv_general_dilated, dimension_numbers=numbers, precision="highest", **settings)
    fits = all((size[s] - 1) * d + 1 + a + b >= (kernel[s] - 1) * e + 1 for s, d, e, (a, b) in zip(
        space, settings["lhs_dilation"], settings["rhs_dilation"], settings["padding"]))  # fmt: skip
    return Case("conv", function, operands, (numbers, settings)) if fits else convolution(draw)


def pooling(draw: Draw) -> Case:
    shape = shapes(draw, 1, 3)
    kind, start = draw(st.sampled_from(((lax.add, 0), (lax.max, None), (lax.min, None), (lax.mul, 1))))
    dtype = draw(st.sampled_from(("float32", "float16", "int32", "uint8")))
    x = array(draw, shape, dtype, low=-2, high=2)
    limits = (-np.inf, np.inf) if dtype in FLOATS else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    first = start if start is not None else limits[kind is lax.min]
    window = [draw(st.integers(1, d)) for d in shape]
    strides, padding = [draw(st.integers(1, 2)) for _ in shape], [(draw(st.integers(0, 1)), 1) for _ in shape]
    function = partial(lax.reduce_window, init_value=np.array(first, dtype)[()], computation=kind,
                       window_dimensions=window, window_strides=strides, padding=padding)  # fmt: skip
    return Case("pool", lambda x: function(x), [x], (window, strides, padding))


def addressing(draw: Draw) -> Case:
    shape, dtype = shapes(draw, 1, 3), draw(st.sampled_from(ANY))
    axis = axis_of(draw, shape)
    x = array(draw, shape, dtype)
    index = array(draw, shapes(draw, 0, 2), "int32", low=-8, high=8)
    kind = draw(st.sampled_from("take take_along set add max slice update".split()))
    if kind == "take":
        mode = draw(st.sampled_from(("clip", "fill", "wrap")))
        return Case(kind, lambda x, n: jnp.take(x, n, axis, mode=mode), [x, index], (axis, mode))
    if kind == "take_along":
        n = array(draw, shape, "int32", low=0, high=shape[axis] - 1)
        return Case(kind, lambda x, n: jnp.take_along_axis(x, n, axis), [x, n], axis)
    if kind in ("set", "add", "max"):
        kind = "max" if kind == "add" and dtype == "bool" else kind
        rows = np.arange(shape[0], dtype=np.int32)[::-1].copy() if kind == "set" else index  # once each, for set
        update = array(draw, (*rows.shape, *shape[1:]), dtype)
        return Case(kind, lambda x, n, u: getattr(x.at[n], kind)(u, mode="drop"), [x, rows, update])
    sizes = [draw(st.integers(1, d)) for d in shape]
    starts = array(draw, (len(shape),), "int32", low=-2, high=6)
    if kind == "slice":
        return Case(kind, lambda x, n: lax.dynamic_slice(x, list(n), sizes), [x, starts], sizes)
    return Case(kind, lambda x, n, u: lax.dynamic_update_slice(x, u, list(n)), [x, starts, array(draw, sizes, dtype)])


def choice(draw: Draw) -> Case:
    shape, dtype = shapes(draw), draw(st.sampled_from(ANY))
    x, y = array(draw, shape, dtype), array(draw, shape, dtype)
    if draw(st.booleans()) or dtype == "bool":
        return Case("select", jnp.where, [array(draw, shape, "bool"), x, y])
    return Case("clamp", lambda x: jnp.clip(x, 0, 2), [x])


FAMILIES = (unary, binary, conversion, view, reduction, running, order, product, convolution, pooling, addressing,
            choice, view, product, convolution, addressing)  # fmt: skip


@st.composite
def cases(draw: Draw) -> Case:
    made: Case = draw(st.sampled_from(FAMILIES))(draw)
    return made

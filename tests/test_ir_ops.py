"""Each op means what JAX's means, each decomposition what its op does, and what an op does not take is refused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from inferc.ir.graph import IRError
from inferc.ir.interpret import interpret
from inferc.ir.ops import OPS, cache_row
from inferc.ir.ops.common import narrow
from inferc.ir.ops.special import FUNCTIONS
from inferc.ir.rewrite import expand
from inferc.ir.types import DTYPES, Type, bf16, f16, f32, i32, numpy_dtype
from inferc.ir.verify import verify

from .ir_build import graph, inputs, node, op, sample, typed

RNG = np.random.default_rng(0)


def run(name: str, *arrays: np.ndarray, **attrs: object) -> tuple[np.ndarray, ...]:
    """The reference of an op on arrays, types taken from them."""
    named = {f"x{i}": f"{_dtype(a)}[{','.join(map(str, a.shape))}]" for i, a in enumerate(arrays)}
    values = inputs(**named)
    return interpret(graph(*node(name, *values, **attrs).values, order=values), dict(zip(named, arrays)))


def _dtype(a: np.ndarray) -> str:
    return next(d.name for d in DTYPES.values() if d.numpy and np.dtype(d.numpy) == a.dtype)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def ints(*shape: int, low: int = -40, high: int = 40, dtype: str = "int32") -> np.ndarray:
    return RNG.integers(low, high, shape).astype(dtype)


A, B, POSITIVE = normal(3, 5), normal(3, 5), np.abs(normal(3, 5)) + np.float32(0.1)
I, J = ints(4, 6), ints(4, 6)
EDGES = np.array([0, 1, -1, 2**31 - 1, -(2**31), 7, -7, 31, 32, 33], np.int32)
LEFT, RIGHT = (a.ravel() for a in np.meshgrid(EDGES, EDGES))
BITS = ints(9, dtype="uint32", low=0), ints(9, dtype="uint32", low=0)
BOOLS = RNG.random(7) < 0.5, RNG.random(7) < 0.5



GATHERS = [
    # operand, indices, dimension numbers, slice sizes
    ((7, 4), ints(5, 1, low=-3, high=10), dict(offset_dims=(1,), collapsed_slice_dims=(0,), start_index_map=(0,)),
     (1, 4)),
    ((7, 4), ints(2, 3, 2, low=-2, high=8), dict(offset_dims=(0, 2), collapsed_slice_dims=(), start_index_map=(1, 0)),
     (3, 2)),
    ((3, 7, 4), ints(3, 2, 1, low=-1, high=7),
     dict(offset_dims=(2,), collapsed_slice_dims=(1,), start_index_map=(1,), operand_batching_dims=(0,),
          start_indices_batching_dims=(0,)), (1, 1, 4)),
]  # fmt: skip
JAX_MODES = {"clip": lax.GatherScatterMode.CLIP, "fill": lax.GatherScatterMode.FILL_OR_DROP}

AGAINST_JAX = [
    *((name, (A, B), {}, getattr(lax, name)) for name in ("add", "sub", "mul", "div", "max", "min", "rem")),
    ("pow", (POSITIVE, B), {}, lax.pow),
    *((name, (A,), {}, getattr(lax, name)) for name in
      ("neg", "abs", "sign", "floor", "ceil", "exp", "expm1", "tanh", "logistic", "sin", "cos", "erf")),
    *((name, (POSITIVE,), {}, getattr(lax, name)) for name in ("sqrt", "rsqrt", "log", "log1p")),
    *(("round", (np.array([0.5, 1.5, -2.5, 3.49], np.float32),), dict(mode=mode),
       lambda x, method=method: lax.round(x, lax.RoundingMethod(method)))
      for method, mode in enumerate(("away", "even"))),
    *((name, (I, J), {}, f) for name, f in
      (("add", lax.add), ("mul", lax.mul), ("and", lax.bitwise_and), ("or", lax.bitwise_or), ("xor", lax.bitwise_xor))),
    ("div", (LEFT, RIGHT), {}, lax.div),
    ("rem", (LEFT, RIGHT), {}, lax.rem),
    ("div", BITS, {}, lax.div),
    ("not", (I,), {}, lax.bitwise_not),
    ("and", BOOLS, {}, lax.bitwise_and),
    ("max", BOOLS, {}, lax.max),
    ("shift_left", (LEFT, RIGHT), {}, lax.shift_left),
    ("shift_right_logical", (LEFT, RIGHT), {}, lax.shift_right_logical),
    ("shift_right_arithmetic", (LEFT, RIGHT), {}, lax.shift_right_arithmetic),
    *(("compare", (I % 3, J % 3), dict(direction=d), getattr(lax, d)) for d in ("eq", "ne", "lt", "le", "gt", "ge")),
    ("select", (A > 0, A, B), {}, lambda p, a, b: lax.select(p, a, b)),
    ("clamp", (A - 1, B, A + 1), {}, lax.clamp),
    ("is_finite", (np.array([1, np.inf, np.nan], np.float32),), {}, lax.is_finite),
    *(("convert", (np.array([0, 1.5, -1.5, 1e20, -1e20, np.nan, 255.9, -0.0], np.float32),), dict(dtype=DTYPES[d]),
       lambda x, d=d: lax.convert_element_type(x, numpy_dtype(DTYPES[d]))) for d in ("i32", "i8", "u8", "f16", "bool")),
    ("convert", (LEFT,), dict(dtype=DTYPES["i8"]), lambda x: lax.convert_element_type(x, jnp.int8)),
    ("bitcast", (A,), dict(dtype=i32), lambda x: lax.bitcast_convert_type(x, jnp.int32)),
    ("broadcast", (A,), dict(shape=(3, 2, 5), dims=(0, 2)), lambda x: lax.broadcast_in_dim(x, (3, 2, 5), (0, 2))),
    ("reshape", (A,), dict(shape=(5, 3)), lambda x: x.reshape(5, 3)),
    ("transpose", (normal(2, 3, 4),), dict(permutation=(2, 0, 1)), lambda x: lax.transpose(x, (2, 0, 1))),
    ("reverse", (A,), dict(axes=(1,)), lambda x: lax.rev(x, (1,))),
    ("slice", (normal(7, 5),), dict(start=(1, 0), limit=(7, 4), stride=(2, 3)),
     lambda x: lax.slice(x, (1, 0), (7, 4), (2, 3))),
    ("pad", (A, np.array(9, np.float32)), dict(low=(1, -2), high=(0, 3), interior=(2, 0)),
     lambda x, v: lax.pad(x, v, ((1, 0, 2), (-2, 3, 0)))),
    ("concatenate", (A, B), dict(axis=1), lambda *x: lax.concatenate(x, 1)),
    *(("reduce", (normal(3, 40, 2),), dict(kind=k, axes=(0, 1)), lambda x, k=k: getattr(jnp, k)(x, (0, 1)))
      for k in ("sum", "max", "min", "prod")),
    ("reduce", (I,), dict(kind="sum", axes=(1,)), lambda x: x.sum(1)),
    ("reduce", (I,), dict(kind="max", axes=()), lambda x: x),
    ("reduce", (np.zeros((2, 0), np.int32),), dict(kind="min", axes=(1,)), lambda x: jnp.full(2, 2**31 - 1, jnp.int32)),
    ("reduce", (BOOLS[0],), dict(kind="or", axes=(0,)), lambda x: x.any(0)),
    ("reduce", (BOOLS[0],), dict(kind="and", axes=(0,)), lambda x: x.all(0)),
    ("argmax", (I % 3,), dict(axis=1), lambda x: lax.argmax(x, 1, jnp.int32)),
    ("argmin", (I % 3,), dict(axis=0), lambda x: lax.argmin(x, 0, jnp.int32)),
    ("cumsum", (A,), dict(axis=1), lambda x: lax.cumsum(x, 1)),
    ("cumsum", (I,), dict(axis=0, reverse=True), lambda x: lax.cumsum(x, 0, reverse=True)),
    ("sort", (np.array([[3, np.nan, -0.0, 0.0, -1, np.inf]], np.float32), ints(1, 6)), dict(axis=1),
     lambda *x: lax.sort(x, dimension=1, num_keys=1)),
    ("sort", (I % 2, J % 3, ints(4, 6)), dict(axis=0, keys=2), lambda *x: lax.sort(x, dimension=0, num_keys=2)),
    ("top_k", (I % 4,), dict(k=4), lambda x: lax.top_k(x, 4)),
    ("dynamic_slice", (normal(6, 5), np.array(9, np.int32), np.array(-30, np.int32)), dict(sizes=(2, 3)),
     lambda x, i, j: lax.dynamic_slice(x, (i, j), (2, 3))),
    ("dynamic_update_slice", (normal(6, 5), normal(2, 3), np.array(5, np.int32), np.array(1, np.int32)), {},
     lambda x, u, i, j: lax.dynamic_update_slice(x, u, (i, j))),
    ("dot_general", (normal(2, 3, 4, 5), normal(5, 4, 6, 2)), dict(contracting=((3, 2), (0, 1)), batch=((0,), (3,))),
     lambda a, b: lax.dot_general(a, b, (((3, 2), (0, 1)), ((0,), (3,))), precision="highest")),
    ("dot_general", (I, J), dict(contracting=((1,), (1,))),
     lambda a, b: lax.dot_general(a, b, (((1,), (1,)), ((), ())))),
    *(("gather", (normal(*shape), indices), dict(**dims, slice_sizes=sizes, mode=mode),
       lambda x, i, dims=dims, sizes=sizes, mode=mode: lax.gather(
           x, i, lax.GatherDimensionNumbers(**dims), sizes, mode=JAX_MODES[mode]))
      for shape, indices, dims, sizes in GATHERS for mode in JAX_MODES),
    *(("scatter", (ints(7, 4), np.array([[1], [5], [9], [1], [-1]], np.int32), ints(5, 4)),
       dict(kind=kind, update_window_dims=(1,), inserted_window_dims=(0,), scatter_dims_to_operand_dims=(0,),
            mode=mode),
       lambda x, i, u, kind=kind, mode=mode: getattr(lax, f"scatter_{kind}")(
           x, i, u, lax.ScatterDimensionNumbers((1,), (0,), (0,)), mode=JAX_MODES[mode]))
      for kind in ("add", "mul", "max", "min") for mode in JAX_MODES),
    ("scatter", (normal(3, 7, 4), ints(3, 1, 1, low=0, high=5), normal(3, 1, 2, 4)),
     dict(kind="set", update_window_dims=(2, 3), scatter_dims_to_operand_dims=(1,), operand_batching_dims=(0,),
          scatter_indices_batching_dims=(0,)),
     lambda x, i, u: lax.scatter(x, i, u, lax.ScatterDimensionNumbers((2, 3), (), (1,), (0,), (0,)),
                                 mode=JAX_MODES["fill"])),
]  # fmt: skip


@pytest.mark.parametrize("name, arrays, attrs, jax_op", AGAINST_JAX, ids=lambda x: x if isinstance(x, str) else "")
def test_generic_ops_are_those_of_xla(name, arrays, attrs, jax_op):
    expected = jax_op(*map(jnp.asarray, arrays))
    results = run(name, *arrays, **attrs)
    expected = expected if isinstance(expected, (tuple, list)) else (expected,)
    assert len(results) == len(expected)
    for ours, theirs in zip(results, map(np.asarray, expected)):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=1e-6)


def test_elements_made_from_nothing():
    t = typed("i32[2, 3]")
    assert interpret(graph(op("iota", type=t, dim=1)), {})[0].tolist() == [[0, 1, 2]] * 2
    data = np.arange(6, dtype=np.int32)
    assert interpret(graph(op("constant", type=t, value=data.tobytes())), {})[0].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_half_floats_compute_in_f32_and_round_once():
    x, y = (RNG.normal(size=100).astype(np.float32) for _ in range(2))
    a, b = inputs(a="bf16[100]", b="bf16[100]")
    bits = [narrow(v, bf16) for v in (x, y)]
    (ours,) = interpret(graph(op("mul", a, b), order=(a, b)), dict(zip("ab", bits)))
    theirs = jnp.asarray(x).astype(jnp.bfloat16) * jnp.asarray(y).astype(jnp.bfloat16)
    assert (ours == np.asarray(lax.bitcast_convert_type(theirs, jnp.uint16))).all()
    assert np.isnan(interpret(graph(op("convert", a, dtype=f32)), {"a": np.full(100, 0x7FC0, np.uint16)})[0]).all()


# op, operand types, attributes; every one is expanded until no decomposition is left
DECOMPOSED = [
    ("patch_linear", ("f32[2, 5, 6]", "f32[7, 6]"), {}),
    ("patch_linear", ("f32[2, 5, 4, 3]", "f32[7, 18]"),
     dict(window=(3, 2), strides=(2, 1), low=(1, 0), high=(0, 1), dilation=(1, 1))),
    *((name, ("f32[T, 7]",), {}) for name in ("silu", "gelu_tanh", "gelu")),
    *((name, ("f32[T, 7]",) * count, {}) for name, (count, *_) in FUNCTIONS.items()),
    *(("fft", (f"f32[T, {n}]",) * 2, dict(inverse=inverse)) for n in (1, 8, 9) for inverse in (False, True)),
    ("softcap", ("f32[T, 7]",), dict(cap=30.0)),
    *(("gated", ("f32[T, 7]", "f32[T, 7]"), dict(activation=a)) for a in ("silu", "gelu_tanh", "gelu")),
    ("rms_norm", ("f32[T, 3, 40]", "f32[40]"), dict(eps=1e-5)),
    ("rms_norm", ("f32[T, 64]", "f32[64]"), dict(eps=1e-5, dtype=DTYPES["a8g32"])),
    ("layer_norm", ("f32[T, 40]", "f32[40]", "f32[40]"), dict(eps=1e-5)),
    ("softmax", ("f32[3, T, 5]",), dict(axis=1)),
    ("softmax", ("f32[3, T, 5]",), dict(axis=2)),
    ("rope_angles", ("i32[T]", "f32[8]"), dict(scale=1.25)),
    *(("rope", (f"f32[T, 3, {width}]", "f32[T, 8]", "f32[T, 8]"), dict(style=s))
      for s in ("neox", "interleaved") for width in (16, 24)),
    ("linear", ("f32[T, 64]", "f32[5, 64]"), {}),
    ("linear", ("f32[T, 64]", "q5_1[5, 64]", "f32[5]"), {}),
    ("linear", ("a8g32[T, 64]", "q4_0[5, 64]", "f32[5]"), {}),
    ("linear", ("a8g32[T, 512]", "q4_k[5, 512]"), {}),
    ("linear", ("bf16[T, 64]", "bf16[5, 64]"), {}),
    ("linear_group", ("f32[T, 32]", "q4_0[5, 32]", "f16[3, 32]", "f32[2, 32]", "f32[3]"),
     dict(biases=(False, True, False))),
    ("linear_add", ("f32[T, 32]", "q8_0[5, 32]", "f32[T, 5]", "f32[5]"), {}),
    ("gated_linear", ("f32[T, 32]", "q4_1[5, 32]", "q5_0[5, 32]"), dict(activation="silu")),
    ("gated_linear", ("a8g32[T, 32]", "q4_1[64, 32]", "q5_0[64, 32]"), dict(activation="gelu", dtype=DTYPES["a8g32"])),
    ("expert_linear", ("f32[T, 32]", "q4_0[4, 6, 32]", "i32[T, 2]"), {}),
    ("embedding", ("q6_k[9, 256]", "i32[T]"), {}),
    ("embedding", ("bf16[9, 8]", "i32[T]"), {}),
    ("take_rows", ("f32[4, 8]", "i32[R]"), {}),
    ("rope_cache_write", ("f32[S, 2, 8, 6]", "f32[T, 2, 6]", "f32[T, 3]", "f32[T, 3]", "i32[T]", "i32[T]"),
     dict(style="neox")),
    ("attention", ("f32[2, 4, T, 8]", "f32[2, 2, R, 8]", "f32[2, 2, R, 6]"), dict(scale=0.3)),
    ("attention", ("f32[2, 4, T, 8]", "f32[2, 2, R, 8]", "f32[2, 2, R, 6]"), dict(scale=0.3, causal=True, softcap=5.0)),
    ("attention", ("f32[2, 4, T, 8]", "f32[2, 4, R, 8]", "f32[2, 4, R, 6]", "bool[1, 4, T, R]"),
     dict(scale=0.3, causal=True)),
    ("attention", ("f32[2, 4, T, 8]", "f32[2, 1, R, 8]", "f32[2, 1, R, 6]", "f32[2, 1, 1, R]"), dict(scale=0.3)),
]  # fmt: skip


@pytest.mark.parametrize("name, types, attrs", DECOMPOSED, ids=lambda x: x if isinstance(x, str) else "")
def test_decompositions(name, types, attrs):
    dims = {"T": 4, "R": 3, "S": 2}
    named = {f"x{i}": text for i, text in enumerate(types)}
    values = inputs(**named)
    whole = graph(*node(name, *values, at="here", **attrs).values, order=values)
    parts = expand(whole, lambda n: True)
    verify(parts)
    assert not any(n.op.decompose for n in parts.nodes())
    assert {n.origin.path for n in parts.nodes() if n.op.name != "input"} == {"here"}
    rng = np.random.default_rng(1)
    arrays = {k: sample(Type(tuple(_size(d, dims) for d in v.shape), v.dtype), rng) for k, v in zip(named, values)}
    for ours, theirs in zip(interpret(whole, arrays, dims), interpret(parts, arrays, dims), strict=True):
        if ours.dtype == np.uint8:
            assert (ours == theirs).mean() > 0.98
        elif types[0].startswith(("a8", "bf16")):  # products of rounded activations: other sums of the same terms
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
        else:
            np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-6)


def _size(dim, dims):
    return dim if isinstance(dim, int) else dims[str(dim)]


def test_every_decomposition_is_tested():
    assert {op.name for op in OPS.values() if op.decompose} == {name for name, _, _ in DECOMPOSED}


@pytest.mark.parametrize("dtype", ["q4_0", "q6_k", "f16", "bf16", "f32"])
def test_packing_changes_no_product(dtype):
    x, w = inputs(x="f32[T, 256]", w=f"weight {dtype}[21, 256]")
    packed = op("pack", w)
    rng = np.random.default_rng(2)
    arrays = {"x": normal(3, 256), "w": sample(w.type, rng)}
    a, b, c = interpret(graph(op("linear", x, w), op("linear", x, packed), op("unpack", packed)), arrays)
    assert (a == b).all() and (c == arrays["w"]).all()


def test_rows_concatenate_and_recode():
    a, b = inputs(a="weight iq2_xs[2, 256]", b="weight iq2_xs[3, 256]")
    rng = np.random.default_rng(3)
    raw = rng.integers(0, 256, (5, 74), np.uint8)
    raw[:, 0], raw[:, 1] = 0, 0x20
    joined = op("concat_rows", a, b)
    both, codes, wide = interpret(graph(joined, op("dequantize", op("recode", joined)), op("dequantize", joined)),
                                  {"a": raw[:2], "b": raw[2:]})  # fmt: skip
    assert (both == raw).all() and codes.shape == (5, 256) and (codes == wide).all()


def test_cached_attention_sees_its_own_sequence_up_to_its_position():
    k, v, q, sequence, position = inputs(k="state f32[2, 1, 8, 4]", v="state f16[2, 1, 8, 3]", q="f32[T, 2, 4]",
                                         sequence="i32[T]", position="i32[T]")  # fmt: skip
    new_k, new_v = inputs(new_k="f32[T, 1, 4]", new_v="f32[T, 1, 3]")
    written = [op("cache_write", cache, x, sequence, position) for cache, x in ((k, new_k), (v, new_v))]
    y = op("cached_attention", q, *written, sequence, position, scale=0.5)
    g = graph(y, *written, names=("y", "k", "v"))
    arrays = {"k": np.zeros((2, 1, 8, 4), np.float32), "v": np.zeros((2, 1, 8, 3), np.float16), "q": normal(5, 2, 4),
              "new_k": normal(5, 1, 4), "new_v": normal(5, 1, 3), "sequence": [0, 0, 1, 2, 0],
              "position": [0, 1, 0, 77, 2]}  # fmt: skip
    out = interpret(g, arrays)
    mine = [0, 1, 4]
    rows = arrays["new_v"][mine, 0].astype(np.float16).astype(np.float32)
    score = np.einsum("hd,kd->hk", arrays["q"][4], arrays["new_k"][mine, 0]) * 0.5
    p = np.asarray(jax.nn.softmax(score, axis=-1))
    np.testing.assert_allclose(out["y"][4], p @ rows, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(out["y"][2], np.repeat(arrays["new_v"][2].astype(np.float16), 2, 0), rtol=1e-3)
    assert not out["y"][3].any()
    assert (out["k"][0, 0, :3] == arrays["new_k"][mine, 0]).all() and not out["k"][1, 0, 1:].any()


def test_a_ring_serves_a_window_as_a_whole_cache_does():
    window, tokens, width = 5, 23, 4
    data = {name: normal(tokens, 1, width) for name in "qkv"}

    def outputs(rows: int, chunk: int) -> np.ndarray:
        caches = {name: np.zeros((1, 1, rows, width), np.float32) for name in ("ck", "cv")}
        cache = f"state f32[1, 1, {rows}, {width}]"
        ck, cv, seq, pos, q, k, v = inputs(ck=cache, cv=cache, seq="i32[T]", pos="i32[T]",
                                           **{n: f"f32[T, 1, {width}]" for n in "qkv"})  # fmt: skip
        nk, nv = (op("cache_write", c, x, seq, pos, window=window) for c, x in ((ck, k), (cv, v)))
        y = op("cached_attention", q, nk, nv, seq, pos, scale=1.0, window=window)
        g, found = graph(y, nk, nv, names=("y", "ck", "cv")), []
        for start in range(0, tokens, chunk):
            at = slice(start, start + chunk)
            count = len(data["q"][at])
            positions = {"seq": np.zeros(count, np.int32), "pos": np.arange(start, start + count, dtype=np.int32)}
            result = interpret(g, {**{n: a[at] for n, a in data.items()}, **caches, **positions})
            caches = {n: result[n] for n in caches}
            found.append(result["y"])
        return np.concatenate(found)

    whole = outputs(rows=tokens, chunk=tokens)
    assert (outputs(rows=window + 3, chunk=4) == whole).all()
    assert (outputs(rows=window, chunk=1) == whole).all()
    assert cache_row(8, np.array([3, 11]), window=5).tolist() == [3, 3]
    with pytest.raises(IRError, match="positions 3..11 lie outside a cache of 8 rows"):
        cache_row(8, np.array([3, 11]), window=0)


def test_cache_write_rounds_drops_and_wraps():
    cache = np.zeros((2, 1, 8, 4), np.float16)
    x = np.full((4, 1, 4), 1e6, np.float32)
    x[1] = 1.0001
    types = [Type(cache.shape, f16), Type(x.shape, f32)]
    write = OPS["cache_write"].reference
    (got,) = write(types, cache, x, np.array([0, 1, 2, -1]), np.array([9, 3, 0, 0]), window=4)
    assert np.isinf(got[0, 0, 1]).all() and (got[1, 0, 3] == 1).all() and np.count_nonzero(got) == 8
    assert not cache.any()


REFUSED = [
    ("add", ("f32[3]", "f32[4]"), {}, "equal types"),
    ("add", ("q4_0[32]", "q4_0[32]"), {}, "dequantised"),
    ("exp", ("i32[3]",), {}, "takes float, not i32"),
    ("compare", ("f32[3]", "f32[3]"), dict(direction="above"), "direction must be one of"),
    ("broadcast", ("f32[3]",), dict(shape=(4,), dims=(0,)), "cannot become 4"),
    ("reshape", ("f32[T, 4]",), dict(shape=(8,)), "4*T elements"),
    ("concatenate", ("f32[T, 4]", "f32[R, 4]"), dict(axis=1), "differ in more than axis 1"),
    ("dot_general", ("f32[2, 3]", "f32[2, 3]"), dict(contracting=((1,), (0,))), "axes of 3 and 2 do not pair"),
    ("softmax", ("f32[2]",), dict(axis=-1), "axis -1 is outside 0..0"),
    ("linear", ("f32[T, 64]", "q4_0[8, 32]"), {}, "inner dimensions 64 and 32 differ"),
    ("linear", ("a8g32[T, 256]", "f16[8, 256]"), {}, "a8g32 with a weight in blocks"),
    ("linear", ("f16[T, 32]", "f16[8, 32]"), {}, "x may be f32"),
    ("linear", ("f32[T, 32]", "f32[8, 32]", "f32[7]"), {}, "the bias must be f32[8]"),
    ("linear_group", ("f32[T, 32]", "f32[8, 32]"), dict(biases=(True,)), "need x and 2 operands"),
    ("quantize", ("f32[T, 48]",), dict(dtype=DTYPES["a8g32"]), "multiple of 32"),
    ("pack", ("iq2_xs[8, 256]",), {}, "no packed form"),
    ("attention", ("f32[1, 4, T, 8]", "f32[1, 3, R, 8]", "f32[1, 3, R, 8]"), dict(scale=1.0), "cannot share 3"),
    ("cache_write", ("f32[S, 2, C, 8]", "f32[T, 2, 6]", "i32[T]", "i32[T]"), {}, "x must be f32"),
    ("rope", ("f32[T, 2, 8]", "f32[T, 5]", "f32[T, 5]"), dict(style="neox"), "5 pairs do not fit"),
    ("embedding", ("f32[9, 8]", "i64[T]"), {}, "ids must be i32"),
    ("silu", ("f32[2]",), dict(cap=1.0), "unknown attribute cap"),
    ("softcap", ("f32[2]",), {}, "missing attribute cap"),
]  # fmt: skip


@pytest.mark.parametrize("name, types, attrs, message", REFUSED, ids=[f"{r[0]}: {r[3]}" for r in REFUSED])
def test_wrong_operands_are_refused_by_name_and_place(name, types, attrs, message):
    values = inputs(**{f"x{i}": t for i, t in enumerate(types)})
    with pytest.raises(IRError) as error:
        op(name, *values, at="blk.3.here", **attrs)
    assert message in str(error.value) and f"{name} at blk.3.here" in str(error.value)

"""Every word of isa/generic.h gives the same bits in every other header, on ordinary, extreme and special values."""

from __future__ import annotations

import re
from functools import cache

import numpy as np

from inferc.backends.c.kernels import Call, DimValue, Kernel, Operand, Result
from inferc.ir.numerics import linear as numerics
from inferc.ir.types import symbol

from .c_harness import ISA, Calls, every_product_target, same_bits

N = symbol("N", 16, 1 << 20)

# By word: what its 16 lanes give. x, y, z are vf32, i, j vi32, p, q vu8 of bytes; at l of the arrays of those names
# (a, b, c; ints; bytes), and out is where the result goes.
F32 = {
    "f32_splat": "f32_splat(a[l + 3])", "f32_zero": "f32_zero()", "f32_load": "x",
    "f32_load_n": "f32_load_n(a + l, l / 16 % 17)",
    "f32_add": "f32_add(x, y)", "f32_sub": "f32_sub(x, y)", "f32_mul": "f32_mul(x, y)", "f32_div": "f32_div(x, y)",
    "f32_max": "f32_max(x, y)", "f32_min": "f32_min(x, y)", "f32_sqrt": "f32_sqrt(x)", "f32_fma": "f32_fma(x, y, z)",
    "f32_abs": "f32_abs(x)", "f32_rint": "f32_rint(x)", "f32_select_gt": "f32_select_gt(x, y, z, x)",
    "f32_of_bits": "f32_of_bits(i)", "f32_from_i32": "f32_from_i32(i)",
    "f32_ldexp": "f32_ldexp(f32_add(f32_splat(0.5f), f32_of_bits(i32_and(i, i32_splat(0x3f7fffff)))), "
                 "f32_sub(f32_from_i32(i32_and(j, i32_splat(255))), f32_splat(140.0f)))",
    "f32_ldexp_nan": "f32_abs(f32_ldexp(f32_splat(NAN), f32_splat(NAN)))",
    "f32_sum": "f32_splat(f32_sum(x))", "f32_hmax": "f32_splat(f32_hmax(x))",
    "f16_value": "f32_splat(f16_value((uint16_t)ints[l]))", "f32_load_f16": "f32_load_f16((const void *)(ints + l))",
    "f32_load_bf16": "f32_load_bf16((const void *)(ints + l))",
    "f32_load_s8": "f32_load_s8((const int8_t *)bytes + l)", "dot2_bf16": "dot2_bf16(x, i, j)",
}  # fmt: skip
I32 = {
    "f32_bits": "f32_bits(x)", "i32_from_f32": "i32_from_f32(f32_rint(x))", "i32_splat": "i32_splat(ints[l + 5])",
    "i32_zero": "i32_zero()", "i32_add": "i32_add(i, j)", "i32_sub": "i32_sub(i, j)", "i32_mul": "i32_mul(i, j)",
    "i32_and": "i32_and(i, j)", "i32_or": "i32_or(i, j)", "i32_shl": "i32_shl(i, 7)", "i32_shr": "i32_shr(i, 7)",
    "i32_sum": "i32_splat(i32_sum(i))", "f16_bits": "i32_splat(f16_bits(a[l]))",
    "dot4_u7s8": "chain_u7(i, p, (const int8_t *)bytes + l)", "dot4_s8s8": "chain_s8(i, p, (const int8_t *)bytes + l)",
}  # fmt: skip
U8 = {
    "u8_load": "p", "u8_and_splat": "u8_and_splat(p, 0x5a)", "u8_or": "u8_or(p, q)", "u8_shr16": "u8_shr16(p, 5)",
    "u8_shl16": "u8_shl16(p, 3)", "u8_lookup": "u8_lookup(bytes, u8_and_splat(p, 15))",
}  # fmt: skip
STORES = {
    "f32_store": "f32_store(to, x)", "f32_store_n": "f32_store_n(to, x, l / 16 % 17)",
    "f32_transpose": "transposed(a, l, n, to)",
    "f32_store_f16": "f32_store_f16((void *)to, x)", "f32_store_bf16": "f32_store_bf16((void *)to, x)",
    "i32_store_s8": "i32_store_s8((void *)to, i32_sub(i32_and(i, i32_splat(255)), i32_splat(128)))",
}
WORDS = {
    **{n: f"f32_store(to, {e})" for n, e in F32.items()}, **{n: f"i32_store((void *)to, {e})" for n, e in I32.items()},
    **{n: f"u8_store((void *)to, {e})" for n, e in U8.items()}, **STORES,
}  # fmt: skip
PROLOGUE = """\
    const vf32 x = f32_load(a + l), y = f32_load(b + l), z = f32_load(c + l);
    const vi32 i = i32_load(ints + l), j = i32_load(ints + l + 16);
    const vu8 p = u8_load(bytes + 4 * l), q = u8_load(bytes + 4 * l + 64);
    float *to = out + l;
    (void)x, (void)y, (void)z, (void)i, (void)j, (void)p, (void)q;
"""
CHAINS = Kernel("chains", """\
/* One of the 16 vectors that those from l on become, a different one each time. */
INLINE void transposed(const float *a, int32_t l, int32_t n, float *to) {
  vf32 x[16];
  for (int i = 0; i < 16; i++) x[i] = f32_load(a + (l + 16 * i) % (n - 16));
  f32_transpose(x);
  f32_store(to, x[l / 16 % 16]);
}
/* As kernels use dot products: as many as a vdot takes, of weights of 4 bits, and one of the largest. */
INLINE vi32 chain_u7(vi32 sum, vu8 w, const int8_t *x) {
  vdot d = dot_begin(sum);
  for (int j = 0; j < DOT_QUADS(4); j++) d = dot4_u7s8(d, u8_and_splat(w, 15), quad_load(x + 4 * j));
  sum = dot_end(sum, d);
  return dot_end(sum, dot4_u7s8(dot_begin(sum), u8_and_splat(w, 127), quad_load(x)));
}
INLINE vi32 chain_s8(vi32 sum, vu8 w, const int8_t *x) {
  int32_t total = 0;
  for (int j = 0; j < 4; j++) total += x[j];
  sum = i32_sub(sum, i32_splat(S8_ZERO * total));
  return dot_end(sum, dot4_s8s8(dot_begin(sum), s8_weights(w), quad_load(x)));
}
""")


@cache
def words(target: str) -> Calls:
    calls = []
    for name, statement in WORDS.items():
        source = f"""\
static void word_{name}(const float *a, const float *b, const float *c, const int32_t *ints, const uint8_t *bytes,
                        float *out, int32_t n) {{
  for (int32_t l = 0; l + 32 <= n; l += 16) {{
{PROLOGUE}    {statement};
  }}
}}
"""
        args = (*map(Operand, range(5)), Result(0), DimValue(N))
        calls.append(Call(Kernel(f"word_{name}", source, (CHAINS,)), args))
    return Calls(calls, target)


def inputs() -> list[np.ndarray]:
    """Floats of every kind in every combination, numbers of similar size, integers, and bytes none of which is -128."""
    rng, special = np.random.default_rng(0), np.array(
        [0, 1, 0.5, 1.5, 2.5, 1e-45, 1e-40, 2.0**-126, 6e-8, 65504, 65519.99, 65520, 2.0**31, 2147483520, 1e38, np.inf,
         np.nan, 0.1], np.float32)  # fmt: skip
    special = np.concatenate([special, -special])
    triples = [g.ravel() for g in np.meshgrid(special, special, special[::3])]
    any_bits = rng.integers(0, 1 << 32, (3, 1 << 13), np.uint64).astype(np.uint32).view(np.float32)
    usual = (rng.normal(size=(3, 1 << 13)) * 10 ** rng.uniform(-3, 4, (3, 1 << 13))).astype(np.float32)
    floats = [np.concatenate(parts) for parts in zip(triples, any_bits, usual)]
    count = len(floats[0]) // 16 * 16
    ints = rng.integers(-(1 << 31), 1 << 31, count).astype(np.int32)
    ints[::7] = rng.integers(-200, 200, len(ints[::7]))
    data = rng.integers(-127, 128, 4 * count).astype(np.int8)
    data[256:1024] = np.repeat([127, -127, 0, 127, 127, -127], 128)
    return [*(f[:count] for f in floats), ints, data.view(np.uint8)]


def results(target: str) -> dict[str, np.ndarray]:
    given, found = inputs(), {}
    for index, name in enumerate(WORDS):
        found[name] = np.zeros(len(given[0]), np.float32)
        words(target).run(index, given, [found[name]], {"N": len(given[0])})
    return found


@cache
def expected() -> dict[str, np.ndarray]:
    return results("generic")


def kind(name: str) -> type:
    """What the results of a word are compared as: NaNs are alike among floats."""
    if name in ("f16_bits", "f32_store_f16"):
        return np.float16
    return np.float32 if name in F32 or name in ("f32_store", "f32_store_n", "f32_transpose") else np.uint32


def test_every_word_is_here() -> None:
    defined = set(re.findall(r"^INLINE \w+ (\w+)\(", (ISA / "generic.h").read_text(), re.MULTILINE))
    used = " ".join([CHAINS.source, PROLOGUE, *WORDS.values()])
    assert defined - {"flushed", "fma_flushed"} <= set(re.findall(r"\w+", used))


@every_product_target
def test_words_mean_what_generic_says(target: str) -> None:
    found, want, wrong = results(target), expected(), {}
    for name in WORDS:
        if not same_bits(found[name].view(kind(name)), want[name].view(kind(name))):
            got, meant = found[name].view(np.uint32), want[name].view(np.uint32)
            lanes = np.flatnonzero(got != meant)[:5]
            wrong[name] = [f"{got[i]:x} for {meant[i]:x} at {i}" for i in lanes]
    assert not wrong, wrong


@every_product_target
def test_fma_rounds_once(target: str) -> None:
    """Against the emulation in NumPy, which generic's fmaf is compared with elsewhere."""
    a, b, c, *_ = given = inputs()
    got = np.zeros(len(a), np.float32)
    words(target).run(list(WORDS).index("f32_fma"), given, [got], {"N": len(a)})
    assert same_bits(got[:-32], numerics.fma(a, b, c)[:-32])

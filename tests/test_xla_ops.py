"""Every op as StableHLO: XLA and StableHLO's reference interpreter compute what the interpreter of the IR does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from inferc.backends.xla.context import Context, Facts
from inferc.backends.xla.lower import LOWERINGS, lower
from inferc.ir import quant
from inferc.ir.graph import IRError
from inferc.ir.ops import OPS
from inferc.ir.types import BLOCK_SIZES, CODE_SIZES, DTYPES, Type

from .ir_build import graph, inputs, node, op, sample, typed
from .test_ir_ops import AGAINST_JAX, DECOMPOSED
from .tiny_models import random_weight
from .xla_run import Case, by_reference, by_xla, case, near

RNG = np.random.default_rng(3)


def generic_cases() -> dict[str, Case]:
    found = {}
    for i, (name, arrays, attrs, _) in enumerate(AGAINST_JAX):
        dtypes = (next(d.name for d in DTYPES.values() if d.numpy and np.dtype(d.numpy) == a.dtype) for a in arrays)
        named = {f"x{k}": f"{d}[{','.join(map(str, a.shape))}]" for k, (d, a) in enumerate(zip(dtypes, arrays))}
        values = inputs(**named)
        found[f"{name} {i}"] = case(graph(*node(name, *values, **attrs).values, order=values), dict(zip(named, arrays)))
    return found


def named_cases() -> dict[str, Case]:
    """With few tokens and with many, which some ops compute in another form."""
    found = {}
    for i, (name, types, attrs) in enumerate(DECOMPOSED):
        for dims in ({"T": 4, "R": 3, "S": 2}, {"T": 11, "R": 9, "S": 2}):
            named = {f"x{k}": text for k, text in enumerate(types)}
            values = inputs(**named)
            shapes = [Type(tuple(d if isinstance(d, int) else dims[str(d)] for d in v.shape), v.dtype) for v in values]
            arrays = {k: sample(t, RNG) for k, t in zip(named, shapes)}
            if name == "take_rows":
                arrays["x1"] %= 4
            whole = graph(*node(name, *values, **attrs).values, order=values)
            found[f"{name} {i} {dims['T']}"] = case(whole, arrays, dims)
    return found


def other_cases() -> dict[str, Case]:
    t = typed("i32[2, 3]")
    x, w = inputs(x="f32[4, 11]", w="weight q6_k[5, 256]")
    wide, given = inputs(wide="f32[3, 256]", given="f32[5, 64]")
    numbers = RNG.normal(size=(4, 11)).astype(np.float32)
    packed = {"wide": RNG.normal(size=(3, 256)).astype(np.float32), "w": sample(w.type, RNG)}
    image, kernel = inputs(image="f32[2, 9, 9, 6]", kernel="f32[3, 3, 2, 9]")
    pixels = {"image": RNG.normal(size=(2, 9, 9, 6)), "kernel": RNG.normal(size=(3, 3, 2, 9))}
    pixels = {k: v.astype(np.float32) for k, v in pixels.items()}
    (rows,) = inputs(rows="f32[5, 36]")
    points, more = inputs(points="weight iq2_xs[2, 256]", more="weight iq2_xs[3, 256]")
    grid = {"points": random_weight(RNG, (2, 256), "iq2_xs", 0.1), "more": random_weight(RNG, (3, 256), "iq2_xs", 0.1)}
    joined = op("concat_rows", points, more)
    window = dict(strides=(1, 2), low=(0, 1), high=(1, 1), base_dilation=(1, 1), dilation=(1, 2))
    whole = np.arange(-3, 3, dtype=np.int32)
    convolved = op(
        "convolution", image, kernel, strides=(2, 1), low=(1, 0), high=(0, 2), base_dilation=(1, 2), dilation=(2, 1),
        groups=3, x_dims=(0, 3, 1, 2), w_dims=(3, 2, 0, 1), out_dims=(0, 3, 1, 2),
    )  # fmt: skip
    return {
        "iota": case(graph(op("iota", type=t, dim=1)), {}),
        "constant": case(graph(op("constant", type=t, value=whole.tobytes())), {}),
        "pack": case(graph(op("linear", wide, op("pack", w))), packed),
        "unpack": case(graph(op("linear", wide, op("unpack", op("pack", w)))), packed),
        "quantize": case(graph(op("quantize", given, dtype=DTYPES["a8g32"])),
                         {"given": RNG.normal(size=(5, 64)).astype(np.float32)}),
        "recode": case(graph(op("dequantize", op("recode", joined))), grid),
        "patch_linear": case(graph(op("patch_linear", image, rows, window=(3, 2), strides=(1, 2), low=(1, 0),
                                      high=(0, 1), dilation=(1, 1)), order=(image, rows)),
                             {"image": pixels["image"], "rows": RNG.normal(size=(5, 36)).astype(np.float32)}),
        "convolution": case(graph(convolved, order=(image, kernel)), pixels),
        **{f"reduce_window {k}": case(graph(op("reduce_window", x, kind=k, window=(2, 3), **window)), {"x": numbers})
           for k in ("sum", "max", "min", "prod")},
        **{f"{name} {r}": case(graph(op(name, x, axis=1, reverse=r)), {"x": numbers})
           for name in ("cumsum", "cumprod", "cummax", "cummin") for r in (False, True)},
    }  # fmt: skip


def weight_cases(platform: str = "", dtypes: Sequence[str] = (*BLOCK_SIZES, *CODE_SIZES, "f16", "bf16", "f32"),
                 counts: Sequence[int] = (1, 12)) -> dict[str, Case]:  # fmt: skip
    """Products, embeddings and widening of weight dtypes, for one token, several and many."""
    found = {}
    for dtype in dtypes:
        try:
            raw = random_weight(RNG, (6, 256), dtype, 0.1)
        except KeyError:  # our own formats are not of GGUF
            raw = sample(Type((6, 256), DTYPES[dtype]), RNG)
        raw = raw.view(np.uint16) if dtype == "bf16" else raw
        (w,) = inputs(w=f"weight {dtype}[6, 256]")
        (ids,) = inputs(ids="i32[4]")
        taken = op("embedding", w, ids)
        given = {"w": raw, "ids": np.array([5, 0, 1, 5], np.int32)}
        found[f"embedding {dtype}"] = case(graph(taken), given, platform=platform)
        for tokens in sorted({*counts, 3}) if dtype in ("q4_0", "q6_k", "f16") else counts:
            (x,) = inputs(x=f"f32[{tokens}, 256]")
            arrays = {"x": RNG.normal(size=(tokens, 256)).astype(np.float32), "w": raw}
            found[f"linear {dtype} {tokens}"] = case(graph(op("linear", x, w)), arrays, platform=platform)
    return found


def expert_cases(platform: str, dtypes: Sequence[str], counts: Sequence[int] = (1, 3, 12)) -> dict[str, Case]:
    """Products with two of four experts, for few tokens and more."""
    found = {}
    for dtype in dtypes:
        raw = random_weight(RNG, (4 * 6, 256), dtype, 0.1)
        for tokens in counts:
            values = inputs(x=f"f32[{tokens}, 256]", w=f"weight {dtype}[4, 6, 256]", ids=f"i32[{tokens}, 2]")
            arrays = {"x": RNG.normal(size=(tokens, 256)).astype(np.float32), "w": raw.reshape(4, 6, -1),
                      "ids": RNG.integers(0, 4, (tokens, 2)).astype(np.int32)}  # fmt: skip
            found[f"experts {dtype} {tokens}"] = case(graph(op("expert_linear", *values)), arrays, platform=platform)
    return found


def control_cases() -> dict[str, Case]:
    (x, n), (row,) = inputs(x="f32[3]", n="i32[]"), inputs(row="f32[3]")
    one = op("constant", type=typed("i32[]"), value=np.int32(1).tobytes())
    less = graph(op("compare", n, op("constant", type=typed("i32[]"), value=np.int32(5).tobytes()), direction="lt"),
                 name="less", order=(x, n))  # fmt: skip
    body = graph(op("sin", x), op("add", n, one), name="body", order=(x, n))
    add, mul = (graph(op(f, x, x), name=f, order=(x, n)) for f in ("add", "mul"))
    total = op("add", x, row)
    step = graph(total, op("exp", total), name="step", order=(x, row))
    (rows,) = inputs(rows="f32[4, 3]")
    arrays = {"x": RNG.normal(size=3).astype(np.float32), "rows": RNG.normal(size=(4, 3)).astype(np.float32)}
    found = {}
    for number in (-2, 0, 1, 9):
        given = {**{"x": arrays["x"]}, "n": np.array(number, np.int32)}
        loop, branch = node("while", x, n, cond=less, body=body), node("cond", n, x, n, branches=(add, mul))
        found[f"while {number}"] = case(graph(*loop.values, order=(x, n)), given)
        found[f"cond {number}"] = case(graph(*branch.values, order=(x, n)), given)
    for reverse in (False, True):
        scanned = node("scan", x, rows, body=step, length=4, carry=1, reverse=reverse)
        found[f"scan {reverse}"] = case(graph(*scanned.values, order=(x, rows)), arrays)
    for name in ("call", "fused"):
        called = node(name, x, n, graph=body)
        found[name] = case(graph(*called.values, order=(x, n)), {"x": arrays["x"], "n": np.array(1, np.int32)})
    return found


FORMS = [(1, "one"), (3, "one"), (3, "each"), (1, "mixed"), (3, "mixed")]  # slots and how tokens belong to them


def cache_cases(dtypes: tuple[str, ...], tokens_of: tuple[int, ...], platform: str = "") -> dict[str, Case]:
    """Writes and attention in every form, whole caches and rings, padding among the tokens, and spans."""
    found = {}
    for dtype in dtypes:
        for slots, form in FORMS:
            for window in (0, 5):
                for tokens in (slots,) if form == "each" else tokens_of:
                    for span in (0, 22) if form == "one" and not window else (0,):
                        key = f"cache {dtype} {slots} {form} window {window} tokens {tokens} span {span}"
                        found[key] = cache_case(dtype, slots, form, window, tokens, span, platform)
    return found


def cache_case(dtype: str, slots: int, form: str, window: int, tokens: int, span: int, platform: str = "") -> Case:
    rows, width = (5 + tokens + 1 if window else 24), 32
    k, v, q, new_k, new_v = inputs(
        k=f"state {dtype}[{slots}, 2, {rows}, {width}]", v=f"state {dtype}[{slots}, 2, {rows}, {width}]",
        q=f"f32[{tokens}, 4, {width}]", new_k=f"f32[{tokens}, 2, {width}]", new_v=f"f32[{tokens}, 2, {width}]",
    )  # fmt: skip
    sequence, position = inputs(sequence=f"i32[{tokens}]", position=f"i32[{tokens}]")
    written = [op("cache_write", c, x, sequence, position, window=window) for c, x in ((k, new_k), (v, new_v))]
    y = op("cached_attention", q, *written, sequence, position, scale=0.2, window=window, softcap=3.0 * bool(window))
    start = 30 if window else 7
    if form == "one":
        of, at = np.full(tokens, slots - 1), np.arange(start, start + tokens)
        of[tokens - 2 if tokens > 2 else tokens :] = slots
    elif form == "each":
        of, at = np.arange(slots), np.array([start, 3, 9])
        of[1] = slots
    else:
        of, at = np.arange(tokens) % (slots + 1), start + np.arange(tokens) // (slots + 1)
    arrays = {
        "k": sample(k.type, RNG), "v": sample(v.type, RNG), "sequence": of.astype(np.int32),
        "position": at.astype(np.int32),
        **{n: RNG.normal(size=t.shape).astype(np.float32) for n, t in (("q", q), ("new_k", new_k), ("new_v", new_v))},
    }  # fmt: skip
    order = (k, v, q, new_k, new_v, sequence, position)
    return case(graph(y, *written, order=order), arrays, facts=Facts(form, span), platform=platform)


FAMILIES = {
    "generic": generic_cases, "named": named_cases, "other": other_cases, "weights": weight_cases,
    "control": control_cases, "caches": lambda: cache_cases(("f16",), (5, 12)),
}  # fmt: skip
LONG = {"weights", "named"}  # a few of these ops are in every model
TOLERANCE = {"caches": 3e-3}
UNDEFINED = {"div", "rem", "convert"}  # of integers by zero, and of what does not fit: StableHLO leaves it open


@pytest.mark.parametrize("family", [pytest.param(f, marks=pytest.mark.slow) if f in LONG else f for f in FAMILIES])
def test_xla_computes_what_the_interpreter_does(family):
    cases = FAMILIES[family]()
    for (name, c), results in zip(cases.items(), by_xla(list(cases.values()))):
        for actual, expected in zip(results, c.expected(), strict=True):
            try:
                near(actual, expected, TOLERANCE.get(family, 1e-4))
            except AssertionError as error:
                raise AssertionError(f"{name}: {error}") from error


@pytest.mark.slow
def test_every_form_of_attention():
    cases = cache_cases(("f32", "f16", "bf16", "q8_0"), (1, 5, 12))
    for (name, c), results in zip(cases.items(), by_xla(list(cases.values()))):
        for actual, expected in zip(results, c.expected(), strict=True):
            try:
                near(actual, expected, 3e-3 if "f32" not in name else 1e-4)
            except AssertionError as error:
                raise AssertionError(f"{name}: {error}") from error


@pytest.mark.parametrize("family", ["generic", "other", "control"])
def test_the_reference_interpreter_agrees(family):
    """StableHLO's own meaning of the text, without a compiler."""
    for name, c in FAMILIES[family]().items():
        if name.split()[0] in UNDEFINED:
            continue
        for actual, expected in zip(by_reference(c), c.expected(), strict=True):
            try:
                near(actual, expected)
            except AssertionError as error:
                raise AssertionError(f"{name}: {error}") from error


def test_every_op_is_covered():
    """Each has a row, or a decomposition that reaches rows; and each is in a case above. But one, by which matrices are
    rounded in `Module.prepare` and which is C's alone."""
    lacking = {name for name, o in OPS.items() if name not in LOWERINGS and not o.decompose}
    assert lacking == {"encode"}
    tested = {n.op.name for make in FAMILIES.values() for c in make().values() for n in c.graph.nodes()}
    assert set(OPS) - tested == lacking, "these ops are in no case"


def test_parts_lose_nothing():
    from inferc.backends.xla.parts import join, part_types, split

    for name in (*quant.FORMATS, "a8g32", "f16", "bf16", "f32"):
        t = Type((3, 512), DTYPES[name])
        raw = sample(t, RNG)
        parts = split(t, raw)
        assert [(p.shape, p.dtype.itemsize) for p in parts] == [
            (p.shape, p.bytes // int(np.prod(p.shape))) for p in part_types(t)
        ]
        assert np.array_equal(join(t, parts), raw)


def test_what_cannot_be_expressed_is_named():
    (x,) = inputs(x="f64[3]")
    with pytest.raises(IRError, match="erf of f64 is not supported"):
        case(graph(op("erf", x)), {"x": np.zeros(3)})
    (y,) = inputs(y="f32[T, 2]")
    repeated = op("broadcast", y, shape=(*typed("f32[R]").shape, *y.shape), dims=(1, 2))
    with pytest.raises(IRError, match="needs a value for R"):
        case(graph(repeated), {"y": np.zeros((1, 2), np.float32)})


def test_any_name_is_a_modules():
    """Of a file that begins with a digit, or has letters that MLIR's names have not."""
    from inferc.backends.xla.portable import serialize

    (x,) = inputs(x="f32[2]")
    for name in ("1b q4_0", "é", "", "tiny"):
        assert serialize(lower(Context({}), graph(op("exp", x), name=name or "g", order=(x,)), name))
    with pytest.raises(IRError, match="StableHLO refuses the program"):
        serialize("module { nothing }")


@pytest.mark.slow
def test_iree_agrees():
    """Another compiler: packed products, attention over a cache, loops, a convolution. (Its scatter writes along
    leading axes only, so caches of several slots are not for it.)"""
    pytest.importorskip("iree.compiler", reason="needs iree-base-compiler and iree-base-runtime")
    from .xla_run import by_iree

    chosen = {**weight_cases(), **control_cases(), **other_cases(), **cache_cases(("f32",), (5,))}
    names = ["linear q4_0 1", "linear q4_k 1", "linear q6_k 12", "embedding mxfp4", "while 1", "scan True", "cond 9",
             "convolution", "cache f32 1 one window 0 tokens 5 span 22"]  # fmt: skip
    for name in names:
        c = chosen[name]
        for actual, expected in zip(by_iree(c), c.expected(), strict=True):
            try:
                near(actual, expected, 1e-3)
            except AssertionError as error:
                raise AssertionError(f"{name}: {error}") from error

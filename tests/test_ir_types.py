"""Dimensions behave as the integers they stand for, print and parse to themselves, and keep within their bounds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferc.ir import types as t
from inferc.ir.types import Dim, Expr, Sym, Type, bounds, evaluate, parse_dim, substitute, symbol, symbols

SYMS = {"a": Sym("a", 1, 9), "b": Sym("b", 2, 12), "n": Sym("n", 1, 512)}
BINARY = {
    "+": (lambda x, y: x + y, lambda x, y: x + y),
    "-": (lambda x, y: x - y, lambda x, y: x - y),
    "*": (lambda x, y: x * y, lambda x, y: x * y),
    "min": (t.dim_min, min),
    "max": (t.dim_max, max),
    "//": (lambda x, y: t.floordiv(x, _positive(y)), lambda x, y: x // max(y, 1)),
    "%": (lambda x, y: t.mod(x, _positive(y)), lambda x, y: x % max(y, 1)),
}


def _positive(dim: Dim) -> Dim:
    return t.dim_max(dim, 1)


leaves = st.one_of(st.integers(-6, 6), st.sampled_from(sorted(SYMS)))
trees = st.recursive(leaves, lambda kids: st.tuples(st.sampled_from(sorted(BINARY)), kids, kids), max_leaves=8)
values = st.fixed_dictionaries({s.name: st.integers(s.lo, s.hi) for s in SYMS.values()})


def as_dim(tree) -> Dim:
    if isinstance(tree, int):
        return tree
    if isinstance(tree, str):
        return symbol(tree, SYMS[tree].lo, SYMS[tree].hi)
    return BINARY[tree[0]][0](as_dim(tree[1]), as_dim(tree[2]))


def as_int(tree, env: dict[str, int]) -> int:
    if isinstance(tree, int):
        return tree
    return env[tree] if isinstance(tree, str) else BINARY[tree[0]][1](as_int(tree[1], env), as_int(tree[2], env))


@given(trees, values)
def test_arithmetic_is_that_of_integers(tree, env):
    assert evaluate(as_dim(tree), env) == as_int(tree, env)


@given(trees, values)
def test_bounds_hold_every_value(tree, env):
    low, high = bounds(as_dim(tree))
    assert low <= as_int(tree, env) <= high


@given(trees)
def test_text_round_trip(tree):
    dim = as_dim(tree)
    assert parse_dim(str(dim), SYMS) == dim


@given(trees, trees)
def test_equal_normal_forms(left, right):
    a, b = as_dim(left), as_dim(right)
    assert a + b == b + a and a * b == b * a and a + b - b == a
    assert hash(a + b) == hash(b + a)


@given(trees, values)
def test_substitution_in_two_steps_is_one(tree, env):
    dim = as_dim(tree)
    half = substitute(dim, {"a": env["a"]})
    assert evaluate(half, env) == evaluate(dim, env)
    assert "a" not in {s.name for s in symbols(half)}


def test_known_forms():
    n = symbol("n", 1, 512)
    assert t.floordiv(8 * n, 4) == 2 * n and t.mod(8 * n, 4) == 0
    assert t.floordiv(n - 1, 2) + 1 == parse_dim("floordiv(n - 1, 2) + 1", SYMS)
    assert t.dim_min(n, 512) == n and t.dim_max(n, 0) == n and t.dim_min(n, 600) == n
    assert t.dim_min(n, n + 1) == n and t.dim_max(n, n + 1) == n + 1  # of bounds that overlap
    assert isinstance(t.dim_min(n, 100), Expr)
    assert t.dim_max(t.dim_min(n, 100), n) == n and t.dim_min(n, t.dim_max(n, 100)) == n
    assert t.floordiv(n - 10, 5) == t.floordiv(n, 5) - 2 and t.mod(6 * n + 7, 5) == t.mod(n + 2, 5)
    whole = 4 * t.floordiv(n + 3, 4)  # the next multiple
    assert n + t.mod(-n, 4) == whole and -4 * t.floordiv(-n, 4) == whole and t.floordiv(whole, 4) * 4 == whole
    assert t.floordiv(n, 513) == 0 and t.mod(n, 513) == n
    windows = t.floordiv(t.floordiv(n - 10, 5) + 1 - 3, 2) + 1  # of one convolution after another
    assert windows == t.floordiv(n - 10, 10)
    assert parse_dim("3*n^2 - 1", SYMS) == 3 * n * n - 1  # as JAX writes it


def test_multiples():
    """What an axis says of a symbol."""
    a, n = symbol("a", 1, 9), symbol("n", 1, 512)
    assert t.multiple_of(3 * n - 2) == (SYMS["n"], 3, -2) and t.multiple_of(n) == (SYMS["n"], 1, 0)
    assert all(t.multiple_of(d) is None for d in (4, -n, n * n, a * n, a + n, t.floordiv(n, 2)))


def test_what_cannot_be_read():
    for text in ("m + 1", "n / 2", "f(n, 1)", "n +", "1.5"):
        with pytest.raises(ValueError, match="cannot read the dimension"):
            parse_dim(text, SYMS)
    with pytest.raises(KeyError, match="needs a value for b"):
        evaluate(symbol("b") + 1, {})


def test_types():
    n = symbol("n", 1, 512)
    q = t.DTYPES["q4_k"]
    assert Type((n, 512), q).bytes == n * 288 and str(Type((n, 512), q, "panel16")) == "q4_k[n, 512]@panel16"
    assert t.array_shape(Type((3, 512), q)) == (3, 288)
    for shape in ((3, 100), (n,)):
        with pytest.raises(TypeError, match="multiple of 256"):
            Type(shape, q)

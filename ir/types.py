"""Types of values: dimensions as expressions over symbols, element and block dtypes, layouts.

A dimension is an `int` or an `Expr`, a polynomial in normal form over symbols and the opaque calls `floordiv`, `mod`,
`min` and `max`; two dimensions are equal exactly when their normal forms are. Quantisation is a type: `q4_0` is a dtype
like `f32`, with a block of values along the last axis and a number of bytes per block.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np


@dataclass(frozen=True, order=True)
class Sym:
    """A dimension known only at run time, between `lo` and `hi` inclusive."""

    name: str
    lo: int = 1
    hi: int = 1 << 31

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class DimCall:
    """An opaque atom: `floordiv`, `mod`, `min` or `max` of two dimensions."""

    op: str
    args: tuple[Dim, Dim]

    def __str__(self) -> str:
        return f"{self.op}({self.args[0]}, {self.args[1]})"


Atom = Sym | DimCall
Monomial = tuple[tuple[Atom, int], ...]  # sorted (atom, power) pairs; () is the constant term


@dataclass(frozen=True)
class Expr:
    """A polynomial: sorted (monomial, coefficient) pairs, no zero coefficient, never a plain constant."""

    terms: tuple[tuple[Monomial, int], ...]

    def __add__(self, other: Dim) -> Dim:
        total = dict(self.terms)
        for monomial, coefficient in _terms(other):
            total[monomial] = total.get(monomial, 0) + coefficient
        return _normal(total)

    def __mul__(self, other: Dim) -> Dim:
        total: dict[Monomial, int] = {}
        for left, a in self.terms:
            for right, b in _terms(other):
                monomial = _times(left, right)
                total[monomial] = total.get(monomial, 0) + a * b
        return _normal(total)

    def __neg__(self) -> Dim:
        return self * -1

    def __sub__(self, other: Dim) -> Dim:
        return self + other * -1

    def __rsub__(self, other: Dim) -> Dim:
        return -self + other

    def __floordiv__(self, other: Dim) -> Dim:
        return floordiv(self, other)

    def __mod__(self, other: Dim) -> Dim:
        return mod(self, other)

    __radd__ = __add__
    __rmul__ = __mul__

    def __str__(self) -> str:
        parts = []
        for monomial, coefficient in self.terms:
            factors = [str(atom) for atom, power in monomial for _ in range(power)]
            if coefficient != 1 or not factors:
                factors.insert(0, str(coefficient))
            parts.append("*".join(factors))
        return " + ".join(parts).replace("+ -", "- ").replace("- 1*", "- ")

    __repr__ = __str__


Dim = int | Expr


def _terms(dim: Dim) -> tuple[tuple[Monomial, int], ...]:
    return dim.terms if isinstance(dim, Expr) else (((), dim),) if dim else ()


def _times(left: Monomial, right: Monomial) -> Monomial:
    powers = dict(left)
    for atom, power in right:
        powers[atom] = powers.get(atom, 0) + power
    return tuple(sorted(powers.items(), key=lambda item: str(item[0])))


def _normal(terms: Mapping[Monomial, int]) -> Dim:
    kept = {m: c for m, c in terms.items() if c}
    if not kept:
        return 0
    if set(kept) == {()}:
        return kept[()]
    order = sorted(kept.items(), key=lambda item: (-sum(p for _, p in item[0]), str([str(a) for a, _ in item[0]])))
    return Expr(tuple(order))


def symbol(name: str, lo: int = 1, hi: int = 1 << 31) -> Expr:
    """The dimension that is one symbol."""
    return Expr(((((Sym(name, lo, hi), 1),), 1),))


def _call(op: str, a: Dim, b: Dim) -> Dim:
    if op in ("min", "max") and str(b) < str(a):
        a, b = b, a
    return Expr((((((DimCall(op, (a, b)), 1),)), 1),))


def _divided(a: Expr, b: int) -> tuple[Dim, Dim]:
    """(q, r) with a = q * b + r, all that b divides in q: r's number is from 0 to b - 1, and its coefficients are less
    than b, with the signs that they had."""
    whole = {m: c // b if not m else abs(c) // b * (1 if c > 0 else -1) for m, c in a.terms}
    return _normal(whole), _normal({m: c - whole[m] * b for m, c in a.terms})


def _is_negative(dim: Dim) -> bool:
    """Whether every symbol's coefficient is, so that the division rounds the positive size up."""
    return isinstance(dim, Expr) and all(c < 0 for m, c in dim.terms if m)


def _floordiv_of_part(a: Dim, b: int) -> Dim:
    """a // b of what `_divided` leaves: (x // c + d) // b is (x + c * d) // (b * c)."""
    low, high = bounds(a)
    if low // b == high // b or isinstance(a, int):
        return low // b
    (monomial, factor), *constant = a.terms
    (atom, power), *others = monomial
    if factor == power == 1 and not others and (not constant or len(constant) == 1 and not constant[0][0]):
        if isinstance(atom, DimCall) and atom.op == "floordiv" and isinstance(c := atom.args[1], int) and c > 0:
            return floordiv(atom.args[0] + c * (constant[0][1] if constant else 0), b * c)
    return _call("floordiv", a, b)


def floordiv(a: Dim, b: Dim) -> Dim:
    """a // b. Of an int b, whole parts of coefficients are carried out, divisions of divisions are one, and what is
    negative is the negative of a positive size rounded up."""
    if isinstance(b, int):
        if isinstance(a, int):
            return a // b
        if b > 0:
            whole, rest = _divided(a, b)
            if _is_negative(rest):
                return whole - floordiv(-rest + (b - 1), b)
            return whole + _floordiv_of_part(rest, b)
    elif a == b:
        return 1
    return _call("floordiv", a, b)


def mod(a: Dim, b: Dim) -> Dim:
    """a mod b, with the sign of b. Of an int b, coefficients are taken mod b too; n + mod(-n, b) is n rounded up."""
    if isinstance(b, int):
        if isinstance(a, int):
            return a % b
        if b > 0:
            rest = _divided(a, b)[1]
            if _is_negative(rest):
                return rest - b * floordiv(rest, b)
            rest = _normal({m: c % b for m, c in _terms(rest)})
            low, high = bounds(rest)
            return rest - low // b * b if low // b == high // b else _call("mod", rest, b)
    elif a == b:
        return 0
    return _call("mod", a, b)


def _is_of(op: str, a: Dim, b: Dim) -> bool:
    """Whether `a` is the call `op` of `b` and something else."""
    match a:
        case Expr(terms=((((DimCall(op=name, args=args), 1),), 1),)):
            return name == op and b in args
    return False


def dim_min(a: Dim, b: Dim) -> Dim:
    """The smaller dimension, decided by the bounds of their difference where these suffice, or by what one is."""
    if _is_of("max", a, b) or _is_of("min", b, a):
        return b
    if _is_of("max", b, a) or _is_of("min", a, b):
        return a
    low, high = bounds(a - b)
    return a if high <= 0 else b if low >= 0 else _call("min", a, b)


def dim_max(a: Dim, b: Dim) -> Dim:
    """The larger dimension, decided by the bounds of their difference where these suffice, or by what one is."""
    if _is_of("min", a, b) or _is_of("max", b, a):
        return b
    if _is_of("min", b, a) or _is_of("max", a, b):
        return a
    low, high = bounds(a - b)
    return a if low >= 0 else b if high <= 0 else _call("max", a, b)


CALLS: dict[str, Callable[[Dim, Dim], Dim]] = {"floordiv": floordiv, "mod": mod, "min": dim_min, "max": dim_max}


def substitute(dim: Dim, values: Mapping[str, Dim]) -> Dim:
    """`dim` with the named symbols replaced; with every symbol given as an int the result is an int."""
    if isinstance(dim, int):
        return dim

    def atom(a: Atom) -> Dim:
        if isinstance(a, Sym):
            return values.get(a.name, Expr((((((a, 1),)), 1),)))
        return CALLS[a.op](substitute(a.args[0], values), substitute(a.args[1], values))

    total: Dim = 0
    for monomial, coefficient in dim.terms:
        total = total + coefficient * prod(atom(a) for a, p in monomial for _ in range(p))
    return total


def evaluate(dim: Dim, values: Mapping[str, int]) -> int:
    """The value of `dim`. Raises KeyError naming a symbol that has no value."""
    result = substitute(dim, values)
    if not isinstance(result, int):
        missing = sorted(s.name for s in symbols(result))
        raise KeyError(f"dimension {dim} needs a value for {', '.join(missing)}")
    return result


def symbols(dim: Dim) -> frozenset[Sym]:
    """Every symbol in `dim`."""
    found: set[Sym] = set()
    for monomial, _ in () if isinstance(dim, int) else dim.terms:
        for a, _power in monomial:
            found |= {a} if isinstance(a, Sym) else symbols(a.args[0]) | symbols(a.args[1])
    return frozenset(found)


def multiple_of(dim: Dim) -> tuple[Sym, int, int] | None:
    """(s, a, b) where `dim` is a * s + b with a > 0, so that it tells the size of s; None for what does not."""
    terms = dict(_terms(dim))
    offset = terms.pop((), 0)
    if len(terms) != 1:
        return None
    (((atom, power), *others), factor), = terms.items()
    return (atom, factor, offset) if isinstance(atom, Sym) and power == 1 and not others and factor > 0 else None


def unsized(axes: Sequence[Dim]) -> list[str]:
    """The names of symbols whose size none of the axes tells."""
    told = {known[0].name for d in axes if (known := multiple_of(d))}
    return sorted({s.name for d in axes for s in symbols(d)} - told)


def bounds(dim: Dim) -> tuple[int, int]:
    """An interval that holds every value of `dim`, by interval arithmetic over the symbols' bounds."""
    if isinstance(dim, int):
        return dim, dim
    lo = hi = 0
    for monomial, coefficient in dim.terms:
        span = (coefficient, coefficient)
        for a, power in monomial:
            for _ in range(power):
                corners = [x * y for x in span for y in _atom_bounds(a)]
                span = min(corners), max(corners)
        lo, hi = lo + span[0], hi + span[1]
    return lo, hi


def _atom_bounds(a: Atom) -> tuple[int, int]:
    if isinstance(a, Sym):
        return a.lo, a.hi
    (alo, ahi), (blo, bhi) = bounds(a.args[0]), bounds(a.args[1])
    if a.op == "min":
        return min(alo, blo), min(ahi, bhi)
    if a.op == "max":
        return max(alo, blo), max(ahi, bhi)
    if a.op == "mod":
        return 0, max(bhi - 1, 0)
    corners = [x // y for x in (alo, ahi) for y in (blo, bhi) if y] or [0]
    return min(corners), max(corners)


def parse_dim(text: str, known: Mapping[str, Sym]) -> Dim:
    """Reads what `str(dim)` prints, and JAX's own printing of symbolic dimensions.

    Raises ValueError for a name that is not in `known` or an operation that dimensions do not have.
    """

    def walk(node: ast.AST) -> Dim:
        match node:
            case ast.Constant(value=int(value)):
                return value
            case ast.Name(id=name) if name in known:
                s = known[name]
                return symbol(s.name, s.lo, s.hi)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return walk(operand) * -1
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return walk(left) + walk(right)
            case ast.BinOp(left=left, op=ast.Sub(), right=right):
                return walk(left) + walk(right) * -1
            case ast.BinOp(left=left, op=ast.Mult(), right=right):
                return walk(left) * walk(right)
            case ast.BinOp(left=left, op=ast.Pow(), right=ast.Constant(value=int(power))):
                return prod([walk(left)] * power)
            case ast.Call(func=ast.Name(id=name), args=[a, b]) if name in CALLS:
                return CALLS[name](walk(a), walk(b))
        raise ValueError(f"cannot read the dimension {text!r}: {ast.unparse(node)!r} is not understood")

    try:
        return walk(ast.parse(text.strip().replace("^", "**"), mode="eval").body)  # JAX writes powers as n^2
    except SyntaxError as error:
        raise ValueError(f"cannot read the dimension {text!r}") from error


@dataclass(frozen=True)
class DType:
    """An element type, or a block format: `block` values along the last axis stored in `block_bytes` bytes."""

    name: str
    block: int
    block_bytes: int
    numpy: str = ""  # the NumPy name; empty for bf16 and block formats, which have none

    @property
    def is_block(self) -> bool:
        return self.block > 1

    @property
    def is_float(self) -> bool:
        return self.name in ("f32", "f16", "bf16", "f64")

    @property
    def is_integer(self) -> bool:
        return self.name[0] in "iu" and self.name[1:].isdigit()

    def __str__(self) -> str:
        return self.name

    __repr__ = __str__


f32, f16, f64 = DType("f32", 1, 4, "float32"), DType("f16", 1, 2, "float16"), DType("f64", 1, 8, "float64")
bf16 = DType("bf16", 1, 2)
i8, i16, i32, i64 = (DType(f"i{n}", 1, n // 8, f"int{n}") for n in (8, 16, 32, 64))
u8, u16, u32, u64 = (DType(f"u{n}", 1, n // 8, f"uint{n}") for n in (8, 16, 32, 64))
boolean = DType("bool", 1, 1, "bool")

# GGUF's block formats: (values, bytes) per block, from ggml's type table.
BLOCK_SIZES = {
    "q4_0": (32, 18), "q4_1": (32, 20), "q5_0": (32, 22), "q5_1": (32, 24), "q8_0": (32, 34),
    "q2_k": (256, 84), "q3_k": (256, 110), "q4_k": (256, 144), "q5_k": (256, 176), "q6_k": (256, 210),
    "iq2_xxs": (256, 66), "iq2_xs": (256, 74), "iq2_s": (256, 82), "iq3_xxs": (256, 98), "iq3_s": (256, 110),
    "iq1_s": (256, 50), "iq1_m": (256, 56), "iq4_nl": (32, 18), "iq4_xs": (256, 136),
    "tq1_0": (256, 54), "tq2_0": (256, 66), "mxfp4": (32, 17), "nvfp4": (64, 36),
}  # fmt: skip
# Our own (`ir.quant.formats`): grid points as codes; 4-bit integers with a scale, and perhaps a zero point, per group.
CODE_SIZES = {
    "iq1_g32": (256, 102), "iq1_g16": (256, 106), "iq2_g32": (256, 102), "iq2_g16": (256, 106),
    "iq3_xxs_g32": (256, 134), "iq3_s_g32": (256, 134),
    "int4_g128": (128, 66), "uint4_g128": (128, 76), "uint4_g32": (32, 22),
}  # fmt: skip
# Activations quantised to int8: values, one f32 scale per block of 32, one i32 sum per 16 values.
ACTIVATION_SIZES = {"a8g32": (32, 32 + 4 + 2 * 4)}
DTYPES: dict[str, DType] = {
    d.name: d
    for d in (
        *(f32, f16, f64, bf16, i8, i16, i32, i64, u8, u16, u32, u64, boolean),
        *(DType(name, *size) for name, size in {**BLOCK_SIZES, **CODE_SIZES, **ACTIVATION_SIZES}.items()),
    )
}
a8g32 = DTYPES["a8g32"]


def numpy_dtype(dtype: DType) -> np.dtype:
    """The NumPy dtype that holds one element; bf16 values are held as their bits in uint16. TypeError for blocks."""
    if dtype.is_block:
        raise TypeError(f"{dtype} is a block format and has no NumPy element type")
    return np.dtype(dtype.numpy or "uint16")


@dataclass(frozen=True)
class Type:
    """Shape, dtype, and how the bytes lie: layout "" is row-major, "panel16" is `ir.quant`'s packed weight panels."""

    shape: tuple[Dim, ...]
    dtype: DType
    layout: str = ""

    def __post_init__(self) -> None:
        last = self.shape[-1] if self.shape else 1
        if self.dtype.is_block and (not isinstance(last, int) or last % self.dtype.block):
            raise TypeError(f"{self.dtype} needs a last dimension that is a multiple of {self.dtype.block}, not {last}")

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The shape of a type without symbols. Raises TypeError for one that has some."""
        found = tuple(d for d in self.shape if isinstance(d, int))
        if len(found) < len(self.shape):
            raise TypeError(f"{self} has no fixed size")
        return found

    @property
    def elements(self) -> Dim:
        return prod(self.shape)

    @property
    def bytes(self) -> Dim:
        """Bytes of the row-major form."""
        return floordiv(self.elements, self.dtype.block) * self.dtype.block_bytes

    def __str__(self) -> str:
        inside = ", ".join(map(str, self.shape))
        return f"{self.dtype}[{inside}]" + (f"@{self.layout}" if self.layout else "")

    __repr__ = __str__


def array_shape(t: Type) -> tuple[int, ...]:
    """The shape of the array that holds a value of a type without symbols: for blocks, the bytes of each row, last."""
    if not t.dtype.is_block:
        return t.sizes
    return (*t.sizes[:-1], t.sizes[-1] // t.dtype.block * t.dtype.block_bytes)


def array_dtype(t: Type) -> np.dtype:
    """The NumPy dtype of the array that holds a value: uint8 for blocks and packed weights, uint16 bits for bf16."""
    return np.dtype(np.uint8) if t.dtype.is_block or t.layout else numpy_dtype(t.dtype)

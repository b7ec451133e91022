"""Pieces of C text: names, dimensions, element types and constant arrays."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from textwrap import wrap

import numpy as np

from ...ir.types import Atom, Dim, DType, Sym, Type

HERE = Path(__file__).resolve().parent

# Keywords, and names that the emitted functions and headers use themselves.
RESERVED = frozenset(
    "auto break case char const continue default do double else enum extern float for goto if inline int long register "
    "restrict return short signed sizeof static struct switch typedef union unsigned void volatile while bool true "
    "false r at arena threads run weight parallel cache_region cache_page size_max size_min main memcpy T R S C".split()
)
# Functions of the C library that a file-level name may not replace; a local one may.
_MATH = (
    "acos acosh asin asinh atan atan2 atanh cbrt ceil copysign cos cosh erf erfc exp exp2 expm1 fabs fdim floor fma "
    "fmax fmin fmod frexp hypot ilogb ldexp lgamma llrint llround log log10 log1p log2 logb lrint lround modf nan "
    "nearbyint nextafter pow remainder remquo rint round scalbn sin sinh sqrt tan tanh tgamma trunc"
).split()
LIBRARY = frozenset([
    *(name + suffix for name in _MATH for suffix in ("", "f", "l")),
    *(
        "abs labs div ldiv lldiv rand srand random atoi atof exit abort system getenv qsort bsearch malloc calloc free "
        "realloc index rindex memset memmove memcmp memchr strlen strcpy strcat strcmp strchr gamma signal select "
        "printf scanf time clock read write open close link unlink pipe sleep pause access dup fork kill wait raise "
        "remove rename send recv bind accept connect listen socket truncate y0 y1 yn j0 j1 jn"
    ).split(),
])  # fmt: skip

C_TYPES = {
    "f32": "float", "f64": "double", "f16": "uint16_t", "bf16": "uint16_t", "bool": "uint8_t",
    **{f"{s}{n}": f"{'u' * (s == 'u')}int{n}_t" for s in "iu" for n in (8, 16, 32, 64)},
}  # fmt: skip


def c_type(dtype: DType) -> str:
    """The C type that a buffer of `dtype` is made of; block and activation formats are bytes."""
    return C_TYPES.get(dtype.name, "uint8_t")


def identifier(text: str, fallback: str = "value") -> str:
    """`text` as a C identifier: what C does not allow becomes an underscore."""
    name = re.sub(r"\W+", "_", text, flags=re.ASCII).strip("_")
    return name if name and not name[0].isdigit() else f"{fallback}_{name}".rstrip("_")


def comment_text(text: str) -> str:
    """A user's text, safe inside a comment."""
    return text.replace("*/", "* /").replace("/*", "/ *").replace("\n", " ").replace("\\", "/")


def c_string(text: str) -> str:
    """A C string literal of any text, as UTF-8."""
    plain = set(range(32, 127)) - set(b'"\\?')
    return '"' + "".join(chr(b) if b in plain else f"\\{b:03o}" for b in text.encode()) + '"'


class Names:
    """Gives each thing of a scope its own identifier, the wanted one where it is free."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self.taken = set(RESERVED).union(taken)

    def new(self, wanted: str, fallback: str = "value") -> str:
        base = name = identifier(wanted, fallback)
        count = 1
        while name in self.taken:
            count += 1
            name = f"{base}_{count}"
        self.taken.add(name)
        return name


def dim_c(dim: Dim, names: Mapping[str, str] | None = None, *, wide: bool = False,
          sizes: Container[str] = ()) -> str:  # fmt: skip
    """A dimension as a C expression of type int32_t, or size_t when `wide`, over int32_t variables.

    `names` renames symbols; those in `sizes` are of type size_t already. Dimensions are never negative, so that C's
    division is floor division. The result may be added to; to be multiplied it needs brackets.
    """
    if isinstance(dim, int):
        return str(dim)
    names = names or {}

    def atom(a: Atom) -> str:
        if isinstance(a, Sym):
            name = names.get(a.name, a.name)
            return f"(size_t){name}" if wide and name not in sizes else name
        left, right = (dim_c(x, names, wide=wide, sizes=sizes) for x in a.args)
        if a.op in ("min", "max"):
            return f"{'size' if wide else 'int'}_{a.op}({left}, {right})"
        left, right = (text if isinstance(x, int) else f"({text})" for x, text in zip(a.args, (left, right)))
        return f"({left} {'/' if a.op == 'floordiv' else '%'} {right})"

    text = ""
    for monomial, coefficient in dim.terms:
        factors = [atom(a) for a, power in monomial for _ in range(power)]
        if abs(coefficient) != 1 or not factors:
            factors.insert(0, str(abs(coefficient)))
        sign = "-" if coefficient < 0 else "+"
        text += (f" {sign} " if text else "-" * (coefficient < 0)) + " * ".join(factors)
    return text


def _float_literal(value: np.floating, negative: bool) -> str:
    """The shortest literal that is read as `value` again, in its own precision."""
    size = abs(float(value))
    if np.isnan(size):
        return "NAN"
    if np.isinf(size):
        text = "INFINITY"
    else:
        write = np.format_float_positional if size == 0 or 1e-4 <= size < 1e7 else np.format_float_scientific
        text = write(abs(value), unique=True, trim="0") + "f" * (value.dtype == np.float32)
    return "-" * negative + text


def literals(raw: bytes, dtype: DType) -> list[str]:
    """The elements of a constant as C literals that give back the same bits (NaNs as NAN)."""
    if dtype.name in ("f32", "f64"):
        values = np.frombuffer(raw, dtype.numpy)
        return [_float_literal(v, negative) for v, negative in zip(values, np.signbit(values).tolist())]
    kind = c_type(dtype)
    integers = np.frombuffer(raw, np.dtype(kind.removesuffix("_t")))
    suffix = "" if kind not in ("int64_t", "uint64_t") else "LL" if kind == "int64_t" else "ULL"
    lowest = {"int32_t": -(2**31), "int64_t": -(2**63)}.get(kind)
    name = kind[:-2].upper() + "_MIN"
    return [name if v == lowest else f"{v}{'u' * (kind == 'uint32_t')}{suffix}" for v in integers.tolist()]


def constant_array(name: str, raw: bytes, type: Type) -> str:
    """`static const` definition of a constant's elements in row-major order, with its type in a comment."""
    items = literals(raw, type.dtype) or ["0"]  # C has no array of no elements
    head = f"static const {c_type(type.dtype)} {name}[{len(items)}] = {{"
    body = ", ".join(items)
    if len(head) + len(body) < 90:
        return f"{head}{body}}}; /* {type} */"
    lines = "\n".join(wrap(body, 112, initial_indent="    ", subsequent_indent="    "))
    return f"{head} /* {type} */\n{lines}}};"


def indented(text: str, by: str = "  ") -> str:
    return "\n".join(by + line if line else line for line in text.splitlines())


def folded(code: str, indent: str = "      ", width: int = 118) -> str:
    """A line of code over several lines where it is too long: broken after commas and before plus signs."""
    lines, row = [], ""
    for piece in re.split(r"(?<=,) | (?=\+ )", code):
        if row and len(row) + 1 + len(piece) > width:
            lines.append(row)
            row = indent + piece
        else:
            row = f"{row} {piece}" if row else piece
    return "\n".join([*lines, row])


def aligned(rows: list[tuple[str, str]]) -> list[str]:
    """Code lines with their comments in one column, but for the longest lines."""
    width = max((len(code) for code, _ in rows if len(code) <= 72), default=0)
    return [f"{code.ljust(width)} /* {comment} */" if comment else code for code, comment in rows]


def runtime_text(name: str) -> str:
    """A hand-written file of runtime/c."""
    return (HERE.parents[1] / "runtime" / "c" / name).read_text(encoding="utf-8")


def wasm_text(name: str) -> str:
    """A hand-written file of runtime/wasm."""
    return (HERE.parents[1] / "runtime" / "wasm" / name).read_text(encoding="utf-8")


def isa_text(name: str) -> str:
    """A hand-written header of isa/."""
    return (HERE / "isa" / name).read_text(encoding="utf-8")

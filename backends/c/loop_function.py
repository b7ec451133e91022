"""C functions of the loop family, whatever is in them: parameters, the split among workers, layout of the text."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ...ir.graph import Value
from ...ir.types import Dim, Expr, Sym, Type, bounds, symbols
from .kernels import Kernel
from .text import C_TYPES, dim_c, identifier, indented

GRAIN = 1 << 14  # evaluations of a body that are worth handing to a worker


@dataclass(frozen=True)
class Emitted:
    """A kernel and what its C function takes, in order: the run if it is parallel, dimensions, operands, the result.

    `regions` is 1 if it is split among workers even where all symbols are least.
    """

    kernel: Kernel
    parallel: bool
    dims: tuple[Sym, ...]
    operands: tuple[Value, ...]
    regions: int = 0


@dataclass(frozen=True)
class Parameters:
    """What a function of the family takes: dimensions, operands, results, and how its outer axis may be split."""

    dims: tuple[Sym, ...]
    operands: tuple[tuple[str, Value], ...]
    results: tuple[tuple[str, Type], ...]
    count: Dim = 1  # of the outermost axis, whose counter runs from `begin` to `end` in the lines
    work: Dim = 1  # evaluations for one step of it
    comment: str = ""
    scratch: str = ""  # the name of an int32_t array, of a function that is not split


def is_parallel(count: Dim, work: Dim) -> bool:
    """Whether there can be work for a second worker: decided by the bounds of the symbols."""
    return bounds(count)[1] > 1 and bounds(count * work)[1] >= 2 * GRAIN


def finish(lines: Sequence[str], given: Parameters, name: str) -> Emitted:
    """Puts a head on the lines of a function's body: a plain function, or a part and the function that splits it."""
    pointers = [(f"const {C_TYPES[v.dtype.name]} *", n) for n, v in given.operands]
    pointers += [(f"{C_TYPES[t.dtype.name]} *", n) for n, t in given.results]
    # An index of an axis of one element is not read.
    lines = [*(f"(void){n};" for _, n in pointers if not re.search(rf"\b{n}\b", "\n".join(lines))), *lines]
    dims = [("int32_t ", size_name(s)) for s in given.dims]
    split = is_parallel(given.count, given.work)
    if split:
        text = _split_function(lines, given, pointers)
    else:
        pointers += [("int32_t *", given.scratch)] if given.scratch else []
        signature = ", ".join([t + n for t, n in dims] + [f"{t}restrict {n}" for t, n in pointers])
        text = "\n".join([f"static void @({signature}) {{", indented("\n".join(lines)), "}"])
    text = f"/* {given.comment} */\n{text}\n" if given.comment else text + "\n"
    symbol = f"{name}_{hashlib.sha256(text.encode()).hexdigest()[:6]}"
    source = "\n".join(wrapped(line) for line in text.replace("@", symbol).splitlines()) + "\n"
    least, work = bounds(given.count)[0], bounds(given.work)[0]
    regions = int(split and least > max(1, GRAIN // max(1, work)))
    return Emitted(Kernel(symbol, source), split, given.dims, tuple(v for _, v in given.operands), regions)


def _split_function(lines: Sequence[str], given: Parameters, pointers: list[tuple[str, str]]) -> str:
    used = "\n".join(lines)
    names = [size_name(s) for s in given.dims]
    dims = [("int64_t ", n) for n in names if re.search(rf"\b{n}\b", used)]
    fields = "".join(f" {t}{n};" for t, n in dims + pointers)
    values = ", ".join(n for _, n in dims + pointers)
    unpack = [f"const {t}{n} = g->{n};" for t, n in dims] + [f"{t}restrict {n} = g->{n};" for t, n in pointers]
    work = dim_text(given.work)
    grain = str(max(1, GRAIN // given.work)) if isinstance(given.work, int) else f"1 + {GRAIN} / (1 + {work})"
    signature = ", ".join(["const run *r", *(f"int32_t {n}" for n in names), *(t + n for t, n in pointers)])
    return "\n".join([
        f"typedef struct {{{fields} }} @_args;",
        "",
        "static void @_part(const void *args, int32_t begin, int32_t end, int32_t worker) {",
        "  const @_args *g = args;",
        *(f"  {line}" for line in unpack),
        "  (void)worker;",
        indented(used),
        "}",
        "",
        f"static void @({signature}) {{",
        f"  parallel(r, {dim_text(given.count)}, {grain}, @_part, &(@_args){{{values}}});",
        "}",
    ])  # fmt: skip


def wrapped(line: str, width: int = 116) -> str:
    """A line of C broken where an operand or argument begins, as often as the width asks."""
    if len(line) <= width:
        return line
    breaks = [m.start() for m in re.finditer(r"(?<=[,;] )(?=\S)|(?<= )(?=(&&|\|\||\?|:) )", line[: width + 1])]
    begin = len(line) - len(line.lstrip())
    at = max((b for b in breaks if b > begin + 8), default=None)
    if at is None:
        return line
    return line[:at].rstrip() + "\n" + wrapped(" " * (begin + 4) + line[at:], width)


def size_name(s: Sym) -> str:
    """The parameter that holds a symbol; lower-case names are kept apart from a kernel's counters and arrays."""
    return s.name if s.name[0].isupper() else f"{s.name}_size"


def dim_text(dim: Dim, wide: bool = False) -> str:
    """A dimension in C, to be bracketed before it is multiplied."""
    return dim_c(dim, {s.name: size_name(s) for s in symbols(dim)}, wide=wide)


def symbols_of(*dims: Dim) -> tuple[Sym, ...]:
    return tuple(sorted({s for d in dims for s in symbols(d)}, key=lambda s: s.name))


def bracketed(dim: Dim) -> str:
    text = dim_text(dim)
    return f"({text})" if isinstance(dim, Expr) and len(dim.terms) > 1 else text


def counted(counter: str, low: str, high: str, inside: list[str]) -> list[str]:
    """The lines inside one counting loop."""
    head = f"for (int64_t {counter} = {low}; {counter} < {high}; {counter}++)"
    one = inside[0].startswith("for (") or len(inside) == 1
    body = [f"  {line}" for line in inside]
    if one and all(line[0] in " }" for line in inside[1:]):
        return [head, *body]
    return [f"{head} {{", *body, "}"]


def kernel_name(op: str, result: Type) -> str:
    """How a kernel's symbol begins: the op, and what it makes."""
    return identifier("_".join([op, str(result.dtype), "x".join(map(str, result.shape)) or "scalar"]))

"""Bodies in the vector words of isa/*.h: sixteen neighbours at a time, and of them four vectors side by side.

C compilers turn loops of additions into vectors, but functions such as exp or erf are chains of dependent steps with
comparisons. Written in words, and step by step for four vectors, they leave a CPU no time to wait.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from ...ir.types import Dim, f32
from .loop_model import Affine, Apply, Axis, Body, Constant, Guard, Part, Read, Within, parts
from .loop_scope import Scope, always
from .scalar import literal

SIDE_BY_SIDE = 4  # vectors
# What has words that work on some vectors at once, and other ops as words for vectors of f32.
EACH = ("exp", "tanh", "erf", "logistic", "silu", "gelu", "gelu_tanh")
WORDS = {
    **{name: f"f32_{name}({{0}}, {{1}})" for name in ("add", "sub", "mul", "div", "max", "min", "softcap")},
    **{name: f"f32_{name}({{0}})" for name in ("abs", "sqrt", "log", *EACH)},
    "round_even": "f32_rint({0})", "rsqrt": "f32_div(f32_splat(1.0f), f32_sqrt({0}))",
}  # fmt: skip
SELECTS = {"gt": "f32_select_gt({0}, {1}, {2}, {3})", "lt": "f32_select_gt({1}, {0}, {2}, {3})"}
SLOW = {*EACH, "log", "softcap", "expm1", "log1p", "sin", "cos", "pow"}
SLOWNESS = 8  # evaluations of another op that one of SLOW is worth


def slow(body: Body) -> int:
    """How many of the body's operations are slow."""
    return sum(isinstance(p, Apply) and p.op in SLOW for p in set(parts(body)))


def work(count: Dim, body: Body) -> Dim:
    """What `count` evaluations of a body are worth, in evaluations of a simple one."""
    return count * (1 + SLOWNESS * slow(body))


def in_words(body: Body, along: Collection[int]) -> bool:
    """Whether sixteen neighbours along the axes of these numbers, of which one counts each read, are one vector."""

    def fits(part: Part) -> bool:
        match part:
            case Read(source=source, index=(index,)):
                plain = all(isinstance(atom, Axis) for atom, _ in index.terms)
                return source.dtype == f32 and plain and _step(index, along) in (0, 1)
            case Constant(dtype=dtype):
                return dtype == f32
            case Apply(op="select", args=(Apply(op=test, args=(a, _)), _, _), dtype=dtype):
                return test in SELECTS and a.dtype == dtype == f32
            case Apply(op=op, args=args, dtype=dtype):
                return op in SELECTS or op in WORDS and dtype == f32 and all(a.dtype == f32 for a in args)
            case Guard() | Within():
                return False
        return isinstance(part, (Affine, Axis))

    selects = [p for p in parts(body) if isinstance(p, Apply) and p.op == "select"]
    tests = {s.args[0] for s in selects}
    loose = any(isinstance(p, Apply) and any(a in tests for a in p.args[p.op == "select" :]) for p in parts(body))
    return body not in tests and not loose and all(map(fits, parts(body)))


def _step(index: Affine, along: Collection[int]) -> Dim:
    return sum((index.coefficient(n) for n in along), start=0)


@dataclass
class WordScope(Scope):
    """Prints bodies for which `in_words` holds, as `vectors` vectors, the last one of `last` lanes if that is given."""

    along: tuple[int, ...] = ()
    vectors: int = 1
    last: str = ""

    def body(self, body: Body) -> str:
        if body in self.bound:
            return self.bound[body]
        match body:
            case Read(source=source, index=(index,)):
                element = f"{self.operand[source]}[{self.index(index)}]"
                if _step(index, self.along) == 0:
                    return f"f32_splat({element})"
                at = f"&{element} + q * 16"
                return f"f32_load_n({at}, {self.last})" if self.last else f"f32_load({at})"
            case Constant(value=value, dtype=dtype):
                return f"f32_splat({literal(value, dtype)})"
            case Apply(op="select", args=(Apply(op=test, args=compared), one, other)):
                return SELECTS[test].format(*map(self.body, (*compared, one, other)))
            case Apply(op=op, args=args):
                return WORDS[op].format(*map(self.body, args))
        raise TypeError(f"{body!r} is not in words")

    def stored(self, target: str, body: Body) -> list[str]:
        """Lines that store the body's values from `target` on."""
        every = f"UNROLL for (int q = 0; q < {self.vectors}; q++)"
        counts, lines = Counter(always(body)), []
        for part in dict.fromkeys(always(body)):
            if not isinstance(part, Apply) or part.op in SELECTS or part.op not in EACH and counts[part] == 1:
                continue
            name = f"v{len(self.bound)}"
            value = self.body(part.args[0] if part.op in EACH else part)
            lines += [f"vf32 {name}[{self.vectors}];", f"{every} {name}[q] = {value};"]
            lines += [f"f32_{part.op}_each({name}, {self.vectors});"] if part.op in EACH else []
            self.bound[part] = f"{name}[q]"
        value, at = self.body(body), f"&{target} + q * 16"
        stored = f"f32_store_n({at}, {value}, {self.last});" if self.last else f"f32_store({at}, {value});"
        return [*lines, f"{every} {stored}"]

"""What `inferc verify` is asked, and what it reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...errors import InfercError
from . import compare, compiled
from .parting import Parting, Watch
from .text import TEXT

BACKENDS = ("reference", "interpreter", "c", "xla")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Wanted:
    """What is compared. `tokens` of `text` are evaluated; `kl` is the most that the mean divergence of any run from its
    yardstick may be, in nats, and `top_1` the least part of positions with the same likeliest token, `norm` the most
    that a function's outputs may be off, of their norm. `dims` are sizes of a function's dimensions that have names.
    With `exact` C must have the interpreter's bits in every value that a kernel gives, and those of each other
    target."""

    backends: tuple[str, ...] = BACKENDS
    targets: tuple[str, ...] = ("native",)
    text: str = TEXT
    tokens: int = 64
    per_layer: bool = False
    tokenizer: bool = False
    exact: bool = False
    kl: float = 0.05
    norm: float = 0.01
    top_1: float = 0.8
    kv: str = "f16"
    threads: int | None = None
    dims: Mapping[str, int] = field(default_factory=dict)
    lowerings: Mapping[str, compiled.Lowering] = field(default_factory=lambda: compiled.LOWERINGS)  # a test breaks one


@dataclass
class Run:
    """One backend's (and target's) logits against a yardstick's, and whether that is good enough."""

    name: str
    against: str
    difference: compare.Difference
    agreement: compare.Agreement | None
    failures: list[str] = field(default_factory=list)
    layers: list[dict[str, Any]] = field(default_factory=list)
    parting: dict[str, Any] | None = None
    lines: list[str] = field(default_factory=list)

    def located(self, watch: Watch) -> None:
        """Notes the first op that differs, of what was watched under the run's name."""
        self.found(watch.partings.get(self.name))
        if not self.parting and not self.difference.equal:
            self.lines = ["no op's result differs: what differs is outside of the kernels, or only without an observer"]

    def found(self, parting: Parting | None) -> None:
        """Notes a first op that differs."""
        if parting:
            self.parting, self.lines = parting.data(), parting.lines()

    def data(self) -> dict[str, Any]:
        return {
            "run": self.name, "against": self.against, "ok": not self.failures, "failures": self.failures,
            "logits": self.difference.data(), **(self.agreement.data() if self.agreement else {}),
            "layers": self.layers, "first_difference": self.parting,
        }  # fmt: skip


@dataclass
class Report:
    """All runs, what was left out and why, and the tokenizer's findings."""

    model: str
    tokens: int
    runs: list[Run] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    tokenizer: dict[str, Any] | None = None

    @property
    def ok(self) -> bool:
        return not any(run.failures for run in self.runs) and not (self.tokenizer or {}).get("failures")

    def data(self) -> dict[str, Any]:
        return {"model": self.model, "tokens": self.tokens, "ok": self.ok, "runs": [r.data() for r in self.runs],
                "left_out": self.left_out, "tokenizer": self.tokenizer}  # fmt: skip


def nothing_compared(report: Report) -> InfercError:
    """The error of a report without a run, with why backends were left out."""
    reasons = "".join(f"; {reason}" for reason in report.left_out.values())
    return InfercError(f"nothing to compare: name two backends that can run here{reasons}")

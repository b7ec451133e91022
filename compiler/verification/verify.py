"""Runs one text through every backend and says how far they are apart, and where they part."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...backends.c import evaluation
from ...backends.c.lower import LOWERINGS, Lowering
from ...errors import InfercError
from ...runtime.model import load
from ...runtime.session import physical_cores
from ...runtime.tokenizer import Tokenizer
from .. import driver
from ..source import Source
from . import compare, compiled, functions, tokenizers
from .parting import Watch
from .text import TEXT

BACKENDS = ("reference", "interpreter", "c", "xla")
SINGLES = 8  # tokens that are evaluated one at a time on one thread as well

Say = Callable[[str], None]


@dataclass(frozen=True)
class Wanted:
    """What is compared. `tokens` of `text` are evaluated; `kl` is the most that the mean divergence of any run from its
    yardstick may be, in nats, and `top_1` the least part of positions with the same likeliest token, `norm` the most
    that a function's outputs may be off, of their norm. With `exact` C
    must have the interpreter's bits in every value that a kernel gives, and those of each other target."""

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
    lowerings: Mapping[str, Lowering] = field(default_factory=lambda: LOWERINGS)  # a test breaks one


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


def verify(source: Source, wanted: Wanted, say: Say = lambda line: None) -> Report:
    """Compares what `wanted` names on one text.

    The yardstick of a C target is the interpreter on the same module, or else the first target; that of the
    interpreter, of XLA, and (for what activations in int8 cost) of the first C target is the reference. Raises
    InfercError for an unknown backend or target, a function, and as compiling does.
    """
    if unknown := [b for b in wanted.backends if b not in BACKENDS]:
        raise InfercError(f"there is no backend {unknown[0]!r} to verify: choose of {', '.join(BACKENDS)}")
    if source.kind != "language":
        return _function(source, wanted)
    ids = _ids(source, wanted)
    report = Report(source.name, len(ids))
    logits: dict[str, np.ndarray] = {}
    layers: dict[str, list[np.ndarray]] = {}
    if "reference" in wanted.backends:
        _reference(source, ids, report, logits, layers, say)
    with tempfile.TemporaryDirectory(prefix="inferc-verify-") as name:
        if wanted.tokenizer:
            report.tokenizer = _tokenizer(source, wanted, Path(name))
        if {"c", "interpreter"} & set(wanted.backends):
            _compiled(source, ids, wanted, Path(name), report, logits, layers, say)
        if "xla" in wanted.backends:
            _xla(source, ids, wanted, Path(name), report, logits, say)
    return report


def _function(source: Source, wanted: Wanted) -> Report:
    """A function's outputs on random inputs. C is compared with the interpreter, all else with the reference."""
    report = Report(source.name, 0)
    with tempfile.TemporaryDirectory(prefix="inferc-verify-") as name:
        targets = [t.name for t in compiled.chosen(wanted.targets)]
        found, report.left_out = functions.outputs(source, wanted.backends, targets, Path(name))
    for name, made in found.items():
        exact = name.startswith("c/") and "interpreter" in found
        for yardstick in ("interpreter", "reference") if exact else ("reference",):
            if yardstick in found and yardstick != name:
                run = Run(name, yardstick, functions.difference(found[yardstick], made), None)
                off = run.difference.norm_rel
                if not off <= wanted.norm:
                    run.failures.append(f"it is off by {off:.3g} of the norm, at most {wanted.norm:g} is allowed")
                if wanted.exact and yardstick == "interpreter" and not run.difference.equal:
                    run.failures.append("its outputs have other bits than the interpreter's")
                report.runs.append(run)
    if not report.runs:
        raise InfercError("nothing to compare: name two backends that can run here")
    return report


def _tokenizer(source: Source, wanted: Wanted, folder: Path) -> dict[str, Any]:
    """The tokenizer's findings; beside it that of an artifact, which is in C where its tables express it."""
    if "c" not in wanted.backends or source.tokenizer() is None:
        return tokenizers.check(source, wanted.text)
    path = folder / "text.inferc"
    driver.compile_source(source, path, driver.Options(context=min(source.trained, 256), kv=wanted.kv))
    with load(path) as model:
        return tokenizers.check(source, wanted.text, model.tokenizer)


def _ids(source: Source, wanted: Wanted) -> np.ndarray:
    """The first tokens of the text, or random ones where the model has no tokenizer."""
    count = min(wanted.tokens, source.trained)
    data = source.tokenizer()
    if data is None:
        rng = np.random.default_rng(0)
        return rng.integers(0, source.facts()["vocab_size"], count).astype(np.int32)
    ids = Tokenizer(data).encode(wanted.text)[:count]
    if len(ids) < 2:
        raise InfercError(f"the text has {len(ids)} tokens: give one of two or more")
    return np.array(ids, np.int32)


def _judged(run: Run, wanted: Wanted) -> Run:
    assert run.agreement is not None
    if run.agreement.kl_mean > wanted.kl or not np.isfinite(run.agreement.kl_mean):
        run.failures.append(f"mean KL divergence is {run.agreement.kl_mean:.3g}, at most {wanted.kl:g} is allowed")
    if run.agreement.top_1 < wanted.top_1:
        run.failures.append(f"top-1 agreement is {run.agreement.top_1:.1%}, at least {wanted.top_1:.1%} is wanted")
    return run


def _against(name: str, yardstick: str, logits: Mapping[str, np.ndarray], wanted: Wanted) -> Run:
    a, b = logits[yardstick], logits[name]
    return _judged(Run(name, yardstick, compare.difference(a, b), compare.agreement(a, b)), wanted)


def _layer_rows(names: Sequence[str], a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    return [{"layer": name, **compare.difference(x, y).data()} for name, x, y in zip(names, a, b)]


def _reference(source: Source, ids: np.ndarray, report: Report, logits: dict[str, np.ndarray],
               layers: dict[str, list[np.ndarray]], say: Say) -> None:  # fmt: skip
    from ..frontends import language
    from .reference import run

    if not isinstance(source, language.Source):
        report.left_out["reference"] = "only models of our own architectures have a reference in JAX"
        return
    say("reference: plain JAX in f32")
    logits["reference"], layers["reference"] = run(source, ids.tolist())


def _compiled(source: Source, ids: np.ndarray, wanted: Wanted, folder: Path, report: Report,
              logits: dict[str, np.ndarray], layers: dict[str, list[np.ndarray]], say: Say) -> None:  # fmt: skip
    threads = wanted.threads or physical_cores()
    targets = compiled.chosen(wanted.targets)
    for target in targets:
        if "c" in wanted.backends and (reason := evaluation.missing(target)):
            report.left_out[f"c/{target.name}"] = reason
    context = min(source.trained, max(len(ids), 256))
    found = compiled.groups(source, targets, folder, context=context, chunk=len(ids), kv=wanted.kv,
                            lowerings=wanted.lowerings)  # fmt: skip
    first_c = ""
    for number, group in enumerate(found):
        oracle = "interpreter" if number == 0 else f"interpreter of {group.targets[0].name}"
        running = [t for t in group.targets if f"c/{t.name}" not in report.left_out and "c" in wanted.backends]
        for target in running:
            say(f"c/{target.name}: {len(ids)} tokens")
            logits[f"c/{target.name}"] = group.run(target, ids, threads=threads, step=len(ids))
        with_oracle = "interpreter" in wanted.backends
        if with_oracle:
            say(f"{oracle}: {len(ids)} tokens")
            watch = Watch({}, group.layers)
            logits[oracle] = group.interpret(ids, watch.observe)
            layers[oracle] = [watch.layers[layer.name] for layer in group.layers]
            if "reference" in logits:
                run = _against(oracle, "reference", logits, wanted)
                if wanted.per_layer:
                    names = [layer.name for layer in group.layers]
                    run.layers = _layer_rows(names, layers["reference"], layers[oracle])
                report.runs.append(run)
        for target in running:
            name = f"c/{target.name}"
            yardstick = oracle if with_oracle else first_c if first_c else "reference"
            first_c = first_c or name
            if yardstick in logits:
                run = _against(name, yardstick, logits, wanted)
                if with_oracle and (wanted.per_layer or wanted.exact or not run.difference.equal):
                    _locate(group, target, ids, threads, run, layers[oracle], say)
                if wanted.exact and not run.difference.equal and yardstick != "reference":
                    run.failures.append(f"its logits have other bits than those of {yardstick}")
                if wanted.exact and run.parting:
                    run.failures.append(f"{run.parting['op']} at {run.parting['origin']} gives other bits")
                _singles(group, target, ids, logits[name], run, wanted, say)
                report.runs.append(run)
            if with_oracle and "reference" in logits:
                report.runs.append(_against(name, "reference", logits, wanted))
            if name != first_c and wanted.exact and not np.array_equal(logits[name], logits[first_c], equal_nan=True):
                report.runs[-1].failures.append(f"its logits have other bits than those of {first_c}")


def _locate(group: compiled.Group, target: compiled.CTarget, ids: np.ndarray, threads: int, run: Run,
            expected: Sequence[np.ndarray], say: Say) -> None:  # fmt: skip
    """Observes every value of the target's program, and finds the first that is not the interpreter's."""
    say(f"c/{target.name}: every value beside the interpreter's")
    trace = group.observe(target, ids, threads=threads)
    watch = Watch({run.name: trace}, group.layers)
    group.interpret(ids, watch.observe)
    rows = []
    for layer, want in zip(group.layers, expected):
        told = trace.find(layer.value, layer.occurrence)
        if told is not None:
            found = told.view(np.float32).reshape(want.shape)
            rows.append({"layer": layer.name, **compare.difference(want, found).data()})
    run.layers = rows
    if parting := watch.partings.get(run.name):
        run.parting, run.lines = parting.data(), parting.lines()
    elif not run.difference.equal:
        run.lines = ["no op's result differs: what differs is outside of the kernels, or only without an observer"]


def _singles(group: compiled.Group, target: compiled.CTarget, ids: np.ndarray, whole: np.ndarray, run: Run,
             wanted: Wanted, say: Say) -> None:  # fmt: skip
    """The promise about bits: the same logits token by token on one thread."""
    few = ids[:SINGLES]
    alone = group.run(target, few, threads=1, step=1)
    if wanted.exact and not np.array_equal(alone, whole[: len(few)], equal_nan=True):
        run.failures.append("token by token on one thread its logits have other bits than all at once")


def _xla(source: Source, ids: np.ndarray, wanted: Wanted, folder: Path, report: Report,
         logits: dict[str, np.ndarray], say: Say) -> None:  # fmt: skip
    if "xla" not in driver.BACKENDS:
        report.left_out["xla"] = "this inferc has no such backend"
        return
    say("xla: compiling")
    path = folder / "xla.inferc"
    context = min(source.trained, max(len(ids), 256))
    driver.compile_source(source, path, driver.Options(backend="xla", context=context, chunk=len(ids), kv=wanted.kv))
    with load(path) as model:
        logits["xla"] = model.logits(ids.tolist())
    if yardstick := next((name for name in logits if name != "xla"), ""):
        report.runs.append(_against("xla", yardstick, logits, wanted))

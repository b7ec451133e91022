"""Runs one text through every backend and says how far they are apart, and where they part."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InfercError
from ...runtime.model import load
from ...runtime.session import physical_cores
from ...runtime.tokenizer import Tokenizer
from .. import driver
from ..source import Source
from . import compare, compiled, functions, tokenizers
from .parting import Watch
from .report import BACKENDS, Report, Run, Say, Wanted, nothing_compared

SINGLES = 8  # tokens that are evaluated one at a time on one thread as well


def verify(source: Source, wanted: Wanted, say: Say = lambda line: None) -> Report:
    """Compares what `wanted` names on one text.

    The yardstick of a C target is the interpreter on the same module, or else the first target; that of the
    interpreter, of XLA, and (for what activations in int8 cost) of the first C target is the reference. Layers and
    exact bits of C are the interpreter's to judge, which is then run beside the reference, named or not. Raises
    InfercError for an unknown backend or target, where nothing can be compared, and as compiling does.
    """
    if unknown := [b for b in wanted.backends if b not in BACKENDS]:
        raise InfercError(f"there is no backend {unknown[0]!r} to verify: choose of {', '.join(BACKENDS)}")
    if {"reference", "c"} <= set(wanted.backends) and (wanted.per_layer or wanted.exact):
        wanted = replace(wanted, backends=tuple(b for b in BACKENDS if b in (*wanted.backends, "interpreter")))
    if source.kind != "language":
        return functions.verify(source, wanted, say)
    targets = compiled.chosen(wanted.targets)
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
            _compiled(source, ids, wanted, targets, Path(name), report, logits, layers, say)
        if "xla" in wanted.backends:
            _xla(source, ids, wanted, Path(name), report, logits, layers, say)
    if not report.runs and report.tokenizer is None:
        raise nothing_compared(report)
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


def _compiled(source: Source, ids: np.ndarray, wanted: Wanted, targets: Sequence[compiled.CTarget], folder: Path,
              report: Report, logits: dict[str, np.ndarray], layers: dict[str, list[np.ndarray]],
              say: Say) -> None:  # fmt: skip
    threads = wanted.threads or physical_cores()
    for target in targets:
        if "c" in wanted.backends and (reason := compiled.missing(target)):
            report.left_out[f"c/{target.label}"] = reason
    context = min(source.trained, max(len(ids), 256))
    found = compiled.groups(source, targets, folder, context=context, chunk=len(ids), kv=wanted.kv,
                            lowerings=wanted.lowerings)  # fmt: skip
    first_c = ""
    for number, group in enumerate(found):
        assert isinstance(group, compiled.LanguageGroup)
        oracle = "interpreter" if number == 0 else f"interpreter of {group.targets[0].label}"
        running = [t for t in group.targets if f"c/{t.label}" not in report.left_out and "c" in wanted.backends]
        for target in running:
            say(f"c/{target.label}: {len(ids)} tokens")
            logits[f"c/{target.label}"] = group.run(target, ids, threads=threads, step=len(ids))
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
            name = f"c/{target.label}"
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


def _locate(group: compiled.LanguageGroup, target: compiled.CTarget, ids: np.ndarray, threads: int, run: Run,
            expected: Sequence[np.ndarray], say: Say) -> None:  # fmt: skip
    """Observes every value of the target's program, and finds the first that is not the interpreter's."""
    say(f"c/{target.label}: every value beside the interpreter's")
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
    run.located(watch)


def _singles(group: compiled.LanguageGroup, target: compiled.CTarget, ids: np.ndarray, whole: np.ndarray, run: Run,
             wanted: Wanted, say: Say) -> None:  # fmt: skip
    """The promise about bits: the same logits token by token on one thread."""
    few = ids[:SINGLES]
    alone = group.run(target, few, threads=1, step=1)
    if wanted.exact and not np.array_equal(alone, whole[: len(few)], equal_nan=True):
        run.failures.append("token by token on one thread its logits have other bits than all at once")


def _xla(source: Source, ids: np.ndarray, wanted: Wanted, folder: Path, report: Report,
         logits: dict[str, np.ndarray], layers: Mapping[str, Sequence[np.ndarray]], say: Say) -> None:  # fmt: skip
    if "xla" not in driver.BACKENDS:
        report.left_out["xla"] = "this inferc has no such backend"
        return
    say("xla: compiling")
    path = folder / "xla.inferc"
    context = min(source.trained, max(len(ids), 256))
    options = driver.Options(backend="xla", context=context, chunk=len(ids), kv=wanted.kv)
    driver.compile_source(source, path, options)
    with load(path) as model:
        logits["xla"] = model.logits(ids.tolist())
    yardstick = next((name for name in logits if name != "xla"), "")
    if not yardstick:
        return
    report.runs.append(run := _against("xla", yardstick, logits, wanted))
    if wanted.per_layer or run.failures:
        from . import xla

        say("xla: every value beside the interpreter's")
        planned, count = driver.plan(source, options), len(ids)
        dims = {"T": count, "R": count, "S": 1, "C": planned.context}
        seen = xla.watched(planned.module, "step", compiled.step_inputs(planned, ids), dims)
        if yardstick in layers:
            run.layers = _layer_rows(list(seen.layers), layers[yardstick], list(seen.layers.values()))
        run.found(seen.parting)

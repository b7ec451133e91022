"""Functions through several backends: the outputs of each beside another's, and the first op where C parts."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...errors import InfercError
from ...ir.graph import Module
from ...ir.interpret import Observer, interpret
from ...runtime.function import Function, apart, together
from ...runtime.session import physical_cores
from .. import driver
from ..source import Source
from . import compare, compiled
from .inputs import inputs
from .parting import Watch
from .report import Report, Run, Say, Wanted, nothing_compared

Arrays = list[np.ndarray]
XLA = driver.Options(backend="xla", platforms="cpu")


class Case:
    """A function with random inputs. Arrays are as the IR holds them: bf16 as bits."""

    def __init__(self, source: Source, wanted: Wanted) -> None:
        """Raises InfercError for a size that the function does not take."""
        self.source, self.signature = source, source.facts()["signature"]
        dims = self.signature.get("dims", {})
        for name, size in wanted.dims.items():
            low, high = dims.get(name, (1, 0))
            if not low <= size <= high:
                known = ", ".join(f"{k} from {a} to {b}" for k, (a, b) in dims.items()) or "none"
                raise InfercError(f"{source.name} has no size {name}={size}: sizes with names are {known}")
        self.plain = inputs({**self.signature, "chosen": wanted.dims})
        self.given = [_bits(x) if e["dtype"] == "bf16" else x for e, x in zip(self.signature["inputs"], self.plain)]

    def interpreted(self, module: Module, observer: Observer | None = None) -> Arrays:
        """What a module's `run` gives."""
        named = {entry["name"]: x for entry, x in zip(self.signature["inputs"], self.given)}
        results = interpret(module, named, entry="run", observer=observer)
        return list(results.values()) if isinstance(results, dict) else list(results)

    def xla(self, folder: Path) -> Arrays:
        """What the artifact of the XLA backend gives. Raises InfercError where there is none."""
        path = folder / "xla.inferc"
        driver.compile_source(self.source, path, XLA)
        with Function(path) as function:
            given = [together(x) if e.get("complex") else x for e, x in zip(self.signature["inputs"], self.plain)]
            made = [np.asarray(x) for x in function.run_flat(given)]
        return [apart(x) if e.get("complex") else _bits(x) if e["dtype"] == "bf16" else x
                for e, x in zip(self.signature["outputs"], made)]  # fmt: skip

    def difference(self, a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> compare.Difference:
        """All outputs as one."""
        flat = []
        for outputs in (a, b):
            numbers = [_widened(x) if e["dtype"] == "bf16" else x for e, x in zip(self.signature["outputs"], outputs)]
            flat.append(np.concatenate([np.asarray(x, np.float32).ravel() for x in numbers]))
        return compare.difference(*flat)


def _bits(x: np.ndarray) -> np.ndarray:
    """bf16 as the interpreter holds it, of f32 that it can hold."""
    return (np.ascontiguousarray(x).view(np.uint32) >> 16).astype(np.uint16)


def _widened(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def verify(source: Source, wanted: Wanted, say: Say) -> Report:
    """Compares a function's outputs on random inputs; the passes may reorder sums, so that the reference, which is the
    interpreter on the graph before them, is near only.

    The yardstick of a C target is the interpreter on the same graph, or else the first C target; and that of each run
    the reference too. Raises InfercError for an unknown target, where nothing can be compared, and as compiling does.
    """
    case, report, targets = Case(source, wanted), Report(source.name, 0), compiled.chosen(wanted.targets)
    found: dict[str, Arrays] = {}
    if "reference" in wanted.backends:
        say("reference: the graph as it was traced")
        found["reference"] = case.interpreted(source.build(0, 0))
    with tempfile.TemporaryDirectory(prefix="inferc-verify-") as name:
        if {"c", "interpreter"} & set(wanted.backends):
            _compiled(case, wanted, targets, Path(name), report, found, say)
        if "xla" in wanted.backends:
            say("xla: compiling")
            try:
                found["xla"] = case.xla(Path(name))
            except InfercError as error:
                report.left_out["xla"] = str(error)
            else:
                for yardstick in [name for name in found if name != "xla"][:1]:
                    report.runs.append(run := _against(case, "xla", yardstick, found, wanted))
                    if run.failures:
                        _locate_xla(case, run, say)
    if not report.runs:
        raise nothing_compared(report)
    return report


def _compiled(case: Case, wanted: Wanted, targets: Sequence[compiled.CTarget], folder: Path, report: Report,
              found: dict[str, Arrays], say: Say) -> None:  # fmt: skip
    threads, first_c = wanted.threads or physical_cores(), ""
    groups = compiled.groups(case.source, targets, folder, lowerings=wanted.lowerings)
    for number, group in enumerate(groups):
        assert isinstance(group, compiled.FunctionGroup)
        oracle = "interpreter" if number == 0 else f"interpreter of {group.targets[0].label}"
        if "interpreter" in wanted.backends:
            say(f"{oracle}: the graph after the passes")
            found[oracle] = case.interpreted(group.module)
            if "reference" in found:
                report.runs.append(_against(case, oracle, "reference", found, wanted))
        for target in group.targets if "c" in wanted.backends else ():
            name = f"c/{target.label}"
            if reason := compiled.missing(target):
                report.left_out[name] = reason
                continue
            say(name)
            found[name] = group.run(target, case.given, threads=threads)
            yardsticks = [y for y in (oracle if oracle in found else first_c, "reference") if y in found]
            for yardstick in yardsticks:
                run = _against(case, name, yardstick, found, wanted)
                report.runs.append(run)
                if yardstick == oracle and (wanted.exact or not run.difference.equal):
                    _locate(case, group, target, threads, run, say)
                if not wanted.exact or yardstick == "reference":
                    continue
                if not run.difference.equal:
                    run.failures.append(f"its outputs have other bits than those of {yardstick}")
                if run.parting:
                    run.failures.append(f"{run.parting['op']} at {run.parting['origin']} gives other bits")
            first_c = first_c or name


def _against(case: Case, name: str, yardstick: str, found: dict[str, Arrays], wanted: Wanted) -> Run:
    run = Run(name, yardstick, case.difference(found[yardstick], found[name]), None)
    if not run.difference.norm_rel <= wanted.norm:
        run.failures.append(
            f"it is off by {run.difference.norm_rel:.3g} of the norm, at most {wanted.norm:g} is allowed"
        )
    return run


def _locate(case: Case, group: compiled.FunctionGroup, target: compiled.CTarget, threads: int, run: Run,
            say: Say) -> None:  # fmt: skip
    """Observes every value of the target's program, and finds the first that is not the interpreter's."""
    say(f"{run.name}: every value beside the interpreter's")
    watch = Watch({run.name: group.observe(target, case.given, threads=threads)}, [])
    case.interpreted(group.module, watch.observe)
    run.located(watch)


def _locate_xla(case: Case, run: Run, say: Say) -> None:
    """Finds the first op of XLA's graph whose result is off."""
    from . import xla

    say("xla: every value beside the interpreter's")
    given = {entry["name"]: x for entry, x in zip(case.signature["inputs"], case.given)}
    run.found(xla.watched(driver.plan(case.source, XLA).module, "run", given, {}).parting)

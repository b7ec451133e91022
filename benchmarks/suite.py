"""Runs engines side by side: each model and number of threads in turn, every engine in every round."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from operator import truediv
from pathlib import Path
from typing import Any

from ..compiler import driver
from ..compiler.frontends import open_source
from ..compiler.source import Source
from ..errors import InfercError
from .costs import AMX_OF, Costs, costs
from .engines import adapter
from .engines.base import Job
from .tests import Test

OURS = ("c", "xla")  # compiled here
Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What to measure: models with their tests, backends in their order, threads, rounds, and rounds of tests at a
    depth, which take long. `programs` and `flags` are those of engines that are programs, by name; `skip` has (backend,
    part of a model's name) to leave out, `dims` the sizes of functions' dimensions that have names."""

    models: tuple[tuple[Path, tuple[Test, ...]], ...]
    backends: tuple[str, ...]
    threads: tuple[int, ...]
    rounds: int
    depth_rounds: int
    programs: Mapping[str, str] = field(default_factory=dict)
    flags: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    skip: tuple[tuple[str, str], ...] = ()
    context: int | None = None
    dims: Mapping[str, int] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Seen:
    """What the runs of one test on one engine gave."""

    seconds: list[float] = field(default_factory=list)
    bandwidths: list[list[float]] = field(default_factory=list)  # those read beside each run
    peaks: list[list[Mapping[str, float]]] = field(default_factory=list)
    joules: list[float] = field(default_factory=list)
    memory: int = 0


@dataclass
class Results:
    """Rows, one for each model, backend, number of threads and test; `left_out` says what was not measured and why;
    `engines` each backend's facts, `compiled` what compiling each model took."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[dict[str, str]] = field(default_factory=list)
    engines: dict[str, dict[str, Any]] = field(default_factory=dict)
    compiled: list[dict[str, Any]] = field(default_factory=list)

    def leave_out(self, model: str, backend: str, what: str, reason: str) -> None:
        line = {"model": model, "backend": backend, "test": what, "reason": reason}
        if line not in self.left_out:
            self.left_out.append(line)


class Worker:
    """A process with one engine open."""

    def __init__(self, name: str, job: Job) -> None:
        """Raises InfercError with the engine's own reason where it does not open."""
        self.name, self.job, self._ended = name, job, ""
        self._errors = tempfile.TemporaryFile("w+")  # a pipe that nobody empties would stop the engine
        self._process = subprocess.Popen(
            [sys.executable, "-m", "inferc.benchmarks.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._errors, text=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        data = asdict(job) | {"path": str(job.path), "artifacts": {k: str(v) for k, v in job.artifacts.items()}}
        self.opened = self._asked({"adapter": name, "job": data})

    def run(self, test: Test) -> dict[str, Any]:
        """One sample as data. Raises InfercError with the engine's own reason."""
        return self._asked(test.data())

    def _asked(self, question: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        if self._ended:
            raise InfercError(self._ended)
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._ended = f"its process ended ({self._last_words()})"
            raise InfercError(self._ended)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise InfercError(answer["error"])
        return answer

    def _last_words(self) -> str:
        self._process.communicate()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        return lines[-1] if lines else f"exit code {self._process.returncode}"

    def close(self) -> None:
        """Ends the process."""
        if self._process.poll() is None:
            self._process.communicate()
        self._errors.close()


def run(plan: Plan, say: Say) -> Results:
    """Measures a plan. What cannot be measured is a line of `left_out`; errors of our own compiler are raised."""
    results = Results()
    stems = Counter(path.stem for path, _ in plan.models)
    with tempfile.TemporaryDirectory(prefix="inferc-bench-") as folder:
        for path, tests in plan.models:
            name = path.stem if stems[path.stem] == 1 else path.name
            _model(plan, name, path, tests, Path(folder), results, say)
    return results


def _model(plan: Plan, name: str, path: Path, tests: Sequence[Test], folder: Path, results: Results,
           say: Say) -> None:  # fmt: skip
    source = open_source(path)
    tests = [t for t in tests if bool(t.prompt or t.generate) == (source.kind == "language")] or [Test()]
    of = costs(path) if path.suffix == ".gguf" else None
    positions = max(t.depth + t.prompt + t.generate for t in tests) + 1
    batch = max(t.batch for t in tests)
    signature = source.facts().get("signature", {}) | {"chosen": dict(plan.dims)}
    job = Job(name, path, source.kind, 1, positions, signature=signature, costs=of.data() if of else None)
    backends = [b for b in plan.backends if not _left_out(plan, b, job, results)]
    artifacts = {}
    for backend in [b for b in backends if b in OURS]:
        say(f"{name}: compiling for {backend}")
        try:
            artifacts[backend] = _compiled(plan, name, source, backend, positions, batch, folder, results)
        except InfercError as error:
            results.leave_out(name, backend, "all", str(error))
    job = replace(job, artifacts=artifacts)
    backends = [b for b in backends if b not in OURS or b in artifacts]
    workers = list(_opened(plan, job, backends, results, say))
    seen: dict[tuple[int, Test, str], Seen] = {}
    try:
        for number in range(plan.rounds):
            for worker in workers:
                for test in tests:
                    if not test.depth or number < plan.depth_rounds:
                        _run(worker, test, seen, results)
            say(f"{name}: round {number + 1} of {plan.rounds}")
    finally:
        for worker in workers:
            worker.close()
    results.rows += _rows(job, workers, seen, of)
    for artifact in artifacts.values():
        artifact.unlink()


def _left_out(plan: Plan, backend: str, job: Job, results: Results) -> bool:
    """Whether a backend is not run on a model, which is said."""
    chosen = adapter(backend)
    job = replace(job, program=plan.programs.get(backend, ""))
    reason = ""
    if any(name == backend and part in job.model for name, part in plan.skip):
        reason = "left out as asked (--skip)"
    elif job.kind not in chosen.kinds:
        reason = f"it runs no {job.kind}s" if job.kind == "function" else "it runs functions, no language models"
    reason = reason or chosen.missing(job)
    if reason:
        results.leave_out(job.model, backend, "all", reason)
    return bool(reason)


def _compiled(plan: Plan, name: str, source: Source, backend: str, positions: int, batch: int, folder: Path,
              results: Results) -> Path:  # fmt: skip
    """The artifact for one of our backends. XLA's programs are made for the positions that the tests need."""
    output = folder / f"{len(results.compiled)}-{backend}.inferc"
    options: dict[str, Any] = {"backend": backend, "context": plan.context, **plan.options}
    if backend == "xla":
        options |= {"context": min(source.trained, -(-positions // 256) * 256) or None, "slots": batch,
                    "platforms": "cpu"}  # fmt: skip
    started = time.monotonic()
    driver.compile_source(source, output, driver.Options(**options))
    results.compiled.append({
        "model": name, "backend": backend,
        "compile_seconds": time.monotonic() - started, "artifact_bytes": output.stat().st_size,
        "source_bytes": source.path.stat().st_size if source.path and source.path.is_file() else None,
    })  # fmt: skip
    return output


def _opened(plan: Plan, job: Job, backends: Sequence[str], results: Results, say: Say) -> Iterator[Worker]:
    for threads in plan.threads:
        for backend in backends:
            own = replace(job, threads=threads, program=plan.programs.get(backend, ""),
                          flags=plan.flags.get(backend, ()))  # fmt: skip
            try:
                yield Worker(backend, own)
            except InfercError as error:
                results.leave_out(job.model, backend, "all", str(error))
                say(f"{job.model}: {backend} is left out: {error}")


def _run(worker: Worker, test: Test, seen: dict[tuple[int, Test, str], Seen], results: Results) -> None:
    name, model = worker.name, worker.job.model
    if any(line["model"] == model and line["backend"] == name and line["test"] in (test.name, "all")
           and line.get("threads", worker.job.threads) == worker.job.threads for line in results.left_out):  # fmt: skip
        return
    try:
        sample = worker.run(test)
    except InfercError as error:
        results.leave_out(model, name, test.name, str(error))
        return
    found = seen.setdefault((worker.job.threads, test, name), Seen())
    found.seconds.append(sample["seconds"])
    found.bandwidths.append(sample["bandwidths"])
    found.peaks.append(sample["peaks"])
    found.joules += [sample["joules"]] if sample["joules"] is not None else []
    found.memory = max(found.memory, sample["peak_memory_bytes"])
    known = results.engines.setdefault(name, {})
    for key, fact in sample["facts"].items():
        known[key] = {**known.get(key, {}), **fact} if isinstance(fact, dict) else fact


def _rows(job: Job, workers: Sequence[Worker], seen: Mapping[tuple[int, Test, str], Seen],
          of: Costs | None) -> Iterator[dict[str, Any]]:  # fmt: skip
    opened = {(w.job.threads, w.name): w.opened for w in workers}
    for (threads, test, backend), found in seen.items():
        speeds = [test.tokens / s for s in found.seconds]
        speed = statistics.median(speeds)
        row: dict[str, Any] = {
            "model": job.model, "backend": backend, "test": test.name, "n_prompt": test.prompt,
            "n_gen": test.generate, "n_depth": test.depth, "batch": test.batch, "threads": threads,
            "tokens_per_second": speed, "tokens_per_second_min": min(speeds), "tokens_per_second_max": max(speeds),
            "samples": speeds, "unit": "tokens" if job.kind == "language" else "calls",
            "seconds": statistics.median(found.seconds), "peak_memory_bytes": found.memory,
            "load_seconds": opened[threads, backend]["load_seconds"],
            "first_token_seconds": opened[threads, backend]["first_token_seconds"],
            "artifact_bytes": opened[threads, backend]["artifact_bytes"],
            "joules_per_token": statistics.median(found.joules) / test.tokens if found.joules else None,
        }  # fmt: skip
        beside = seen.get((threads, test, "c"))
        if of and beside:  # the limits were measured around our own runs
            limit = _prompt_limit if test.prompt else _decode_limit
            row |= limit(test, of, beside, speed, speeds if beside is found else ())
        yield row


def _share(speed: float, limit: float, speeds: Sequence[float], limits: Sequence[float]) -> float:
    """What was reached of a limit: of our own runs the median of what each reached of the limit measured around it,
    since a shared machine is not equally fast throughout."""
    return statistics.median(map(truediv, speeds, limits)) if speeds else speed / limit


def _prompt_limit(test: Test, of: Costs, beside: Seen, speed: float, speeds: Sequence[float]) -> dict[str, Any]:
    work = of.work(test.prompt, 1)
    every = [p for peaks in beside.peaks for p in peaks]
    names = sorted({name for peaks in every for name in peaks})
    if not work.keys() <= set(names) or not all(p.keys() >= set(names) for p in every):
        return {}

    def limit(among: Sequence[Mapping[str, float]], of: Mapping[str, str]) -> float:
        return test.prompt / sum(m / statistics.median(p[of.get(n, n)] for p in among) for n, m in work.items())

    def share(of: Mapping[str, str]) -> float:
        return _share(speed, limit(every, of), speeds, [limit(peaks, of) for peaks in beside.peaks])

    row: dict[str, Any] = {"macs_per_token": sum(work.values()) / test.prompt, "limit": limit(every, {}),
                           "peaks": {n: statistics.median(p[n] for p in every) for n in names},
                           "fraction": share({})}  # fmt: skip
    return row | ({"amx_fraction": share(AMX_OF)} if all(AMX_OF.get(n) in names for n in work) else {})


def _decode_limit(test: Test, of: Costs, beside: Seen, speed: float, speeds: Sequence[float]) -> dict[str, Any]:
    every = [b for reads in beside.bandwidths for b in reads]
    if not every:
        return {}
    cache = of.decode_bytes(test.depth + test.generate / 2) - of.weight_bytes
    size = of.weight_bytes / test.batch + cache  # of one token: a step reads the weights once for all sequences
    limit = statistics.median(every) / size
    limits = [statistics.median(reads) / size for reads in beside.bandwidths]
    return {"bytes_per_token": size, "bandwidth": limit * size, "limit": limit,
            "fraction": _share(speed, limit, speeds, limits),
            "macs_per_token": sum(of.work(1, 1).values())}  # fmt: skip

"""`inferc tune`: measures the block sizes of kernels on this machine, with a whole model, one size after another.

Each candidate is the model's library with one size changed, loaded beside the best so far over the same weights; the
two take turns at a prompt and at single tokens. Sizes change no bit, so that nothing but time is compared.
"""

from __future__ import annotations

import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from ..backends.c import program as c_program
from ..backends.c import toolchain, tuning
from ..backends.c.target import CTarget, get
from ..errors import InfercError
from ..runtime.artifact import Artifact
from ..runtime.session import Engine
from . import hub
from .cache import is_artifact
from .driver import Plan, compile_model, plan_model

ROUNDS, TOKENS = 7, 24  # turns of each candidate; single tokens of a turn
LEAST_GAIN = 1.02  # of the geometric mean of both speeds, in the median of the turns: less may be noise

Say = Callable[[str], None]


class Rebuilt(Artifact):
    """An artifact with another library."""

    def __init__(self, path: Path, library: Path) -> None:
        super().__init__(path)
        self._library = np.frombuffer(library.read_bytes(), np.uint8)

    def view(self, name: str) -> np.ndarray:
        replaced = name == self.__dict__.get("manifest", {}).get("library")
        return self._library if replaced else super().view(name)


@dataclass(frozen=True)
class Speed:
    """Tokens per second of a prompt and of single tokens."""

    prompt: float
    generation: float

    def over(self, other: Speed) -> float:
        """How many times as fast: the geometric mean of both."""
        return ((self.prompt / other.prompt) * (self.generation / other.generation)) ** 0.5

    def __str__(self) -> str:
        return f"prompt {self.prompt:.0f}, generation {self.generation:.1f} tokens/s"


def tune(source: str, output: Path, *, target: str = "native", threads: int | None = None, chunk: int = 512,
         say: Say = lambda line: None, progress: hub.Progress | None = None) -> tuning.Tuning:  # fmt: skip
    """Measures the block sizes of one target with the model that `source` names, and writes the best to `output`.

    `threads` defaults to the physical cores; prompts have `chunk` tokens. `say` is told a line about each candidate.
    Takes some seconds for each of about thirty candidates. Raises InfercError as `compile_model` does, for an artifact
    (which has no graph to compile anew), and for several targets.
    """
    progress = progress or (lambda what, done, total: None)
    path = hub.pull(source, progress)
    if is_artifact(path):
        raise InfercError(f"{path} is compiled already: tune with the model that it was made from")
    chosen = get(target)
    plan = plan_model(path, target=chosen.name, chunk=chunk)
    with tempfile.TemporaryDirectory(prefix="inferc-tune-") as name:
        folder = Path(name)
        artifact = folder / "model.inferc"
        compile_model(str(path), artifact, target=chosen.name, chunk=chunk, progress=progress)
        bench = _Bench(plan, chosen, artifact, folder, threads)
        best = tuning.tuning_of(chosen.ir)
        say(f"{chosen.name}, {bench.threads} threads, {source}: {_median(bench.turns(best)[0])}")
        measured = []
        for parameter in tuning.SPACE:
            for candidate in tuning.candidates(chosen.name, best, parameter):
                if bench.sources(candidate) == bench.sources(best):
                    continue
                before, after = bench.turns(best, candidate)
                gains = [a.over(b) for a, b in zip(after, before)]
                gain, value = statistics.median(gains), tuning.as_data(candidate)[parameter]
                better = gain > LEAST_GAIN and sum(g > 1 for g in gains) >= len(gains) - 1
                measured.append({"size": parameter, "value": value, "gain": round(gain, 4), "taken": better})
                say(f"{parameter} {value}: {_median(after)} ({100 * (gain - 1):+.1f} %{', taken' * better})")
                best = candidate if better else best
    facts = {"cpu": _cpu(), "threads": bench.threads, "model": plan.source.name, "measured": measured}
    tuning.write(output, {chosen.name: best}, **facts)
    return best


class _Bench:
    """Libraries of one model that differ in their block sizes."""

    def __init__(self, plan: Plan, target: CTarget, artifact: Path, folder: Path, threads: int | None) -> None:
        self.plan, self.target, self.artifact, self.folder = plan, target, artifact, folder
        engine = Engine(Artifact(artifact), threads)
        self.threads = engine.threads
        engine.close()
        self._programs: dict[tuning.Tuning, c_program.Program] = {}

    def program(self, sizes: tuning.Tuning) -> c_program.Program:
        if sizes not in self._programs:
            target = replace(self.target, ir=replace(self.target.ir, tuning=sizes))
            plan = self.plan
            self._programs[sizes] = c_program.build(
                plan.module, [target], prefix=plan.options.prefix, context=plan.context, chunk=plan.chunk,
                name=plan.source.name,
            )  # fmt: skip
        return self._programs[sizes]

    def sources(self, sizes: tuning.Tuning) -> dict[str, str]:
        return dict(self.program(sizes).sources)

    def engine(self, sizes: tuning.Tuning) -> Engine:
        library = self.folder / f"{tuning.digest({'': sizes})[:16]}.so"
        if not library.exists():
            toolchain.compile_program(self.program(sizes), library)
        return Engine(Rebuilt(self.artifact, library), self.threads)

    def turns(self, *sizes: tuning.Tuning) -> list[list[Speed]]:
        """The speeds of each in every round, in which all take their turn, the order changing."""
        engines = [self.engine(s) for s in sizes]
        turns: list[list[Speed]] = [[] for _ in engines]
        for number in range(ROUNDS):
            for i in range(len(engines))[:: -1 if number % 2 else 1]:
                turns[i].append(_turn(engines[i]))
        for engine in engines:
            engine.close()
        return turns


def _median(speeds: list[Speed]) -> Speed:
    prompt, generation = ([getattr(s, f.name) for s in speeds] for f in fields(Speed))
    return Speed(statistics.median(prompt), statistics.median(generation))


def _turn(engine: Engine) -> Speed:
    """One prompt of a whole chunk, then single tokens after a short one."""
    count = min(engine.chunk, engine.context)
    ids = [i % engine.vocab_size for i in range(count)]
    times = []
    session = engine.session()
    for _ in range(2):  # the first brings weights and libraries into memory
        session.rewind(0)
        times.append(_seconds(lambda: session.eval(ids)))
    session.rewind(0)
    session.eval(ids[:4])
    singles = [_seconds(lambda: session.eval(ids[:1])) for _ in range(min(TOKENS, engine.context - 4))]
    return Speed(count / times[-1], 1 / statistics.median(singles))


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _cpu() -> str:
    """What the system calls this CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())

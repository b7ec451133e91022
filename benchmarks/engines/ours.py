"""Compiled models, through the interface that programs use, each run beside the hardware's limit at that moment."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from ...errors import InfercError
from ...runtime.artifact import Artifact
from ...runtime.engine import open_engine
from ..costs import AMX_OF, Costs
from ..roofline import Roofline
from ..tests import Test
from .base import Adapter, CannotRun, Job, Sample, energy, inputs, repeated

READS = 8  # of the same bytes, during a generation


class Ours(Adapter):
    """An artifact of one of our backends: a language model's engine and sessions, or a function."""

    kinds = ("language", "function")
    backend: ClassVar[str]

    def __init__(self, job: Job) -> None:
        path = job.artifacts[self.backend]
        self.job, self.artifact_bytes = job, path.stat().st_size
        started = time.perf_counter()
        if job.kind == "function":
            self._open_function(job)
            return
        try:
            artifact = Artifact(path)
            self.engine = open_engine(artifact, job.threads)
            self.sessions = [self.engine.session()]
        except InfercError as error:
            raise CannotRun(str(error)) from error
        self.load_seconds = time.perf_counter() - started
        rng = np.random.default_rng(0)
        self.ids = rng.integers(0, self.engine.vocab_size, self.engine.context, np.int32).tolist()
        self.sessions[0].eval(self.ids[:1])
        self.first_token_seconds = time.perf_counter() - started
        self.weights = artifact.view(artifact.manifest["weights"]["file"])
        self.costs = Costs.of(job.costs) if job.costs and self.backend == "c" else None
        self.roofline = Roofline() if self.costs else None

    def _open_function(self, job: Job) -> None:
        from ...runtime.function import Function

        started = time.perf_counter()
        try:
            function = Function(job.artifacts[self.backend], job.threads)
            given = inputs(job.signature)
            self.call = lambda: function.run_flat(given)
            self.load_seconds = time.perf_counter() - started
            self.call()
        except InfercError as error:
            raise CannotRun(str(error)) from error
        self.first_token_seconds = time.perf_counter() - started

    def facts(self) -> dict[str, Any]:
        return {"target": self.engine.target} if self.job.kind == "language" else {}

    def run(self, test: Test) -> Sample:
        if self.job.kind == "function":
            return repeated(self.call)
        while len(self.sessions) < test.batch:
            try:
                self.sessions.append(self.engine.session())
            except InfercError as error:
                raise CannotRun(str(error)) from error
        for warm in (False, True)[bool(test.depth) :]:
            for session in self.sessions[: test.batch]:
                self._fill(session, test.depth)
            sample = self._prompt(test) if test.prompt else self._generate(test, warm)
        return sample

    def _fill(self, session: Any, depth: int) -> None:
        """Takes a session to `depth` positions, from its beginning where it cannot be taken back so far."""
        if session.position < depth or session.rewind(depth) != depth:
            session.rewind(0)
        self._evaluate(session, depth - session.position)

    def _evaluate(self, session: Any, count: int) -> None:
        end = session.position + count
        while session.position < end:
            start = session.position
            session.eval(self.ids[start : min(end, start + self.engine.chunk)])

    def _prompt(self, test: Test) -> Sample:
        names = []
        if self.costs:
            work = self.costs.work(test.prompt, 1)
            names = [*work, *(AMX_OF[p] for p in work if p in AMX_OF)]
        before = self._peaks(names)
        joules, started = energy(), time.perf_counter()
        self._evaluate(self.sessions[0], test.prompt)
        seconds = time.perf_counter() - started
        spent = _spent(joules)
        return Sample(seconds, peaks=(before, self._peaks(names)) if names else (), joules=spent)

    def _peaks(self, names: Sequence[str]) -> dict[str, float]:
        if not self.roofline:
            return {}
        found = {name: self.roofline.peak(name, self.job.threads) for name in names}
        return {name: value for name, value in found.items() if value is not None}

    def _generate(self, test: Test, measured: bool) -> Sample:
        sessions = self.sessions[: test.batch]
        bandwidths, seconds, joules = self._read(test, measured), 0.0, 0.0 if energy() is not None else None
        for start in range(0, test.generate, READS):
            before, started = energy(), time.perf_counter()
            for _ in range(min(READS, test.generate - start)):
                self._advance(sessions)
            seconds += time.perf_counter() - started
            spent = _spent(before)
            joules = joules + spent if joules is not None and spent is not None else None
            bandwidths += self._read(test, measured)
        return Sample(seconds, bandwidths=tuple(bandwidths), joules=joules)

    def _advance(self, sessions: Sequence[Any]) -> None:
        """One token more for each session, all in one pass over the weights."""
        if len(sessions) == 1:
            sessions[0].eval([self.ids[sessions[0].position]])
        else:
            self.engine.decode([(s, self.ids[s.position]) for s in sessions])  # type: ignore[attr-defined]

    def _read(self, test: Test, measured: bool) -> list[float]:
        """The bandwidth of a read of the bytes that a step of the test reads, where they lie."""
        if not measured or not self.costs or not self.roofline:
            return []
        weights = self.weights[: self.costs.weight_bytes]
        cache_bytes = self.costs.decode_bytes(test.depth + test.generate / 2) - self.costs.weight_bytes
        caches = [s._memory[: int(cache_bytes)] for s in self.sessions[: test.batch]]  # pages of layers in a row
        parts = [part for part in (weights, *caches) if part.nbytes >= 1 << 20]
        if not parts:  # so little lies in caches, which are no limit
            return []
        threads = self.job.threads
        return [sum(p.nbytes for p in parts) / sum(p.nbytes / self.roofline.read(p, threads) for p in parts)]


def _spent(before: float | None) -> float | None:
    after = energy()
    return after - before if before is not None and after is not None and after >= before else None


class C(Ours):
    name = backend = "c"


class XLA(Ours):
    name = backend = "xla"

    def facts(self) -> dict[str, Any]:
        import jax

        return {**super().facts(), "jax": jax.__version__}

"""Compiled models under the tests that `llama-bench` runs, each beside the hardware's limit at that moment."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..runtime.artifact import Artifact
from ..runtime.session import Engine
from .costs import AMX_OF, Costs
from .peers import Test
from .roofline import Roofline

TOKENS_PER_READ = 8  # generated between two reads of the same bytes


@dataclass(frozen=True)
class Sample:
    """One run: tokens per second, and what was measured beside it. `bandwidths` are of reads of the same bytes by as
    many threads, in bytes per second; `peaks` in multiply-adds per second, by name, just before and after."""

    tokens_per_second: float
    bandwidths: tuple[float, ...] = ()
    peaks: tuple[dict[str, float], ...] = ()


class Compiled:
    """An artifact, opened for a number of threads."""

    def __init__(self, path: Path, threads: int, costs: Costs, roofline: Roofline) -> None:
        artifact = Artifact(path)
        self.threads, self.costs, self.roofline = threads, costs, roofline
        self.cache = "f16"
        self.weights = artifact.view(artifact.manifest["weights"]["file"])
        self.engine = Engine(artifact, threads)
        self.session = self.engine.session()
        self.ids = np.random.default_rng(0).integers(0, self.engine.vocab_size, self.engine.context, np.int32)

    def close(self) -> None:
        self.engine.close()

    def measure(self, tests: Sequence[Test]) -> Iterator[tuple[Test, Sample]]:
        """Runs each test, those without depth twice, the first time to warm up, as peers are run."""
        for test in tests:
            for warm in (False, True)[bool(test.depth) :]:
                self._fill(test.depth)
                sample = self._prompt(test) if test.prompt else self._generate(test)
                if warm:
                    yield test, sample

    def _fill(self, depth: int) -> None:
        """Takes the session to `depth` positions, from its beginning where it cannot be taken back so far."""
        if self.session.position < depth or self.session.rewind(depth) != depth:
            self.session.rewind(0)
        self._evaluate(depth - self.session.position)

    def _evaluate(self, count: int) -> None:
        end = self.session.position + count
        while self.session.position < end:
            start = self.session.position
            self.session.eval(self.ids[start : min(end, start + self.engine.chunk)])

    def _prompt(self, test: Test) -> Sample:
        work = self.costs.work(test.prompt, 1)
        names = [*work, *(AMX_OF[p] for p in work if p in AMX_OF)]
        before = self._peaks(names)
        started = time.perf_counter()
        self._evaluate(test.prompt)
        seconds = time.perf_counter() - started
        return Sample(test.prompt / seconds, peaks=(before, self._peaks(names)))

    def _peaks(self, names: Sequence[str]) -> dict[str, float]:
        found = {name: self.roofline.peak(name, self.threads) for name in names}
        return {name: value for name, value in found.items() if value is not None}

    def _generate(self, test: Test) -> Sample:
        bandwidths, seconds = [self._read(test)], 0.0
        for start in range(0, test.generate, TOKENS_PER_READ):
            started = time.perf_counter()
            for _ in range(min(TOKENS_PER_READ, test.generate - start)):
                position = self.session.position
                self.session.eval(self.ids[position : position + 1])
            seconds += time.perf_counter() - started
            bandwidths.append(self._read(test))
        return Sample(test.generate / seconds, bandwidths=tuple(bandwidths))

    def _read(self, test: Test) -> float:
        """The bandwidth of a read of the bytes that a token of the test reads, where they lie."""
        weights = self.weights[: self.costs.weight_bytes]
        cache_bytes = self.costs.decode_bytes(test.depth + test.generate / 2, self.cache) - self.costs.weight_bytes
        cache = self.session._memory[: int(cache_bytes)]  # the pages of the layers, one after another
        parts = [part for part in (weights, cache) if part.nbytes >= 1 << 20]
        return sum(p.nbytes for p in parts) / sum(p.nbytes / self.roofline.read(p, self.threads) for p in parts)

"""llama.cpp inside this process, by llama-cpp-python."""

from __future__ import annotations

import importlib.util
import time
from typing import Any

from ..tests import Test
from .base import Adapter, CannotRun, Job, Sample, timed


class LlamaCppPython(Adapter):
    name = "llama-cpp-python"

    @staticmethod
    def missing(job: Job) -> str:
        if job.path.suffix != ".gguf":
            return "it reads GGUF files only"
        return "" if importlib.util.find_spec("llama_cpp") else "not installed: pip install llama-cpp-python"

    def __init__(self, job: Job) -> None:
        import llama_cpp

        self.artifact_bytes, self.version = job.path.stat().st_size, llama_cpp.__version__
        started = time.perf_counter()
        try:
            self.model = llama_cpp.Llama(str(job.path), n_ctx=job.positions, n_threads=job.threads, n_batch=512,
                                         n_threads_batch=job.threads, flash_attn=True, verbose=False)  # fmt: skip
        except ValueError as error:
            raise CannotRun(str(error).splitlines()[0]) from error
        self.load_seconds = time.perf_counter() - started
        self._evaluate(1)
        self.first_token_seconds = time.perf_counter() - started

    def facts(self) -> dict[str, Any]:
        return {"version": self.version}

    def _evaluate(self, count: int) -> None:
        start, size = self.model.n_tokens, self.model.n_vocab()
        self.model.eval([i * 7919 % size for i in range(start, start + count)])

    def run(self, test: Test) -> Sample:
        if test.batch > 1:
            raise CannotRun("several sequences at once are not measured with it")
        for _ in range(1 if test.depth else 2):
            self.model.reset()
            if test.depth:
                self._evaluate(test.depth)
            steps = [test.prompt] if test.prompt else [1] * test.generate
            sample = timed(lambda steps=steps: [self._evaluate(n) for n in steps])  # type: ignore[misc]
        return sample

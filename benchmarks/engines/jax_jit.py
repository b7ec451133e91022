"""Plain `jax.jit`: of a GGUF model the reference in f32, of a function in a file the function itself."""

from __future__ import annotations

import os
import time
from typing import Any

from ..tests import Test
from .base import Adapter, CannotRun, Job, Sample, inputs, repeated, timed


class JaxJit(Adapter):
    name = "jax"
    kinds = ("language", "function")

    @staticmethod
    def missing(job: Job) -> str:
        known = job.path.suffix == ".gguf" or ".py:" in job.path.name
        return "" if known else "it runs GGUF models and functions in FILE.py:NAME"

    def __init__(self, job: Job) -> None:
        # XLA has as many threads as there are processors that it may use.
        allowed = sorted(os.sched_getaffinity(0))[: job.threads]
        os.sched_setaffinity(0, allowed)
        import jax

        self.jax, self.job = jax, job
        started = time.perf_counter()
        if job.kind == "language":
            self._open_language(job)
        else:
            self._open_function(job)
        self.load_seconds = time.perf_counter() - started
        if job.kind == "function":
            self.call()
            self.first_token_seconds = time.perf_counter() - started

    def _open_function(self, job: Job) -> None:
        from ...compiler.frontends.jax_function import load

        made = load(job.path)
        flat = [self.jax.device_put(x) for x in inputs(job.signature)]
        leaves, tree = self.jax.tree.flatten(made.examples)
        arguments = tree.unflatten(flat) if len(flat) == len(leaves) else flat
        given = arguments if made.weights is None else (self.jax.device_put(made.weights), *arguments)
        function = self.jax.jit(made.fn)
        self.call = lambda: self.jax.block_until_ready(function(*given))

    def _open_language(self, job: Job) -> None:
        from ...compiler.frontends import gguf

        self.source = gguf.load(job.path)
        self.weights: Any = None
        self.functions: dict[int, Any] = {}  # of prompts, by their length
        self.steps: dict[int, Any] = {}  # of tokens, by the positions that caches have

    def facts(self) -> dict[str, Any]:
        return {"version": self.jax.__version__}

    def run(self, test: Test) -> Sample:
        if self.job.kind == "function":
            return repeated(self.call)
        if test.batch > 1:
            raise CannotRun("the reference has one sequence")
        if test.generate:
            return self._generate(test)
        if test.depth:
            raise CannotRun("the reference reads prompts from an empty cache only")
        import numpy as np

        from ...compiler.frontends import language
        from ...compiler.verification.reference import EXACT, with_rules

        if test.prompt not in self.functions:
            function, weights = language.reference(self.source, test.prompt)
            if self.weights is None:
                self.weights = self.jax.device_put(weights)
            self.functions[test.prompt] = with_rules(function, EXACT)
        function = self.functions[test.prompt]
        ids = np.arange(test.prompt, dtype=np.int32) * 7919 % self.source.config.vocabulary
        last = np.array([test.prompt - 1], np.int32)

        def call() -> None:
            self.jax.block_until_ready(function(self.weights, ids.astype(np.int32), last))

        call()
        return timed(call)

    def _generate(self, test: Test) -> Sample:
        """Tokens one after another, the caches donated."""
        from ...compiler.frontends import language

        jax, jnp = self.jax, self.jax.numpy
        step, empty = language.reference_step(self.source, test.depth + test.generate)
        if self.weights is None:
            made = {name: language.dequantized(weight) for name, weight in self.source.weights.items()}
            self.weights = jax.device_put(made)
        context = test.depth + test.generate
        if context not in self.steps:
            self.steps[context] = jax.jit(step, donate_argnums=4)
        jitted, zero = self.steps[context], jnp.zeros(1, jnp.int32)
        state: Any = empty()
        if test.depth:
            ids = jnp.arange(test.depth, dtype=jnp.int32) % self.source.config.vocabulary
            _, state = jitted(self.weights, ids, jnp.arange(test.depth, dtype=jnp.int32), zero, state)
        _, again = jitted(self.weights, zero, zero + test.depth, zero, jax.tree.map(jnp.copy, state))  # compiles
        jax.block_until_ready((state, again))

        def call() -> None:
            held: Any = state
            for i in range(test.generate):
                logits, held = jitted(self.weights, zero + 1, zero + test.depth + i, zero, held)
                jax.block_until_ready(logits)

        return timed(call)

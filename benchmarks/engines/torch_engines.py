"""PyTorch: GGUF files by transformers, whose weights become f32, and programs of torch.export, eager or compiled."""

from __future__ import annotations

import importlib.util
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

from ..tests import Test
from .base import Adapter, CannotRun, Job, Sample, inputs, repeated, timed


class TorchEager(Adapter):
    name: ClassVar[str] = "torch"
    kinds = ("language", "function")

    @staticmethod
    def missing(job: Job) -> str:
        language = job.kind == "language"
        wanted = ".gguf" if language else ".pt2"
        packages = ("torch", "transformers", "accelerate") if language else ("torch",)
        if job.path.suffix != wanted:
            return f"it reads {wanted} files here, and this is {job.path.suffix or 'a folder'}"
        absent = [p for p in packages if not importlib.util.find_spec(p)]
        return f"not installed: pip install {' '.join(absent)}" if absent else ""

    def __init__(self, job: Job) -> None:
        import torch

        torch.set_num_threads(job.threads)
        torch.manual_seed(0)
        self.torch, self.job = torch, job
        self.artifact_bytes = job.path.stat().st_size
        started = time.perf_counter()
        if job.kind == "language":
            self._open_language(job)
        else:
            example = [torch.from_numpy(x) for x in inputs(job.signature)]
            self.model = self._made(torch.export.load(str(job.path)), example)
        self.load_seconds = time.perf_counter() - started
        with torch.inference_mode():
            self._step(1) if job.kind == "language" else self.model(*self.example)
        self.first_token_seconds = time.perf_counter() - started

    def _open_language(self, job: Job) -> None:
        from transformers import AutoModelForCausalLM

        try:
            self.model = AutoModelForCausalLM.from_pretrained(
                str(job.path.parent), gguf_file=job.path.name, dtype=self.torch.float32
            )
        except (ValueError, KeyError, NotImplementedError, OSError, ImportError) as error:
            raise CannotRun(f"transformers cannot read it: {str(error).splitlines()[0]}") from error
        self.model.eval()
        self._forget()

    def _made(self, program: Any, example: list[Any]) -> Any:
        """What is called, of an exported program."""
        self.example = example
        return program.module()

    def facts(self) -> dict[str, Any]:
        return {"version": self.torch.__version__}

    def _forget(self) -> None:
        self.past, self.position = None, 0

    def _step(self, count: int) -> None:
        """Evaluates `count` tokens after those in the cache."""
        ids = (self.torch.arange(self.position, self.position + count) * 7919 % self.model.config.vocab_size)[None]
        with self.torch.inference_mode():
            done = self.model(ids, past_key_values=self.past, use_cache=True, logits_to_keep=1)
        self.past, self.position = done.past_key_values, self.position + count

    def run(self, test: Test) -> Sample:
        if self.job.kind == "function":
            with self.torch.inference_mode():
                return repeated(lambda: self.model(*self.example))
        if test.batch > 1:
            raise CannotRun("several sequences at once are not measured with it")
        for _ in range(1 if test.depth else 2):
            self._forget()
            if test.depth:
                self._step(test.depth)
            elif test.generate:
                self._step(1)
            steps = [test.prompt] if test.prompt else [1] * test.generate
            sample = timed(lambda steps=steps: [self._step(n) for n in steps])  # type: ignore[misc]
        return sample


class TorchCompile(TorchEager):
    name = "torch.compile"
    kinds = ("function",)

    def _made(self, program: Any, example: list[Any]) -> Any:
        self.example = example
        compiled = self.torch.compile(program.module())
        with self.torch.inference_mode():
            compiled(*example)
        return compiled


class AOTInductor(TorchEager):
    name = "aotinductor"
    kinds = ("function",)

    def _made(self, program: Any, example: list[Any]) -> Any:
        from torch._inductor import aoti_compile_and_package, aoti_load_package

        self.example = example
        self._folder = tempfile.TemporaryDirectory(prefix="inferc-aoti-")
        package = aoti_compile_and_package(program, package_path=str(Path(self._folder.name) / "model.pt2"))
        self.artifact_bytes = Path(package).stat().st_size
        return aoti_load_package(package)

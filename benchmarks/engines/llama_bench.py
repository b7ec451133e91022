"""llama.cpp and its fork ik_llama.cpp: runs of their `llama-bench`, in its own words."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ..tests import Test
from .base import Adapter, CannotRun, Job, Sample

PINNED = {"OMP_PROC_BIND": "true", "OMP_PLACES": "cores"}


@dataclass(frozen=True)
class Dialect:
    """How one engine's `llama-bench` is asked for its best: flags, no warm-up, and tests at a depth, empty where it has
    no such test."""

    flags: str
    no_warmup: str
    prompt_at: str
    generation_at: str


class LlamaBench(Adapter):
    """A `llama-bench`, named with --peer or on PATH. Each test is a process; it is run twice in it and the first run
    dropped, but for those at a depth, which their prompt warms."""

    dialect: ClassVar[Dialect]
    hint: ClassVar[str]

    @classmethod
    def found(cls, job: Job) -> str:
        return job.program or shutil.which("llama-bench") or ""

    @classmethod
    def missing(cls, job: Job) -> str:  # type: ignore[override]
        if job.path.suffix != ".gguf":
            return "it reads GGUF files only"
        found = cls.found(job)
        if found and shutil.which(found):
            return ""
        return f"there is no program {found}" if found else cls.hint

    def __init__(self, job: Job) -> None:
        self.job, self.program = job, self.found(job)
        self.flags = job.flags or tuple(self.dialect.flags.split())
        self.artifact_bytes = job.path.stat().st_size
        self._facts: dict[str, Any] = {}
        self._commands: dict[str, str] = {}

    def facts(self) -> dict[str, Any]:
        return {"flags": " ".join(self.flags), **self._facts, "commands": self._commands}

    def run(self, test: Test) -> Sample:
        if test.batch > 1:
            raise CannotRun("llama-bench has no test of several sequences")
        if not test.depth:
            asked = f"-p {test.prompt} -n {test.generate} -r 2 {self.dialect.no_warmup}"
        else:
            form = self.dialect.prompt_at if test.prompt else self.dialect.generation_at
            if not form:
                raise CannotRun("its llama-bench has no test of a prompt at a depth")
            asked = form.format(prompt=test.prompt, generate=test.generate, depth=test.depth) + " -r 1"
        rows, peak = self._asked(asked)
        words = [Path(self.program).name, *"-m MODEL -t N -o json".split(), *self.flags, *asked.split()]
        settings = " ".join(f"{name}={value}" for name, value in PINNED.items())
        self._commands[test.name] = f"{settings} {shlex.join(words)}"
        seconds = test.tokens / rows[-1]["samples_ts"][-1]
        return Sample(seconds, peak_memory_bytes=peak)

    def _asked(self, asked: str) -> tuple[list[dict[str, Any]], int]:
        """The rows that it prints, and the largest resident size of its process."""
        command = [self.program, "-m", str(self.job.path), "-t", str(self.job.threads), "-o", "json", *self.flags,
                   *asked.split()]  # fmt: skip
        environment = {**os.environ, **PINNED}
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
            out, err = (stream.decode("utf-8", "replace") for stream in process.communicate())
        peak = _children_peak()
        if process.returncode or "[" not in out:
            last = (err.strip() or f"exit code {process.returncode}").splitlines()[-1]
            raise CannotRun(f"{shlex.join([Path(command[0]).name, *command[1:]])} failed: {last}")
        rows = json.loads(out[out.index("[") :])
        if "build_commit" in rows[-1]:
            self._facts["build_commit"] = str(rows[-1]["build_commit"])
        return rows, peak


def _children_peak() -> int:
    """The largest resident size of any process that this one has waited for; workers are small themselves."""
    import resource

    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


class LlamaCpp(LlamaBench):
    name = "llama.cpp"
    dialect = Dialect("-fa 1", "--no-warmup", "-p {prompt} -n 0 -d {depth}", "-p 0 -n {generate} -d {depth}")
    hint = ("there is no llama-bench on PATH: name one with --peer llama.cpp=PATH. Its source is in the source "
            "distribution of llama-cpp-python (docs/bench.md says how to build it)")  # fmt: skip


class IkLlamaCpp(LlamaBench):
    name = "ik_llama.cpp"
    # Without -d it generates after a prompt, timing the generation alone.
    dialect = Dialect("-rtr 1 -fa 1", "-w 0", "", "-p 0 -n 0 -gp {depth},{generate}")
    hint = "name its llama-bench with --peer ik_llama.cpp=PATH"

    @classmethod
    def found(cls, job: Job) -> str:
        return job.program

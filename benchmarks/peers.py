"""Other engines: one run of their `llama-bench`, in its own words."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PINNED = {"OMP_PROC_BIND": "true", "OMP_PLACES": "cores"}


@dataclass(frozen=True)
class Dialect:
    """How one engine's `llama-bench` is asked for its best: flags, no warm-up, and generation at a depth."""

    flags: str
    no_warmup: str
    depth: str


DIALECTS = {
    "llama.cpp": Dialect("-fa 1", "--no-warmup", "-p 0 -n {generate} -d {depth}"),
    # Without -d it generates after a prompt, timing the generation alone.
    "ik_llama.cpp": Dialect("-rtr 1 -fa 1", "-w 0", "-p 0 -n 0 -gp {depth},{generate}"),
}

HOW_TO_GET = (
    "no llama-bench to compare with: name one with --peer llama.cpp=PATH, put it on PATH, or measure without with "
    "--no-peers. Its source is in the source distribution of llama-cpp-python (docs/benchmarks.md says how to build it)"
)


@dataclass(frozen=True)
class Test:
    """`prompt` tokens at once, or `generate` one after another, once `depth` positions are in the cache."""

    prompt: int = 0
    generate: int = 0
    depth: int = 0

    @property
    def name(self) -> str:
        what = f"pp{self.prompt}" if self.prompt else f"tg{self.generate}"
        return f"{what}@{self.depth}" if self.depth else what

    @staticmethod
    def parse(text: str) -> Test:
        """The inverse of `name`. Raises ValueError for any other text."""
        what, _, depth = text.partition("@")
        kinds = {"pp": "prompt", "tg": "generate"}
        if what[:2] not in kinds or not what[2:].isdigit() or (depth and not depth.isdigit()):
            raise ValueError(f"{text!r} is no test: say pp512, tg64 or tg64@4096")
        return Test(**{kinds[what[:2]]: int(what[2:])}, depth=int(depth or 0))


@dataclass(frozen=True)
class Peer:
    """A `llama-bench` by its path, its way of being asked, and the flags that it is always given."""

    name: str
    path: Path
    dialect: Dialect
    flags: tuple[str, ...]
    commits: set[str] = field(default_factory=set, compare=False)  # that its results say they were built from

    @staticmethod
    def parse(text: str) -> Peer:
        """NAME=PATH, or NAME=PATH FLAGS; a name that is no row of DIALECTS is asked like llama.cpp. Raises ValueError
        where there is no such program."""
        name, _, rest = text.partition("=")
        path, *flags = shlex.split(rest) or [""]
        if not os.access(path, os.X_OK) or os.path.isdir(path):
            raise ValueError(f"--peer {text}: {path or 'no path'} is no program; say NAME=PATH of a llama-bench")
        dialect = DIALECTS.get(name, DIALECTS["llama.cpp"])
        return Peer(name, Path(path).resolve(), dialect, tuple(flags or dialect.flags.split()))

    def measure(self, model: Path, tests: Sequence[Test], threads: int) -> Iterator[tuple[Test, float]]:
        """Tokens per second of each test, in a process of its own for those without depth and for each with one.

        Tests without depth are run twice and the first is dropped, so that pages and caches are warm; one at a depth is
        warm by its prompt. Raises RuntimeError where the program fails.
        """
        plain = [test for test in tests if not test.depth]
        if plain:
            prompts = ",".join(str(t.prompt) for t in plain if t.prompt) or "0"
            generated = ",".join(str(t.generate) for t in plain if t.generate) or "0"
            asked = f"-p {prompts} -n {generated} -r 2 {self.dialect.no_warmup}"
            for row in self._run(model, threads, asked):
                yield Test(row["n_prompt"], row["n_gen"]), row["samples_ts"][-1]
        for test in tests:
            if test.depth:
                asked = self.dialect.depth.format(generate=test.generate, depth=test.depth) + " -r 1"
                yield test, self._run(model, threads, asked)[-1]["samples_ts"][-1]

    def _run(self, model: Path, threads: int, asked: str) -> list[dict[str, Any]]:
        command = [str(self.path), "-m", str(model), "-t", str(threads), "-o", "json", *self.flags, *asked.split()]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **PINNED})
        if done.returncode or "[" not in done.stdout:
            last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
            raise RuntimeError(f"{self.name}: {shlex.join(command)} failed: {last}")
        rows = json.loads(done.stdout[done.stdout.index("[") :])
        self.commits.update(str(row["build_commit"]) for row in rows)
        return rows


def found(named: Sequence[str]) -> list[Peer]:
    """The peers that were named, else llama.cpp's `llama-bench` on PATH. Raises ValueError where there is none."""
    if named:
        return [Peer.parse(text) for text in named]
    if path := shutil.which("llama-bench"):
        return [Peer.parse(f"llama.cpp={path}")]
    raise ValueError(HOW_TO_GET)

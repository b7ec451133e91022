"""What an adapter is: an engine that opens one model and runs tests on it, in a process of its own."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ..tests import Test


class CannotRun(Exception):
    """Why an engine cannot run a model or a test, in a line."""


@dataclass(frozen=True)
class Job:
    """What a worker is asked to open. `path` is the model as the user gave it, `kind` "language" or "function",
    `artifacts` our compiled forms by backend, `threads` how many may compute, `program` and `flags` those of an engine
    that is a program, `positions` the most that any test needs, `costs` a language model's `Costs` as data."""

    model: str
    path: Path
    kind: str
    threads: int
    positions: int
    artifacts: Mapping[str, Path] = field(default_factory=dict)
    program: str = ""
    flags: tuple[str, ...] = ()
    signature: Mapping[str, Any] = field(default_factory=dict)
    costs: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Sample:
    """One run: its seconds and, measured beside it, read bandwidths of the same bytes by as many threads (bytes per
    second), peaks (multiply-adds per second, by name), joules, and the peak memory of an engine that is a process of
    its own."""

    seconds: float
    bandwidths: tuple[float, ...] = ()
    peaks: tuple[Mapping[str, float], ...] = ()
    joules: float | None = None
    peak_memory_bytes: int = 0


class Adapter(ABC):
    """An engine with a model open. `load_seconds` is what opening took, `first_token_seconds` that with the first token
    evaluated, or a function called once; None where the engine does not tell."""

    name: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]] = ("language",)
    load_seconds: float | None = None
    first_token_seconds: float | None = None
    artifact_bytes: int | None = None

    @staticmethod
    def missing(job: Job) -> str:
        """Why it cannot be here, with the remedy; empty where it can. Asked before anything is opened."""
        return ""

    @abstractmethod
    def __init__(self, job: Job) -> None:
        """Opens the model. Raises CannotRun."""

    @abstractmethod
    def run(self, test: Test) -> Sample:
        """Runs a test once, warm. Raises CannotRun."""

    def facts(self) -> dict[str, Any]:
        """Version, commit, flags: whatever a reader needs to repeat it."""
        return {}


def energy() -> float | None:
    """Joules that the packages have taken since some time, by RAPL; None where the machine does not tell."""
    total = 0.0
    for zone in Path("/sys/class/powercap").glob("intel-rapl:[0-9]*"):
        if zone.name.count(":") == 1:
            try:
                total += int((zone / "energy_uj").read_text()) / 1e6
            except OSError:
                return None
    return total or None


def timed(work: Callable[[], object]) -> Sample:
    """How long work takes, and its joules."""
    joules = energy()
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    after = energy()
    spent = after - joules if joules is not None and after is not None and after >= joules else None
    return Sample(seconds, joules=spent)


def peak_memory() -> int:
    """The largest resident size of this process so far, in bytes; 0 where the system does not tell. Not getrusage's,
    which a process inherits from the one that started it."""
    return _status("VmHWM")


def resident() -> int:
    """The resident size of this process now, in bytes."""
    return _status("VmRSS")


def _status(key: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key)), 0)


def inputs(signature: Mapping[str, Any]) -> list[Any]:
    """Arrays for a function, as `inferc verify` takes them."""
    from ...compiler.verification.inputs import inputs as made

    return made(signature)


CALL_SECONDS = 0.2  # how long the calls of one sample of a function take together, about


def repeated(call: Callable[[], object]) -> Sample:
    """The mean time of one call: as many as fill `CALL_SECONDS`, after one to warm up."""
    first = timed(call).seconds
    count = max(1, min(10000, int(CALL_SECONDS / max(first, 1e-7))))

    def calls() -> None:
        for _ in range(count):
            call()

    sample = timed(calls)
    return Sample(sample.seconds / count, joules=None if sample.joules is None else sample.joules / count)

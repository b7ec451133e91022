"""A process with one engine and one model open, which runs tests as it is told: JSON lines in, JSON lines out."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .engines import adapter
from .engines.base import CannotRun, Job, peak_memory, resident
from .tests import Test


def job_of(data: dict[str, Any]) -> Job:
    """A job from its JSON."""
    paths = {name: Path(path) for name, path in data.pop("artifacts").items()}
    return Job(**data | {"path": Path(data["path"]), "artifacts": paths, "flags": tuple(data["flags"])})


def main() -> None:
    """The first line is the adapter's name and the job, each other a test; answers have "error" where it failed."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what engines print is no answer

    def answer(**data: Any) -> None:
        print(json.dumps(data), file=out, flush=True)

    first = json.loads(sys.stdin.readline())
    chosen, job = adapter(first["adapter"]), job_of(first["job"])
    if reason := chosen.missing(job):
        return answer(error=reason)
    before = resident()
    try:
        engine = chosen(job)
    except CannotRun as error:
        return answer(error=str(error))
    answer(load_seconds=engine.load_seconds, first_token_seconds=engine.first_token_seconds,
           artifact_bytes=engine.artifact_bytes)  # fmt: skip
    for line in sys.stdin:
        try:
            sample = engine.run(Test(**json.loads(line)))
        except CannotRun as error:
            answer(error=str(error))
            continue
        found = asdict(sample)
        found["peak_memory_bytes"] = sample.peak_memory_bytes or peak_memory() - before
        answer(**found, facts=engine.facts())


if __name__ == "__main__":
    main()

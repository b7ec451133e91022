"""Speed of compiled models beside other engines, interleaved in one run, and beside the hardware's limits.

    python benchmarks/models.py MODEL.gguf[=TEST,...]... --peer llama.cpp=PATH --peer ik_llama.cpp=PATH

TEST is pp512 (a prompt of 512 tokens), tg64 (64 tokens, one after another, from an empty cache) or tg64@4096 (once
4096 positions are filled). In each round every engine runs every test once; figures are medians over the rounds, with
the least and the most. docs/benchmarks.md says what the limits are. Results go to --out as PREFIX.json, .md and .svg.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inferc.benchmarks import start
from inferc.benchmarks.costs import AMX_OF, Costs, costs
from inferc.benchmarks.machine import described, manifest
from inferc.benchmarks.ours import Compiled, Sample
from inferc.benchmarks.peers import Peer, Test, found
from inferc.benchmarks.report import plot, table
from inferc.benchmarks.roofline import Roofline

OURS = "inferc"
DEFAULT_TESTS = "pp512,tg64,tg64@4096"


@dataclass
class Seen:
    """What one engine's runs of one test gave."""

    speeds: list[float] = field(default_factory=list)
    bandwidths: list[float] = field(default_factory=list)
    peaks: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, sample: Sample) -> None:
        self.speeds.append(sample.tokens_per_second)
        self.bandwidths += sample.bandwidths
        for peaks in sample.peaks:
            for name, value in peaks.items():
                self.peaks[name].append(value)


Results = dict[tuple[int, Test, str], Seen]  # by threads, test and engine


def measure(model: Path, tests: Sequence[Test], artifact: Path, peers: Sequence[Peer], of: Costs, roofline: Roofline,
            arguments: argparse.Namespace) -> Results:  # fmt: skip
    """Runs all rounds of one model: in each, for each number of threads, ours and then every peer."""
    results: Results = defaultdict(Seen)
    opened = {threads: Compiled(artifact, threads, of, roofline) for threads in arguments.threads}
    for round in range(arguments.rounds):
        wanted = [test for test in tests if not test.depth or round < arguments.depth_rounds]
        for threads, ours in opened.items():
            for test, sample in ours.measure(wanted):
                results[threads, test, OURS].add(sample)
            for peer in peers:
                for test, speed in peer.measure(model, wanted, threads):
                    results[threads, test, peer.name].add(Sample(speed))
        print(f"{model.stem}: round {round + 1} of {arguments.rounds}", file=sys.stderr)
    for ours in opened.values():
        ours.close()
    return results


def rows_of(name: str, results: Results, of: Costs) -> Iterator[dict[str, Any]]:
    """JSON rows: one for each engine, test and number of threads."""
    for (threads, test, backend), seen in results.items():
        speed = statistics.median(seen.speeds)
        row: dict[str, Any] = {
            "model": name, "backend": backend, "test": test.name, "n_prompt": test.prompt, "n_gen": test.generate,
            "n_depth": test.depth, "threads": threads, "tokens_per_second": speed, "min": min(seen.speeds),
            "max": max(seen.speeds), "samples": seen.speeds,
        }  # fmt: skip
        beside = results[threads, test, OURS]  # the limits were measured around our own runs
        yield row | (_prompt_limit if test.prompt else _decode_limit)(test, of, beside, speed)


def _prompt_limit(test: Test, of: Costs, beside: Seen, speed: float) -> dict[str, Any]:
    work = of.work(test.prompt, 1)
    peaks = {name: statistics.median(values) for name, values in beside.peaks.items()}
    if not work.keys() <= peaks.keys():
        return {}
    row: dict[str, Any] = {"macs_per_token": sum(work.values()) / test.prompt, "peaks": peaks}
    row["limit"] = test.prompt / sum(macs / peaks[name] for name, macs in work.items())
    row["fraction"] = speed / row["limit"]
    if all(AMX_OF.get(name) in peaks for name in work):
        row["amx_fraction"] = speed * sum(macs / peaks[AMX_OF[n]] for n, macs in work.items()) / test.prompt
    return row


def _decode_limit(test: Test, of: Costs, beside: Seen, speed: float) -> dict[str, Any]:
    size, bandwidth = of.decode_bytes(test.depth + test.generate / 2), statistics.median(beside.bandwidths)
    return {"bytes_per_token": size, "bandwidth": bandwidth, "limit": bandwidth / size,
            "fraction": speed * size / bandwidth, "macs_per_token": sum(of.work(1, 1).values())}  # fmt: skip


def parsed(argument: str) -> tuple[Path, list[Test]]:
    path, _, tests = argument.partition("=")
    return Path(path), [Test.parse(text) for text in (tests or DEFAULT_TESTS).split(",")]


def arguments_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="MODEL.gguf[=TEST,...]", type=parsed)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PATH", help="a llama-bench, and flags")
    parser.add_argument("--no-peers", action="store_true", help="measure ours alone")
    parser.add_argument("--skip", action="append", default=[], metavar="NAME:MODEL",
                        help="a peer, and a part of a model's name that it computes wrongly")  # fmt: skip
    parser.add_argument("--threads", type=int, nargs="+", default=[2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--depth-rounds", type=int, default=2, help="rounds of the tests at a depth, which take long")
    parser.add_argument("--starts", type=int, default=5, help="runs of each start that is timed")
    parser.add_argument("--out", type=Path, help="prefix of the files to write")
    return parser.parse_args()


def main() -> None:
    arguments = arguments_of()
    try:
        peers = [] if arguments.no_peers else found(arguments.peer)
    except ValueError as error:
        sys.exit(str(error))
    began = time.monotonic()
    roofline = Roofline()
    about = manifest(roofline, arguments.threads)
    rows: list[dict[str, Any]] = []
    starts: dict[str, Mapping[str, Any]] = {}
    skipped: list[str] = []
    with tempfile.TemporaryDirectory(prefix="inferc-bench-") as folder:
        for model, tests in arguments.models:
            artifact, of = Path(folder) / f"{model.stem}.inferc", costs(model)
            starts[model.stem] = start.measure(model, artifact, max(arguments.threads), arguments.starts)
            left_out = [p for p in peers if any(_skips(skip, p, model) for skip in arguments.skip)]
            skipped += [f"{peer.name} was not run on {model.stem} (--skip)." for peer in left_out]
            running = [peer for peer in peers if peer not in left_out]
            results = measure(model, tests, artifact, running, of, roofline, arguments)
            rows += rows_of(model.stem, results, of)
            artifact.unlink()
    about["peers"] = {p.name: {"commit": " ".join(sorted(p.commits)), "flags": " ".join(p.flags)} for p in peers}
    about["minutes"] = round((time.monotonic() - began) / 60, 1)
    text = "\n\n".join(["# Speed", described(about), table(rows, OURS), *skipped, "## Compile time and starts",
                        start.table(starts)])  # fmt: skip
    print(text)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write = {"machine": about, "rows": rows, "starts": starts, "skipped": skipped}
        Path(f"{arguments.out}.json").write_text(json.dumps(write, indent=1) + "\n")
        Path(f"{arguments.out}.md").write_text(text + "\n")
        plot(rows, about, Path(f"{arguments.out}.svg"))


def _skips(skip: str, peer: Peer, model: Path) -> bool:
    name, _, part = skip.partition(":")
    return name == peer.name and part in model.stem


if __name__ == "__main__":
    main()

"""One process of a mesh: python tests/xla_worker.py ARTIFACT OUTPUT.npz VARIANT [COORDINATOR PROCESSES ID]

On its CPUs it takes the programs that the platform VARIANT would. Evaluates the same ids in a session of each of its
replicas, whole and token by token, and writes what came out.
"""

from __future__ import annotations

import re
import sys

import jax
import numpy as np

IDS = np.random.default_rng(7).integers(3, 300, 12).tolist()
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")


def main(artifact: str, output: str, variant: str, coordinator: str = "", processes: str = "1", own: str = "0") -> None:
    if coordinator:
        jax.distributed.initialize(coordinator, int(processes), int(own))
    from inferc.runtime.artifact import Artifact
    from inferc.runtime.xla_engine import Engine

    engine = Engine(Artifact(artifact))
    for program in engine.artifact.manifest["programs"]:
        program["variants"] = {"cpu": program.get("variants", {}).get(variant)}
    sessions = [engine.session() for _ in engine.replicas]
    whole = [s.eval(IDS[:8], 8) for s in sessions]
    single = [np.concatenate([s.eval([i]) for i in IDS[8:]]) for s in sessions]
    made = [s.greedy(5, 4, []) for s in sessions]
    text = engine.replicas[0].compiled("one-T1-R1").as_text()
    counts = [len(re.findall(rf" {name}(?:-start)?\(", text)) for name in COLLECTIVES]
    np.savez(output, whole=whole, single=single, made=made, collectives=counts, devices=len(jax.devices()))


if __name__ == "__main__":
    main(*sys.argv[1:])

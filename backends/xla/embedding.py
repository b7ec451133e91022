"""`--emit pjrt`: the programs, their weights, and a host in C that runs them on any PJRT plugin."""

from __future__ import annotations

import shutil
from pathlib import Path

from ...errors import InfercError
from . import greedy
from .portable import serialize
from .program import Program, Spec

HOST = Path(__file__).resolve().parent / "host"
TYPES = {"i8": "PJRT_S8", "i32": "PJRT_S32", "ui8": "PJRT_U8", "f16": "PJRT_F16", "f32": "PJRT_F32",
         "bf16": "PJRT_BF16"}  # fmt: skip
MAKEFILE = """# make, then ./model PLUGIN.so COUNT ID [ID ...]
CFLAGS ?= -O2 -Wall -Wextra
model: host.c pjrt.h model.h
\t$(CC) -std=c11 -D_DEFAULT_SOURCE $(CFLAGS) -o $@ host.c -ldl
"""


def write(program: Program, weights: Path, folder: Path) -> None:
    """Writes host.c, pjrt.h, model.h, Makefile, programs/ and weights into a folder.

    Raises InfercError for a program that is no language model of one slot, or that devices share.
    """
    if program.devices > 1:
        raise InfercError("--emit pjrt is for one device: compile without --mesh")
    steps = [s for s in program.specs if s.kind == "step" and s.dims["R"] == 1]
    loops = [s for s in program.specs if s.kind == "greedy"]
    if not loops:
        raise InfercError("--emit pjrt is for language models of one slot: compile without --slots")
    prefill = max((s for s in steps if s.dims["T"] <= 64), key=lambda s: (s.dims["T"], s.facts.span))
    chosen: dict[str, Spec] = {"prefill": prefill, "greedy": loops[-1]}
    (folder / "programs").mkdir()
    for name, spec in chosen.items():
        (folder / "programs" / f"{name}.vhlo").write_bytes(serialize(program.text(spec)))
    for name in ("host.c", "pjrt.h"):
        shutil.copyfile(HOST / name, folder / name)
    (folder / "model.h").write_text(header(program, prefill.dims["T"]), encoding="utf-8")
    (folder / "Makefile").write_text(MAKEFILE, encoding="utf-8")
    shutil.copyfile(weights, folder / "weights")


def header(program: Program, tokens: int) -> str:
    """model.h: sizes, and every weight and cache in the order in which programs take them."""
    rows = []
    for i in program.inputs:
        offsets = i.offsets or (-1,) * len(i.parts)
        for part, offset in zip(i.parts, offsets):
            dims = ", ".join(map(str, part.shape)) or "0"
            name = f"{i.name}.{part.name}" if part.name else i.name
            place = f"{{{dims}}}, {offset}, {part.bytes}"
            rows.append(f"  {{{TYPES[part.element]}, {len(part.shape)}, {place}}}, /* {name} */")
    caches = sum(len(i.parts) for i in program.states)
    vocabulary = program.graph.outputs[0].type.shape[1]
    lines = [
        f"/* {program.name}: what its programs take. */",
        f"enum {{ TOKENS = {tokens}, MOST = {greedy.MOST}, ENDS = {greedy.ENDS}, CONTEXT = {program.context}, "
        f"VOCABULARY = {vocabulary}, TENSORS = {len(rows)}, CACHES = {caches} }};",
        f"#define WEIGHT_BYTES INT64_C({program.weight_bytes})",
        "static const int32_t ends[ENDS] = {" + ", ".join(["-1"] * greedy.ENDS) + "}; /* ids that end a text */",
        "static const tensor tensors[TENSORS] = {",
        *rows,
        "};",
    ]
    return "\n".join(lines) + "\n"

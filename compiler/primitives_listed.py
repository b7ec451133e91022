"""The page of what is supported, from the tables: `python -m inferc.compiler.primitives_listed docs/jax.md`."""

from __future__ import annotations

import sys
from pathlib import Path

from .primitives import PRIMITIVES
from .primitives_complex import BY_JAX as COMPLEX_BY_JAX
from .primitives_complex import BY_PARTS, CONTROL, FORMULAS, OTHERS
from .primitives_random import MOVES_KEYS
from .primitives_refused import GROUPS
from .primitives_special import BY_JAX
from .tracing import INLINED

BEGIN, END = "<!-- generated: primitives -->\n", "<!-- end -->"


def listed() -> str:
    """Markdown: every primitive by how it is compiled, and those that are not with the way out."""
    own = set(PRIMITIVES) - set(BY_JAX)
    rows = [
        ("An op, or a few", own),
        ("By other JAX operations", set(BY_JAX)),
        ("Looked into", set(INLINED)),
        ("Of complex numbers too", {*FORMULAS, *BY_PARTS, *OTHERS, *COMPLEX_BY_JAX, *CONTROL}),
        ("Of typed random keys", {*MOVES_KEYS, "select_n", "dynamic_slice", "scan", "while", "cond"}),
    ]
    lines = ["| compiled | primitives |", "|---|---|"]
    lines += [f"| {what} | {', '.join(f'`{n}`' for n in sorted(names))} |" for what, names in rows]
    lines += ["", "| not compiled | what to do |", "|---|---|"]
    lines += [f"| {', '.join(f'`{n}`' for n in sorted(names.split()))} | {why} |" for why, names in GROUPS]
    return "\n".join(lines) + "\n"


def main(path: Path) -> None:
    text = path.read_text("utf-8")
    before, _, rest = text.partition(BEGIN)
    path.write_text(f"{before}{BEGIN}{listed()}{END}{rest.partition(END)[2]}", "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

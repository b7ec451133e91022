"""The passes between tracing and a backend: a list to read, an order that is checked, a dump of every stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..ir.graph import IRError, Module
from ..ir.target import Target
from ..ir.text import print_module
from ..ir.verify import verify
from .passes import canonical, decompose, fold, fuse, group, layout, products, quantize, recognise


@dataclass(frozen=True)
class Pass:
    """A step from valid IR to valid IR. `after` names passes that must come earlier wherever both are in the list.

    Only a pass marked `lossy` may change what the module computes by more than the order of rounding.
    """

    name: str
    run: Callable[[Module, Target], Module]
    after: tuple[str, ...] = ()
    lossy: bool = False


PASSES: tuple[Pass, ...] = (
    Pass("canonical", canonical.run),
    Pass("fold", fold.run, after=("canonical",)),
    Pass("recognise", recognise.run, after=("canonical", "fold")),
    Pass("products", products.run, after=("canonical", "recognise")),
    Pass("quantize", quantize.run, after=("canonical", "fold", "recognise", "products"), lossy=True),
    Pass("fuse", fuse.run, after=("canonical", "quantize")),  # siblings must agree on the quantised activation
    Pass("decompose", decompose.run, after=("quantize", "fuse")),  # what is fused has a kernel together
    Pass("layout", layout.run, after=("quantize", "fuse", "decompose")),  # what is left is packed, in its last type
    Pass("group", group.run, after=("fuse", "decompose", "layout")),  # what has no kernel of its own, or a product
)


def check_order(passes: Sequence[Pass]) -> None:
    """Raises IRError if a name is used twice or a pass stands before one that it must come after."""
    names = [p.name for p in passes]
    for i, p in enumerate(passes):
        if p.name in names[:i]:
            raise IRError(f"pass {p.name} is in the list twice")
        if late := [name for name in p.after if name in names[i:]]:
            raise IRError(f"pass {p.name} must come after {', '.join(late)}")


check_order(PASSES)


def run_passes(module: Module, target: Target, dump_dir: Path | str | None = None,
               passes: Sequence[Pass] = PASSES) -> Module:  # fmt: skip
    """Runs `passes` in order, verifying the module before the first and after each.

    With `dump_dir` every stage is written there as text: 00-traced.txt, 01-canonical.txt and so on.
    Raises IRError naming the pass whose result is invalid.
    """
    stages = (Pass("traced", lambda module, target: module), *passes)
    for number, p in enumerate(stages):
        try:
            module = p.run(module, target)
            verify(module)
        except IRError as error:
            raise IRError(f"pass {p.name}: {error}") from error
        if dump_dir is not None:
            folder = Path(dump_dir)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number:02d}-{p.name}.txt").write_text(print_module(module), encoding="utf-8")
    return module

"""What is measured: prompts and generations, in `llama-bench`'s words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

_FORM = re.compile(r"(pp|tg|run)(\d*)(?:x(\d+))?(?: ?@ ?d?(\d+))?")


@dataclass(frozen=True)
class Test:
    """`prompt` tokens at once, or `generate` one after another in each of `batch` sequences at once, once `depth`
    positions are in their caches; neither is one call of a function."""

    prompt: int = 0
    generate: int = 0
    depth: int = 0
    batch: int = 1

    @property
    def name(self) -> str:
        what = f"pp{self.prompt}" if self.prompt else f"tg{self.generate}" if self.generate else "run"
        what += f"x{self.batch}" if self.batch > 1 else ""
        return f"{what} @ d{self.depth}" if self.depth else what

    @property
    def tokens(self) -> int:
        """What a speed counts: tokens of all sequences, or calls."""
        return (self.prompt or self.generate or 1) * (self.batch if self.generate else 1)

    def data(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def parse(text: str) -> Test:
        """pp512, tg64, tg64@4096, tg64x4, run. Raises ValueError for any other text."""
        found = _FORM.fullmatch(text.strip())
        if not found or bool(found[2]) == (found[1] == "run"):
            raise ValueError(f"{text!r} is no test: say pp512, tg64, tg64@4096, tg64x4 or run")
        kinds = {"pp": {"prompt": int(found[2] or 0)}, "tg": {"generate": int(found[2] or 0)}, "run": {}}
        return Test(**kinds[found[1]], batch=int(found[3] or 1), depth=int(found[4] or 0))


def grid(prompts: Sequence[int], generated: Sequence[int], depths: Sequence[int],
         batches: Sequence[int]) -> Iterator[Test]:  # fmt: skip
    """Every combination, prompts first; only generation has batches."""
    for depth in depths:
        yield from (Test(prompt=p, depth=depth) for p in prompts if p)
        yield from (Test(generate=n, depth=depth, batch=b) for b in batches for n in generated if n)

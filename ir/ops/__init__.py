"""The ops: each one's typing, meaning and decomposition, as one row of a table, for every backend."""

from __future__ import annotations

from ..graph import INPUT, Op
from .cache import CACHE, STATE_USES, cache_row
from .control import CONTROL
from .elementwise import ELEMENTWISE
from .fourier import FOURIER
from .fused import FUSED
from .index import INDEX
from .linear import LINEAR
from .named import NAMED
from .shape import SHAPE
from .special import SPECIAL
from .window import WINDOW

OPS: dict[str, Op] = {
    op.name: op
    for group in (ELEMENTWISE, SPECIAL, SHAPE, WINDOW, FOURIER, INDEX, CONTROL, LINEAR, NAMED, CACHE, FUSED)
    for op in (INPUT, *group)
}

__all__ = ["OPS", "STATE_USES", "cache_row"]

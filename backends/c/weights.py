"""The weights file of a C program: its sum (runtime/c/sum.h), and PREFIX_weights.c, which says it or holds the file."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

STEP = 0x9E3779B97F4A7C15
LOW = np.uint64(0xFFFFFFFF)
PIECE = 1 << 22  # bytes that are summed at once
LARGE = 1 << 30  # bytes of weights from which on code cannot surely reach over them

# Section, alignment and names by object format. On x86-64 ELF large weights have a section of their own, which the
# linker puts beyond all that code addresses directly; macOS has pages of 16 KB.
EMBEDDED = """\
#ifndef WEIGHTS_FILE
#define WEIGHTS_FILE "@PREFIX@.weights" /* as the compiler finds it from where it runs */
#endif

#if defined(__APPLE__)
#define NAME "_@PREFIX@_weights_data"
#define SECTION ".section __DATA,__const\\n.p2align 14\\n.private_extern " NAME
#elif defined(_WIN32)
#define NAME "@PREFIX@_weights_data"
#define SECTION ".section .rdata$@PREFIX@,\\"dr\\"\\n.p2align 12"
#elif defined(__wasm__)
#define NAME "@PREFIX@_weights_data"
#define SECTION ".section .rodata.@PREFIX@_weights,\\"\\",@\\n.p2align 6\\n.hidden " NAME "\\n.size " NAME ", @BYTES@"
#elif defined(__x86_64__) && @LARGE@
#define NAME "@PREFIX@_weights_data"
#define SECTION ".section .lrodata.@PREFIX@,\\"al\\",@progbits\\n.p2align 12\\n.hidden " NAME
#else
#define NAME "@PREFIX@_weights_data"
#define SECTION ".section .rodata.@PREFIX@,\\"a\\",%progbits\\n.p2align 12\\n.hidden " NAME
#endif

__asm__(SECTION "\\n.globl " NAME "\\n" NAME ":\\n.incbin \\"" WEIGHTS_FILE "\\"\\n"
        ".if . - " NAME " - @BYTES@\\n.error \\"the weights are not @BYTES@ bytes\\"\\n.endif\\n.text\\n");

extern const uint8_t @PREFIX@_weights_data[];
"""


class Sum:
    """The sum of bytes that come in order, piece by piece."""

    def __init__(self) -> None:
        self._sum = 0
        self._index = 0
        self._rest = b""

    def add(self, data: bytes | memoryview | np.ndarray) -> None:
        """Counts the next bytes."""
        array = np.frombuffer(data, np.uint8)
        for start in range(0, array.size, PIECE):
            joined = np.concatenate([np.frombuffer(self._rest, np.uint8), array[start : start + PIECE]])
            whole = joined.size - joined.size % 8
            self._words(joined[:whole].view("<u8"))
            self._rest = joined[whole:].tobytes()

    def _words(self, words: np.ndarray) -> None:
        with np.errstate(over="ignore"):
            keys = (np.arange(words.size, dtype=np.uint64) + np.uint64(self._index + 1)) * np.uint64(STEP)
            low, high = (words + keys) & LOW, ((words >> np.uint64(32)) + (keys >> np.uint64(32))) & LOW
            self._sum = (self._sum + int((low * high).sum(dtype=np.uint64))) % (1 << 64)
        self._index += words.size

    def value(self) -> int:
        """The sum of all bytes so far; odd, so that it is never 0, which stands for an unknown one."""
        last = Sum()
        last._sum, last._index = self._sum, self._index
        if self._rest:
            last._words(np.frombuffer(self._rest.ljust(8, b"\0"), "<u8"))
        return last._sum | 1


def sum_of(pieces: Iterable[bytes]) -> int:
    """The sum of bytes in pieces."""
    total = Sum()
    for piece in pieces:
        total.add(piece)
    return total.value()


def unit(prefix: str, size: int, total: int = 0, *, embed: bool = False, large: bool | None = None) -> str:
    """PREFIX_weights.c, for weights of `size` bytes whose sum is `total` (0: unknown, so that none are refused for it).

    With `embed` it holds the file PREFIX.weights, or the one that the macro WEIGHTS_FILE names; `large`, by default as
    the size says, puts it into a section beyond the reach of code.
    """
    data, text = "NULL", ""
    if embed:
        large = size > LARGE if large is None else large
        text = EMBEDDED.replace("@PREFIX@", prefix).replace("@BYTES@", str(size)).replace("@LARGE@", str(int(large)))
        data = f"{prefix}_weights_data"
    return (
        f'/* The weights that the model was compiled with. */\n#include "{prefix}_program.h"\n\n{text}\n'
        f"const {prefix}_weights_facts {prefix}_own_weights = {{{data}, {size if embed else 0}, "
        f"UINT64_C(0x{total:016x})}};\n"
    )

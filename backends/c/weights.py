"""The weights file of a C program: its sum (runtime/c/sum.h), and PREFIX_weights.c, which says it or holds the file."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

STEP = 0x9E3779B97F4A7C15
LOW = np.uint64(0xFFFFFFFF)
PIECE = 1 << 22  # bytes that are summed at once
LARGE = 1 << 30  # bytes of weights from which on code cannot surely reach over them

# Sections, alignment and names by object format. On x86-64 ELF large weights have a section of their own, which the
# linker puts beyond all that code addresses directly; macOS has pages of 16 KB.
FORMATS = """\
#if defined(__APPLE__)
#define NAME(what) "_@PREFIX@_" what "_data"
#define SECTION(what, large) ".section __DATA,__const\\n.p2align 14\\n.private_extern " NAME(what)
#elif defined(_WIN32)
#define NAME(what) "@PREFIX@_" what "_data"
#define SECTION(what, large) ".section .rdata$@PREFIX@,\\"dr\\"\\n.p2align 12"
#elif defined(__wasm__)
#define NAME(what) "@PREFIX@_" what "_data"
#define SECTION(what, large) ".section .rodata.@PREFIX@_" what ",\\"\\",@\\n.p2align 6\\n.hidden " NAME(what)
#else
#define NAME(what) "@PREFIX@_" what "_data"
#define SECTION(what, large) ".section ." large "rodata.@PREFIX@,\\"a\\",%progbits\\n.p2align 12\\n.hidden " NAME(what)
#endif
#if defined(__x86_64__) && !defined(__APPLE__) && !defined(_WIN32)
#define LARGE "l"
#else
#define LARGE ""
#endif
/* An error of .org or .if here: the file has not the bytes that the model was compiled with. Where it is longer the
 * first .org goes backwards, where it is shorter the second. */
#if defined(__wasm__)
#define END(what, bytes) ".if . - " NAME(what) " - " bytes "\\n.error \\"not " bytes " bytes\\"\\n.endif\\n.text\\n"
#else
#define END(what, bytes) "1:\\n.org " NAME(what) " + " bytes "\\n.org 1b\\n.text\\n"
#endif
"""
EMBEDDED = """\
#ifndef @FILE@
#define @FILE@ "@PREFIX@.@NAME@" /* as the compiler finds it from where it runs */
#endif
#if defined(__wasm__)
__asm__(".size " NAME("@NAME@") ", @BYTES@\\n");
#endif
__asm__(SECTION("@NAME@", @LARGE@) "\\n.globl " NAME("@NAME@") "\\n" NAME("@NAME@") ":\\n.incbin \\"" @FILE@ "\\"\\n"
        END("@NAME@", "@BYTES@"));
extern const uint8_t @PREFIX@_@NAME@_data[];
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


def unit(prefix: str, size: int, total: int = 0, *, embed: bool = False, large: bool | None = None,
         text: int = 0) -> str:  # fmt: skip
    """PREFIX_weights.c, for weights of `size` bytes whose sum is `total` (0: unknown, so that none are refused for it).

    With `embed` it holds the file PREFIX.weights, or the one that the macro WEIGHTS_FILE names; `large`, by default as
    the size says, puts it into a section beyond the reach of code. It holds PREFIX.text too where `text` is its size.
    """
    large = size > LARGE if large is None else large
    files = [("weights", size, large)] * embed + [("text", text, False)] * bool(text)
    parts = [f'/* The weights that the model was compiled with. */\n#include "{prefix}_program.h"\n']
    if files:
        parts.append(FORMATS.replace("@PREFIX@", prefix))
    for name, bytes, far in files:
        part = EMBEDDED.replace("@FILE@", f"{name.upper()}_FILE").replace("@NAME@", name).replace("@PREFIX@", prefix)
        parts.append(part.replace("@BYTES@", str(bytes)).replace("@LARGE@", "LARGE" if far else '""'))
    weights = f"{prefix}_weights_data, {size}" if embed else "NULL, 0"
    tables = f"{prefix}_text_data, {text}" if text else "NULL, 0"
    parts.append(
        f"const {prefix}_weights_facts {prefix}_own_weights = {{{weights}, {tables}, UINT64_C(0x{total:016x})}};\n"
    )
    return "\n".join(parts)

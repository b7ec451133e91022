"""The text functions of a language model's library, without a model: built from runtime/c, called through ctypes."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from ctypes import POINTER, byref, c_char_p, c_double, c_float, c_int32, c_size_t, c_uint64, c_void_p
from functools import cache
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
RUNTIME = ROOT / "runtime" / "c"
FLAGS = "-std=c11 -O2 -ffp-contract=off -Wall -Wextra -Werror -pedantic -Wshadow=local".split()
OK, INVALID, SIZE, TABLES, NO_TEXT, ENCODING, TEMPLATE, LOGITS = 0, 1, 5, 9, 10, 11, 12, 13
PARSE_SPECIAL, NO_BEGIN, NO_END, CHAT_FORMAT = 1, 2, 4, 8
BARE = NO_BEGIN | NO_END
VOCABULARY = 1 << 20  # more than any tokenizer here has

# What abi.c has around text.c and sampling.c.
AROUND = """
#include "model.h"
#include <stdbool.h>
#include <string.h>
#include "floating.h"
#include "run.h"
#include "text_tables.h"
struct model_model { text_tables text; };
static bool is_aligned(const void *p) { return (uintptr_t)p % MODEL_ALIGNMENT == 0; }
MODEL_API size_t model_text_bytes(void);
MODEL_API model_status model_text_open(const void *text, size_t bytes, struct model_model *out);
size_t model_text_bytes(void) { return sizeof(struct model_model); }
model_status model_text_open(const void *text, size_t bytes, struct model_model *out) {
  return text_open(text, bytes, &out->text) ? MODEL_OK : MODEL_TABLES;
}
"""


def write_sources(folder: Path, vocabulary: int = VOCABULARY) -> Path:
    """Writes model.h and the C file; returns the latter."""
    constants = f"  MODEL_VOCAB_SIZE = {vocabulary}\n"
    header = "".join((RUNTIME / name).read_text() for name in ("abi.h", "text.h", "sampling.h", "abi_end.h"))
    (folder / "model.h").write_text(header.replace("  @CONSTANTS@\n", constants).replace("@TITLE@", "Text alone."))
    path = folder / "text_library.c"
    path.write_text(AROUND + "".join((RUNTIME / name).read_text() for name in ("text.c", "sampling.c")))
    return path


def compiler() -> str:
    found = next((p for name in ("cc", "gcc", "clang") if (p := shutil.which(name))), None)
    return found or pytest.skip("no C compiler")


@cache
def library(vocabulary: int = VOCABULARY, extra: tuple[str, ...] = ()) -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, output = write_sources(folder, vocabulary), folder / "libtext.so"
        flags = [*FLAGS, *extra, "-shared", "-fPIC", f"-I{RUNTIME}", f"-I{folder}"]
        subprocess.run([compiler(), *flags, source, "-o", output, "-lm"], check=True)
        loaded = ctypes.CDLL(str(output))
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(loaded, f"model_{name}")
        function.restype, function.argtypes = result, arguments
    return loaded


class Decoder(ctypes.Structure):
    _fields_ = [("keep_special", c_int32), ("from_start", c_int32), ("pending", ctypes.c_uint8 * 4),
                ("pending_bytes", c_int32)]  # fmt: skip


class Message(ctypes.Structure):
    _fields_ = [("role", c_char_p), ("content", c_char_p), ("content_bytes", c_size_t)]


class SamplingC(ctypes.Structure):
    _fields_ = [
        ("size", c_size_t), ("repetition_penalty", c_double), ("repetition_window", c_int32), ("top_k", c_int32),
        ("top_p", c_double), ("min_p", c_double), ("temperature", c_double), ("seed", c_uint64), ("draws", c_uint64),
    ]  # fmt: skip


SIGNATURES = {
    "text_bytes": (c_size_t, []),
    "text_open": (c_int32, [c_void_p, c_size_t, c_void_p]),
    "tokenize_workspace_bytes": (c_size_t, [c_void_p, c_size_t]),
    "tokenize": (c_int32, [c_void_p, c_char_p, c_size_t, c_int32, c_void_p, c_size_t, c_void_p, c_size_t,
                           POINTER(c_size_t)]),
    "detokenize": (c_int32, [c_void_p, POINTER(Decoder), c_void_p, c_size_t, c_void_p, c_size_t, POINTER(c_size_t)]),
    "is_end": (c_int32, [c_void_p, c_int32]),
    "chat": (c_int32, [c_void_p, POINTER(Message), c_size_t, c_int32, c_void_p, c_size_t, POINTER(c_size_t)]),
    "sample": (c_int32, [POINTER(c_float), POINTER(SamplingC), c_void_p, c_size_t, c_void_p, c_size_t,
                         POINTER(c_int32)]),
}  # fmt: skip


def aligned(size: int) -> np.ndarray:
    """u8[size] at a multiple of 64, followed by nothing that may be written."""
    raw = np.zeros(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size]


class Text:
    """The text functions over the tables `data`; a status other than OK is a `Failed`."""

    def __init__(self, data: bytes, extra: tuple[str, ...] = ()) -> None:
        self.c = library(extra=extra)
        self._data = aligned(len(data))
        self._data[:] = np.frombuffer(data, np.uint8)
        self._model = aligned(self.c.model_text_bytes())
        self.handle = self._model.ctypes.data
        self.check(self.c.model_text_open(self._data.ctypes.data, len(data), self.handle))

    def check(self, status: int) -> None:
        if status:
            raise Failed(status)

    def tokenize(self, text: str | bytes, flags: int = PARSE_SPECIAL) -> list[int]:
        data = text.encode() if isinstance(text, str) else text
        workspace = aligned(self.c.model_tokenize_workspace_bytes(self.handle, len(data)))
        count = c_size_t()
        room = 4 * len(data) + 8
        ids = np.empty(room, np.int32)
        self.check(self.c.model_tokenize(self.handle, data, len(data), flags, workspace.ctypes.data, workspace.size,
                                         ids.ctypes.data, room, byref(count)))  # fmt: skip
        return ids[: count.value].tolist()

    def push(self, decoder: Decoder, ids: Sequence[int] | None) -> bytes:
        given = None if ids is None else np.array(ids, np.int32)
        at, count = (None, 0) if given is None else (given.ctypes.data, given.size)
        size = c_size_t()
        probe = self.c.model_detokenize(self.handle, byref(decoder), at, count, None, 0, byref(size))
        assert probe == (SIZE if size.value else OK)
        if probe == OK:
            return b""
        out = np.empty(size.value, np.uint8)
        self.check(
            self.c.model_detokenize(self.handle, byref(decoder), at, count, out.ctypes.data, out.size, byref(size))
        )
        return out.tobytes()

    def detokenize(self, ids: Sequence[int], keep_special: bool = False) -> str:
        decoder = Decoder(keep_special, True)
        return (self.push(decoder, ids) + self.push(decoder, None)).decode()

    def chat(self, messages: Sequence[tuple[str, str]], answer: bool = True) -> str:
        given = [(role.encode(), content.encode()) for role, content in messages]
        array = (Message * len(given))(*((role, content, len(content)) for role, content in given))
        size = c_size_t()
        status = self.c.model_chat(self.handle, array, len(given), answer, None, 0, byref(size))
        if status not in (OK, SIZE):
            raise Failed(status)
        out = np.empty(size.value, np.uint8)
        self.check(self.c.model_chat(self.handle, array, len(given), answer, out.ctypes.data, out.size, byref(size)))
        return out.tobytes().decode()


class Failed(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status

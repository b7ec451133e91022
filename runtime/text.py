"""Text ↔ token ids by the model's own library, with the artifact's tables (the file `text`; docs/text.md)."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from ctypes import POINTER, byref, c_char_p, c_int32, c_size_t, c_void_p
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InfercError
from .tokenizer import TokenizerBase

if TYPE_CHECKING:
    from .session import Opened

MEMBER = "text"  # of an artifact
TEMPLATE_MEMBER = "chat_template.jinja"
PARSE_SPECIAL, NO_BEGIN, NO_END = 1, 2, 4
SIZE, TEMPLATE = 5, 12  # statuses
SPECIAL, END = 1, 2  # bits of a token's kind
ADD_BEGIN, ADD_END, STRIP_SPACE, HAS_CHAT = 16, 32, 64, 128  # bits of the flags
_FLAGS, _BEGIN = 2, 4  # in the facts
_HEADER = 64


class _Turn(ctypes.Structure):
    _fields_ = [("role", c_char_p), ("content", c_char_p), ("content_bytes", c_size_t)]


# As `session.OPENING`.
FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "tokenize_workspace_bytes": (c_size_t, [c_void_p, c_size_t]),
    "tokenize": (c_int32, [c_void_p, c_char_p, c_size_t, c_int32, c_void_p, c_size_t, c_void_p, c_size_t,
                           POINTER(c_size_t)]),
    "chat": (c_int32, [c_void_p, POINTER(_Turn), c_size_t, c_int32, c_void_p, c_size_t, POINTER(c_size_t)]),
}  # fmt: skip


def _aligned(size: int) -> np.ndarray:
    """u8[size] at a multiple of 64."""
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size]


class TextTokenizer(TokenizerBase):
    """The tokenizer of an opened model, which checked its tables."""

    def __init__(self, engine: Opened, chat_template: str | None) -> None:
        self._engine, tables = engine, engine.text
        assert tables is not None
        directory = tables[_HEADER : _HEADER + 32].view(np.uint32)
        facts, offsets, data, kinds = (
            tables[directory[2 * i] : directory[2 * i] + directory[2 * i + 1]] for i in range(4)
        )
        self._offsets, self._data = offsets.view(np.uint32), data
        fact = facts.view(np.int32)
        flags = int(fact[_FLAGS])
        self.bos_id = None if fact[_BEGIN] < 0 else int(fact[_BEGIN])
        first = int(fact[_BEGIN + 1])
        ends = np.flatnonzero(kinds & END).tolist()
        self.eos_ids = tuple(sorted(ends, key=lambda id: id != first))  # the one that ends texts comes first
        self.special_ids = frozenset(np.flatnonzero(kinds & SPECIAL).tolist())
        self.add_bos, self.add_eos = bool(flags & ADD_BEGIN), bool(flags & ADD_END)
        self.space_prefix, self._has_chat = bool(flags & STRIP_SPACE), bool(flags & HAS_CHAT)
        self.chat_template = chat_template

    @property
    def vocab_size(self) -> int:
        return int(self._offsets.size) - 1

    def _encoded(self, text: str, parse_special: bool) -> list[int]:
        if not self._engine.handle:
            raise InfercError("the model is closed: load it again")
        data = text.encode()
        c, handle = self._engine.c, self._engine.handle
        workspace = _aligned(max(1, c.tokenize_workspace_bytes(handle, len(data))))
        flags = PARSE_SPECIAL * parse_special | NO_BEGIN | NO_END
        count = c_size_t()
        status, room = SIZE, len(data) + 8
        while status == SIZE:  # once more where some bytes became several tokens
            ids = np.empty(room, np.int32)
            status = c.tokenize(handle, data, len(data), flags, workspace.ctypes.data, workspace.size,
                                ids.ctypes.data, room, byref(count))  # fmt: skip
            room = count.value
        self._engine.check(status)
        found: list[int] = ids[: count.value].tolist()
        return found

    def token_bytes(self, id: int) -> bytes:
        if not 0 <= id < self.vocab_size:
            return b""
        return self._data[self._offsets[id] : self._offsets[id + 1]].tobytes()

    def chat_text(self, messages: Sequence[Mapping[str, Any]]) -> str | None:
        """A conversation in the model's chat format, up to where the assistant is to answer.

        None where the tables do not know: the template then has to say, which may also be that it refuses.
        """
        plain = all(m.keys() == {"role", "content"} and all(isinstance(v, str) for v in m.values()) for m in messages)
        if not self._has_chat or not plain or any("\0" in m["role"] for m in messages):
            return None
        if not self._engine.handle:
            raise InfercError("the model is closed: load it again")
        given = [(_utf8(m["role"]), _utf8(m["content"])) for m in messages]
        turns = (_Turn * len(given))(*(_Turn(role, content, len(content)) for role, content in given))
        c, handle, size = self._engine.c, self._engine.handle, c_size_t()
        status = c.chat(handle, turns, len(given), 1, None, 0, byref(size))
        if status == TEMPLATE:
            return None
        out = np.empty(size.value if status == SIZE else 0, np.uint8)
        if status == SIZE:
            status = c.chat(handle, turns, len(given), 1, out.ctypes.data, out.size, byref(size))
        self._engine.check(status)
        return out.tobytes().decode()


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InfercError(f"the text has a lone surrogate at character {error.start}: pass Unicode text") from error

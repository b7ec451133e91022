"""A compiled model through its C interface (`model.h`): the library, its weights, and sessions with a cache each."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from ctypes import POINTER, byref, c_char_p, c_float, c_int32, c_size_t, c_void_p
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np

from ..errors import InfercError
from . import text

ABI = 1


class Compiled(Protocol):
    """A compiled model: an `Artifact`, or its library and weights in files of their own."""

    @property
    def path(self) -> Path: ...
    @property
    def manifest(self) -> dict[str, Any]: ...
    def view(self, name: str) -> np.ndarray:
        """u8[bytes] of what the manifest names; no bytes for weights that are inside of the library."""
        ...


class _OpenOptions(ctypes.Structure):
    _fields_ = [
        ("size", c_size_t),
        ("weights", c_void_p),
        ("weights_bytes", c_size_t),
        ("threads", c_int32),
        ("pin", c_int32),
        ("target", c_char_p),
        ("parallel_for", c_void_p),
        ("pool", c_void_p),
        ("unchecked", c_int32),
        ("text", c_void_p),
        ("text_bytes", c_size_t),
    ]


class _Info(ctypes.Structure):
    """`model_info`."""

    _fields_ = [
        ("abi", c_int32),
        ("vocab_size", c_int32),
        ("context", c_int32),
        ("chunk", c_int32),
        ("weights_bytes", c_size_t),
        ("name", c_char_p),
        ("target", c_char_p),
        ("cpu_features", c_char_p),
        ("targets", c_char_p),
        ("output", c_char_p),
        ("output_width", c_int32),
    ]


class _Item(ctypes.Structure):
    _fields_ = [
        ("session", c_void_p),
        ("ids", POINTER(c_int32)),
        ("id_count", c_int32),
        ("rows_wanted", c_int32),
        ("output", POINTER(c_float)),
    ]


# name: (result, arguments) of the functions of every library, without the prefix; then those of a language model.
OPENING: dict[str, tuple[Any, list[Any]]] = {
    "describe": (POINTER(_Info), [c_void_p]),
    "message": (c_char_p, [c_int32]),
    "open": (c_int32, [POINTER(_OpenOptions), POINTER(c_void_p)]),
    "close": (None, [c_void_p]),
}
_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "session_bytes": (c_size_t, [c_int32]),
    "session_init": (c_int32, [c_void_p, c_void_p, c_size_t, POINTER(c_void_p)]),
    "position": (c_int32, [c_void_p]),
    "rewind": (c_int32, [c_void_p, c_int32]),
    "workspace_bytes": (c_size_t, [c_void_p, c_int32, c_int32]),
    "eval": (c_int32, [c_void_p, c_void_p, c_size_t, POINTER(_Item), c_size_t]),
}


def output_of(manifest: Mapping[str, Any]) -> tuple[str, int]:
    """What a language model gives of a wanted token, "logits" or "embeddings", and how many floats that is."""
    return manifest.get("output", "logits"), manifest.get("output_width", manifest["vocab_size"])


def physical_cores() -> int:
    """Cores that this process may run on, two hyperthreads of one counted once where Linux tells them apart."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    siblings = set()
    for cpu in allowed:
        try:
            with open(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") as file:
                siblings.add(file.read().strip())
        except OSError:
            siblings.add(str(cpu))
    return max(1, len(siblings))


class _Library:
    """A shared library loaded from bytes; it leaves no file behind. `functions` are those wanted."""

    def __init__(self, code: np.ndarray, prefix: str, wanted: Mapping[str, tuple[Any, list[Any]]]) -> None:
        self._descriptor = -1
        try:
            self._library = self._load(code)
        except OSError as error:
            self._forget_file()
            reason = " ".join(str(error).split())
            raise InfercError(f"the artifact's library cannot be loaded ({reason}): compile the model again") from error
        try:
            found = {name: getattr(self._library, f"{prefix}_{name}") for name in wanted}
        except AttributeError as error:
            self.unload()
            raise InfercError(f"the artifact's library is incomplete ({error}): compile the model again") from error
        for name, (result, arguments) in wanted.items():
            found[name].restype, found[name].argtypes = result, arguments
        self.functions = SimpleNamespace(**found)

    def _load(self, code: np.ndarray) -> ctypes.CDLL:
        if hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd"):
            # The descriptor stays open: the loader knows libraries by path, and that of a closed one is given anew.
            self._descriptor = os.memfd_create("inferc-model", os.MFD_CLOEXEC)
            with os.fdopen(self._descriptor, "wb", closefd=False) as file:
                file.write(code.data)
            return ctypes.CDLL(f"/proc/self/fd/{self._descriptor}")
        with tempfile.TemporaryDirectory(prefix="inferc-", ignore_cleanup_errors=True) as folder:
            path = os.path.join(folder, "model" + {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so"))
            with open(path, "wb") as file:
                file.write(code.data)
            return ctypes.CDLL(path)  # which may outlive its file, except on Windows, where the file stays

    def unload(self) -> None:
        if sys.platform != "win32":
            close = ctypes.CDLL(None).dlclose
            close.argtypes = [c_void_p]
            close(self._library._handle)
        self._forget_file()

    def _forget_file(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class Opened:
    """A model opened from an artifact: `target` is the variant of its library that runs, `c` its functions, `text` the
    text tables.

    Not for two threads at once: callers take turns.
    """

    def __init__(self, artifact: Compiled, functions: Mapping[str, tuple[Any, list[Any]]], threads: int | None,
                 target: str | None) -> None:  # fmt: skip
        """`functions` are those called, but for `OPENING`. `target` names the variant to run; by default the library
        takes the best for this CPU.

        Raises InfercError when the library cannot be loaded, disagrees with the manifest, or has no such variant.
        """
        manifest = artifact.manifest
        self.threads = threads or physical_cores()
        if self.threads < 1:
            raise InfercError(f"threads must be 1 or more, not {threads}")
        self._weights = artifact.view(manifest["weights"]["file"])  # keeps the mapping alive
        self.text = artifact.view(text.MEMBER) if manifest.get("tokenizer") == text.MEMBER else None
        wanted = {**OPENING, **functions, **(text.FUNCTIONS if self.text is not None else {})}
        self._library = _Library(artifact.view(manifest["library"]), manifest["prefix"], wanted)
        self.c = self._library.functions
        self.handle = c_void_p()
        self._workspace = np.empty(0, np.uint8)
        self.info = self.c.describe(None).contents
        if not self.agrees(manifest):
            self._library.unload()
            raise InfercError(f"{artifact.path}: the library is not the one of its manifest: compile the model again")
        targets = self.info.targets.decode().split()
        if target is not None and target not in targets:
            self._library.unload()
            raise InfercError(f"{artifact.path} has no variant {target!r}: choose one of {', '.join(targets)}")
        options = _OpenOptions(
            ctypes.sizeof(_OpenOptions), self._weights.ctypes.data, self._weights.nbytes, self.threads,
            target=None if target is None else target.encode(),
        )  # fmt: skip
        if self.text is not None:
            options.text, options.text_bytes = self.text.ctypes.data, self.text.nbytes
        try:
            self.check(self.c.open(byref(options), byref(self.handle)))
        except InfercError:
            self._library.unload()
            raise
        self.target: str = self.c.describe(self.handle).contents.target.decode()

    def agrees(self, manifest: Mapping[str, Any]) -> bool:
        """Whether the library is the one that the manifest tells of."""
        return bool(self.info.abi == ABI)

    def check(self, status: int) -> None:
        """Raises InfercError with the library's own words for a status other than 0."""
        if status:
            raise InfercError((self.c.message(status) or b"unknown error").decode("utf-8", "replace"))

    def close(self) -> None:
        """Frees the library and the threads. Nothing of this model may be used after it."""
        if self.handle:
            self.c.close(self.handle)
            self.handle = c_void_p()
            self._library.unload()

    @property
    def loaded(self) -> ctypes.CDLL:
        """The library itself, for what is not in its header."""
        return self._library._library

    def reserved(self, wanted: int) -> np.ndarray:
        """Memory of so many bytes or more for one call, aligned, kept for the next."""
        if self._workspace.size < max(1, wanted):
            self._workspace = np.frombuffer(_reserve(max(1, wanted)), np.uint8)
        return self._workspace


class Engine(Opened):
    """An opened language model. Sessions of it must not be used after `close`."""

    def __init__(self, artifact: Compiled, threads: int | None = None, target: str | None = None) -> None:
        super().__init__(artifact, _FUNCTIONS, threads, target)
        self.vocab_size, self.context, self.chunk = self.info.vocab_size, self.info.context, self.info.chunk
        self.output, self.output_width = output_of(artifact.manifest)

    def agrees(self, manifest: Mapping[str, Any]) -> bool:
        info = self.info
        declared = (manifest["vocab_size"], manifest["context"], manifest["chunk"])
        if not super().agrees(manifest) or declared != (info.vocab_size, info.context, info.chunk):
            return False
        # Libraries from before there were embeddings do not say what they give.
        return "output" not in manifest or output_of(manifest) == (info.output.decode(), info.output_width)

    @property
    def building_seconds(self) -> float:
        """Nothing is built when a library runs."""
        return 0.0

    def session(self) -> Session:
        """A new, empty session."""
        return Session(self)

    def decode(self, items: Sequence[tuple[Session, int]]) -> np.ndarray:
        """Evaluates one id for each of several sessions in one pass over the weights: f32[len(items), output_width].

        On InfercError (a context is full, an id outside the vocabulary, a session twice) all positions are as before.
        """
        count = len(items)
        tokens = np.array([id for _, id in items], np.int32)
        rows = np.empty((count, self.output_width), np.float32)
        workspace = self.workspace(count, count)
        calls = (_Item * count)(*(
            _Item(session._handle, ctypes.cast(tokens[i:].ctypes.data, POINTER(c_int32)), 1, 1,
                  ctypes.cast(rows[i:].ctypes.data, POINTER(c_float)))
            for i, (session, _) in enumerate(items)
        ))  # fmt: skip
        self.check(self.c.eval(self.handle, workspace.ctypes.data, workspace.size, calls, count))
        return rows

    def workspace(self, tokens: int, rows: int) -> np.ndarray:
        """Memory for an evaluation of so many tokens and wanted rows, kept for the next."""
        return self.reserved(self.c.workspace_bytes(self.handle, tokens, rows))


def _reserve(size: int) -> mmap.mmap:
    """Zeroed memory that costs nothing until it is touched, in large pages where the system has them: a prompt touches
    a page or two for each token of each layer."""
    if sys.platform == "win32":
        return mmap.mmap(-1, size)
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0))
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


class Session:
    """The cache of one sequence. Its memory is reserved for the whole context and taken from the system as it fills."""

    def __init__(self, engine: Engine) -> None:
        """Raises InfercError when the system does not give the memory."""
        self._engine = engine
        size = engine.c.session_bytes(engine.context)
        try:
            self._memory = np.frombuffer(_reserve(size), np.uint8)
        except (OSError, OverflowError, ValueError) as error:
            raise InfercError(
                f"no memory for a context of {engine.context} positions ({size / 1e9:.1f} GB): "
                "compile the model with a smaller `--context`"
            ) from error
        self._handle = c_void_p()
        engine.check(engine.c.session_init(engine.handle, self._memory.ctypes.data, size, byref(self._handle)))

    @property
    def position(self) -> int:
        """Tokens evaluated so far."""
        return self._engine.c.position(self._handle)

    def rewind(self, position: int) -> int:
        """Forgets what was evaluated from `position` on and returns the new position.

        That is 0 where the model attends to a window and no longer holds the one before `position`.
        """
        if self._engine.c.rewind(self._handle, position):
            self._engine.check(self._engine.c.rewind(self._handle, 0))
        return self.position

    def greedy(self, id: int, count: int, ends: Sequence[int]) -> list[int]:
        """No ids: the library evaluates, and the host takes the likeliest."""
        return []

    def eval(self, ids: Sequence[int], rows: int = 1) -> np.ndarray:
        """Evaluates at most `chunk` ids after those before; what the last `rows` of them give, logits or embeddings
        f32[rows, output_width].

        On InfercError (the context is full, an id outside the vocabulary) the position is as before.
        """
        tokens = np.ascontiguousarray(ids, np.int32)
        found = np.empty((rows, self._engine.output_width), np.float32)
        workspace = self._engine.workspace(len(tokens), rows)
        item = _Item(
            self._handle, tokens.ctypes.data_as(POINTER(c_int32)), len(tokens), rows,
            found.ctypes.data_as(POINTER(c_float)),
        )  # fmt: skip
        engine = self._engine
        engine.check(engine.c.eval(engine.handle, workspace.ctypes.data, workspace.size, byref(item), 1))
        return found

"""The `.inferc` artifact: a zip of stored members, each beginning at a multiple of 4096 so that it is mapped, not read.

`ArtifactWriter` writes one, whole or not at all, the same bytes for the same contents. `Artifact` reads one, strictly.
"""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import platform
import secrets
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from ..errors import InfercError

FORMAT, VERSION = "inferc", 1
ALIGNMENT = 4096
_DATE = (1980, 1, 1, 0, 0, 0)
_LOCAL = struct.Struct("<4s5H3I2H")  # a zip local header up to the member's name
_ZIP64_EXTRA = 20  # what zipfile adds to the header's extra field for sizes of 64 bits
_PADDING_ID = 0xD935  # the extra field by which Android's zipalign pads
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_PIECE = 1 << 20

# Names of one instruction set as systems spell it.
_MACHINES = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}

# What a manifest must say: of every artifact, then by its kind and its backend.
_MANIFEST_FIELDS: dict[str, Any] = {
    "producer": str, "name": str, "architecture": str, "kind": str, "backend": str, "target": str, "weights": dict,
    "tokenizer": str | None,
}  # fmt: skip
_KINDS: dict[str, dict[str, Any]] = {
    "language": {"context": int, "chunk": int, "vocab_size": int},
    "function": {"signature": dict},
}
_BACKENDS: dict[str, dict[str, Any]] = {
    "c": {"machine": str, "variants": list, "prefix": str, "library": str},
    "xla": {"platforms": list, "programs": list, "inputs": list, "slots": int, "mesh": dict},
}


def machine() -> str:
    """The instruction set of this computer: x86_64, aarch64, …"""
    name = platform.machine().lower()
    return _MACHINES.get(name, name)


def cpu_features() -> frozenset[str] | None:
    """The features of this CPU by Linux's names; None where the system does not tell them so."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        return None
    lines = (line.partition(":") for line in text.splitlines())
    return frozenset(word for key, _, value in lines if key.strip() in ("flags", "Features") for word in value.split())


class ArtifactWriter:
    """Writes an artifact: members in the order of the calls, `write_manifest` last.

    A context manager over a temporary file beside `path`, renamed to it when the block ends well and removed when it
    does not. Raises InfercError where the disk is full or the folder cannot be written.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._temporary = self.path.parent / f".{self.path.name}.{secrets.token_hex(4)}.part"
        self._file: IO[bytes] | None = None
        self._places: dict[str, tuple[int, int]] = {}
        self._hashes: dict[str, str] = {}
        self._complete = False

    def __enter__(self) -> ArtifactWriter:
        try:
            self._file = open(self._temporary, "xb")
        except OSError as error:
            raise self._explained(error) from error
        self._zip = zipfile.ZipFile(self._file, "w", zipfile.ZIP_STORED)
        return self

    def write(self, name: str, data: bytes) -> None:
        """Adds a member."""
        self.write_stream(name, len(data), [(0, np.frombuffer(data, np.uint8))])

    def write_json(self, name: str, value: Any) -> None:
        """Adds a member of JSON in UTF-8."""
        self.write(name, json.dumps(value, ensure_ascii=False).encode())

    def write_stream(self, name: str, size: int, pieces: Iterable[tuple[int, np.ndarray]]) -> str:
        """Adds a member of `size` bytes and returns its SHA-256 in hex.

        `pieces` are (offset, array) in ascending order, taken one at a time; what lies between them is zero. Raises
        ValueError when pieces overlap or do not fit.
        """
        from concurrent.futures import ThreadPoolExecutor  # readers have no need of it

        digest = hashlib.sha256()
        try:
            with ThreadPoolExecutor(1) as pool, self._member(name, size) as member:

                def put(data: bytes | memoryview, at: int) -> int:
                    hashing = pool.submit(digest.update, data)
                    member.write(data)
                    hashing.result()
                    return at + len(data)

                at = 0
                for offset, array in pieces:
                    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
                    if offset < at or offset + data.size > size:
                        raise ValueError(
                            f"{name}: bytes {offset} to {offset + data.size} do not fit between {at} and {size}"
                        )
                    at = put(bytes(offset - at), at)
                    for start in range(0, data.size, _PIECE):
                        at = put(data[start : start + _PIECE].data, at)
                for start in range(at, size, _PIECE):
                    put(bytes(min(_PIECE, size - start)), start)
        except OSError as error:
            raise self._explained(error) from error
        self._hashes[name] = digest.hexdigest()
        return digest.hexdigest()

    def view(self, name: str) -> np.ndarray:
        """A member that was written: u8[bytes], mapped."""
        assert self._file is not None
        self._file.flush()
        start, size = self._places[name]
        return np.memmap(self._temporary, np.uint8, "r", start, (size,)) if size else np.empty(0, np.uint8)

    def hashes(self) -> dict[str, dict[str, Any]]:
        """Bytes and SHA-256 in hex of every member so far."""
        return {name: {"bytes": size, "sha256": self._hashes[name]} for name, (_, size) in self._places.items()}

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Adds `manifest.json`, which makes the artifact complete; "format" and "version" are added to it."""
        self.write_json("manifest.json", {"format": FORMAT, "version": VERSION, **manifest})
        self._complete = True

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        assert self._file is not None
        try:
            try:
                self._zip.close()
                self._file.flush()
                os.fsync(self._file.fileno())
            finally:
                self._file.close()
            if kind is None and not self._complete:
                raise ValueError(f"{self.path}: an artifact needs a manifest")
            if kind is None:
                os.replace(self._temporary, self.path)
        except OSError as failure:
            if kind is None:
                raise self._explained(failure) from failure
        finally:
            self._temporary.unlink(missing_ok=True)

    def _member(self, name: str, size: int) -> IO[bytes]:
        info = zipfile.ZipInfo(name, _DATE)
        info.create_system, info.external_attr, info.file_size = 3, 0o644 << 16, size
        assert self._file is not None
        start = self._file.tell() + _LOCAL.size + len(name.encode()) + _ZIP64_EXTRA
        padding = -(start + 4) % ALIGNMENT
        info.extra = struct.pack("<HH", _PADDING_ID, padding) + bytes(padding)
        self._places[name] = start + 4 + padding, size
        return self._zip.open(info, "w", force_zip64=True)

    def _explained(self, error: OSError) -> InfercError:
        return unwritten(self.path, error)


def unwritten(path: Path, error: OSError) -> InfercError:
    """Why a file could not be written, in a sentence."""
    if error.errno in _FULL:
        return InfercError(f"the disk is full: {path} could not be written; free some space and try again")
    return InfercError(f"cannot write {path}: {error.strerror or error}")


class Artifact:
    """A mapped artifact, its manifest checked against this machine and against its own members."""

    def __init__(self, path: Path | str) -> None:
        """Raises InfercError for a file that is missing, no artifact, damaged, or of another version or machine."""
        self.path = Path(path)
        try:
            with open(self.path, "rb") as file:
                if os.fstat(file.fileno()).st_size == 0:
                    raise self._unusable("is empty", "compile the model again")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise InfercError(f"cannot open {self.path}: {error.strerror or error}") from error
        self._members = self._directory()
        self.manifest = self._checked_manifest()

    def names(self) -> list[str]:
        """The members in the order of the file."""
        return list(self._members)

    def read(self, name: str) -> bytes:
        """The bytes of a small member, checksum verified."""
        data = self.view(name).tobytes()
        if zlib.crc32(data) != self._members[name].CRC:
            raise self._unusable(f"is damaged in {name}", "compile the model again")
        return data

    def read_json(self, name: str) -> Any:
        """The value of a JSON member."""
        try:
            return json.loads(self.read(name))
        except (ValueError, RecursionError) as error:
            raise self._unusable(f"has no readable JSON in {name}", "compile the model again") from error

    def view(self, name: str) -> np.ndarray:
        """A member as it lies in the mapped file: u8[bytes], read-only, beginning at a multiple of 4096."""
        if name not in self._members:
            raise self._unusable(f"has no {name}", "compile the model again")
        info = self._members[name]
        damaged = self._unusable(f"is truncated or damaged at {name}", "compile the model again")
        at = info.header_offset
        if not 0 <= at <= len(self._map) - _LOCAL.size:
            raise damaged
        header = _LOCAL.unpack_from(self._map, at)
        start = at + _LOCAL.size + header[-2] + header[-1]
        plain = info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1 and header[0] == b"PK\3\4"
        if not plain or start % ALIGNMENT or start + info.file_size > len(self._map):
            raise damaged
        return np.frombuffer(self._map, np.uint8, info.file_size, start)

    def verify(self) -> None:
        """Reads everything and compares all checksums. Raises InfercError where one differs."""
        for name in self._members:
            self.read(name)
        weights = self.manifest["weights"]
        if hashlib.sha256(self.view(weights["file"]).data).hexdigest() != weights["sha256"]:
            raise self._unusable("has damaged weights", "compile the model again")

    def _unusable(self, what: str, remedy: str) -> InfercError:
        return InfercError(f"{self.path} {what}: {remedy}")

    def _directory(self) -> dict[str, zipfile.ZipInfo]:
        try:
            # A ZipFile over the path, not the map: it seeks and reads a few kilobytes at the end.
            with zipfile.ZipFile(self.path) as archive:
                infos = archive.infolist()
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, LookupError, struct.error) as error:
            raise self._unusable("is truncated or no inferc artifact", "compile the model again") from error
        members = {info.filename: info for info in infos}
        if len(members) != len(infos):
            raise self._unusable("names a member twice", "compile the model again")
        return members

    def _checked_manifest(self) -> dict[str, Any]:
        if "manifest.json" not in self._members:
            raise self._unusable("is no inferc artifact (it has no manifest)", "compile a model with `inferc compile`")
        manifest = self.read_json("manifest.json")
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise self._unusable("is no inferc artifact", "compile a model with `inferc compile`")
        if manifest.get("version") != VERSION:
            raise self._unusable(
                f"has artifact format {manifest.get('version')!r} (by {manifest.get('producer')!r}) "
                f"and this inferc reads format {VERSION}",
                "compile the model again, or use the inferc that made it",
            )
        self._check_fields(manifest, _MANIFEST_FIELDS)
        for key, known in (("kind", _KINDS), ("backend", _BACKENDS)):
            if (which := manifest[key]) not in known:
                raise self._unusable(f"has the {key} {which!r}", f"this inferc knows {', '.join(known)}")
            self._check_fields(manifest, known[which])
        self._check_sizes(manifest)
        if manifest["backend"] == "c":
            self._check_machine(manifest)
        return manifest

    def _check_fields(self, manifest: dict[str, Any], fields: Mapping[str, Any]) -> None:
        for name, kind in fields.items():
            value = manifest.get(name)
            if not isinstance(value, kind) or (kind is int and (isinstance(value, bool) or not 0 < value < 1 << 31)):
                raise self._unusable(f"has no usable {name!r} in its manifest", "compile the model again")

    def _check_sizes(self, manifest: dict[str, Any]) -> None:
        weights = manifest["weights"]
        if not isinstance(weights.get("file"), str) or not isinstance(weights.get("sha256"), str):
            raise self._unusable("has no usable 'weights' in its manifest", "compile the model again")
        if self.view(weights["file"]).size != weights.get("bytes"):
            raise self._unusable("holds other weights than its manifest says", "compile the model again")
        for name in (manifest.get("library"), manifest["tokenizer"]):
            if name is not None:
                self.view(name)

    def _check_machine(self, manifest: dict[str, Any]) -> None:
        if manifest["machine"] != machine():
            raise self._unusable(
                f"was compiled for {manifest['machine']} and this computer is {machine()}", "compile the model here"
            )
        present = cpu_features()
        missing = [[f for f in needed if present is not None and f not in present] for needed in self._needs(manifest)]
        if not all(missing):
            return
        raise self._unusable(
            f"needs the CPU features {', '.join(missing[-1])} (target {manifest['target']}), which this CPU lacks",
            "compile the model with `--target portable`, or here with `--target native`",
        )

    def _needs(self, manifest: dict[str, Any]) -> list[list[str]]:
        """The CPU features that each variant of the library needs, the least variant last."""
        variants = [v for v in manifest["variants"] if isinstance(v, dict) and isinstance(v.get("cpu_features"), list)]
        if variants and len(variants) == len(manifest["variants"]):
            return [[str(feature) for feature in v["cpu_features"]] for v in variants]
        raise self._unusable("has no usable 'variants' in its manifest", "compile the model again")

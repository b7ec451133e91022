"""`compile --emit`: a model in the forms that people build into their programs, with a manifest beside it."""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InfercError
from ..runtime.artifact import FORMAT, VERSION, unwritten

# What --emit takes. Of "c", "wasm" and "pjrt" the output is a folder; "pjrt" is XLA's, the others C's.
KINDS = ("inferc", "c", "so", "a", "exe", "wasm", "pjrt")
FOLDERS = ("c", "wasm", "pjrt")
WEIGHTS = ("embed", "sidecar")
_PIECE = 1 << 24


def write_weights(path: Path, size: int, pieces: Iterable[tuple[int, np.ndarray]]) -> str:
    """Writes a weights file of `size` bytes from (offset, array) in ascending order; its SHA-256 in hex."""
    with path.open("xb") as file:
        file.truncate(size)
        for offset, array in pieces:
            file.seek(offset)
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return sha256(path)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifest_path(output: Path, kind: str) -> Path:
    """Where the manifest of an output lies: in its folder, else beside it."""
    return output / "manifest.json" if kind in FOLDERS else output.with_name(output.name + ".json")


class Publication:
    """A folder beside the output in which its files are made; `publish` moves them all to their places.

    A context manager, which leaves nothing behind where the block fails. Raises InfercError where the disk is full, or
    the output's place is taken by what is not an output of this kind.
    """

    def __init__(self, output: Path, kind: str) -> None:
        self.output, self.kind = output, kind
        self.folder = output.parent / f".{output.name}.{secrets.token_hex(4)}.part"

    def __enter__(self) -> Publication:
        old = manifest_path(self.output, self.kind)
        if self.kind in FOLDERS and self.output.exists() and not self.output.is_dir():
            raise InfercError(f"{self.output} is a file, and {self.kind} a folder: name another one")
        if self.kind in FOLDERS and self.output.exists() and any(self.output.iterdir()) and not old.exists():
            raise InfercError(f"{self.output} is there and nothing that inferc made: name another folder")
        try:
            self.folder.mkdir()
        except OSError as error:
            raise InfercError(f"cannot write {self.output}: {error.strerror}") from error
        return self

    def publish(self, manifest: dict[str, Any]) -> None:
        """Adds the hashes of all files to the manifest, writes it, and moves everything."""
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        hashes = {str(path.relative_to(self.folder)): {"bytes": path.stat().st_size, "sha256": sha256(path)}
                  for path in files}  # fmt: skip
        whole = {"format": FORMAT, "version": VERSION, **manifest, "files": hashes}
        text = json.dumps(whole, ensure_ascii=False, indent=1)
        manifest_file = self.folder / "manifest.json"
        manifest_file.write_text(text + "\n", "utf-8")
        if self.kind in FOLDERS:
            if self.output.exists():
                shutil.rmtree(self.output)
            self.folder.rename(self.output)
            return
        for path in files:
            path.replace(self.output.parent / path.relative_to(self.folder))
        manifest_file.replace(manifest_path(self.output, self.kind))

    def __exit__(self, _: object, error: BaseException | None, *rest: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise unwritten(self.output, error) from error

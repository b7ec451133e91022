"""`inferc inspect --verify`: whether an artifact is, to the byte, what was compiled, and answers as it did then."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InfercError
from ..runtime.artifact import Artifact, machine
from . import golden
from .cache import is_artifact
from .emit import FOLDERS, manifest_path, sha256


def manifest_of(path: Path) -> dict[str, Any] | None:
    """The manifest of what `compile --emit` wrote at `path`; None where there is none. Raises InfercError for a damaged
    one."""
    beside = next((p for p in map(lambda kind: manifest_path(path, kind), ("so", "c")) if p.is_file()), None)
    if beside is None:
        return None
    try:
        manifest = json.loads(beside.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InfercError(f"{beside} is no manifest: compile the model again") from error
    return manifest if isinstance(manifest, dict) and "emit" in manifest else None


def verify(path: Path) -> list[str]:
    """Recomputes all hashes of an artifact and asks it the golden prompts again; a line on each.

    Raises InfercError for the first difference, with its name, and for what is no artifact.
    """
    manifest = manifest_of(path)
    if manifest is not None:
        return [_emitted_hashes(path, manifest), _replayed(manifest, lambda folder: _emitted(path, manifest, folder))]
    if not path.is_file() or not is_artifact(path):
        raise InfercError(f"{path} has no manifest beside it: give what `inferc compile` wrote")
    artifact = Artifact(path)
    artifact.verify()
    hashes = artifact.manifest.get("files", {})
    for name, facts in hashes.items():
        if hashlib.sha256(artifact.view(name).data).hexdigest() != facts["sha256"]:
            raise _differs(path, name)
    replayed = _replayed(artifact.manifest, lambda folder: golden.ask(artifact))
    return [f"{len(hashes)} members have their hashes", replayed]


def _differs(path: Path, name: str) -> InfercError:
    return InfercError(f"{path}: {name} is not what was compiled (its hash differs): compile the model again")


def _emitted_hashes(path: Path, manifest: Mapping[str, Any]) -> str:
    folder = path if manifest["emit"] in FOLDERS else path.parent
    for name, facts in manifest["files"].items():
        if not (folder / name).is_file():
            raise InfercError(f"{path}: {name} is missing: compile the model again")
        if sha256(folder / name) != facts["sha256"]:
            raise _differs(path, name)
    return f"{len(manifest['files'])} files have their hashes"


Ask = Callable[[Path], "list[dict[str, Any]] | str"]


def _replayed(manifest: Mapping[str, Any], ask: Ask) -> str:
    """`ask` is given an empty folder; it returns the answers, or says why there are none."""
    wanted = manifest.get("golden", [])
    if not wanted:
        return "no golden logits: only language models for C have them"
    with tempfile.TemporaryDirectory(prefix="inferc-") as folder:
        got = ask(Path(folder))
    if isinstance(got, str):
        return got
    for i, (entry, answer) in enumerate(zip(wanted, got, strict=True)):
        if any(entry[key] != value for key, value in answer.items()):
            raise InfercError(f"golden prompt {i + 1} is not answered as when it was compiled: compile the model again")
    return f"{sum(map(bool, got))} golden prompts have the same answers"


def _emitted(path: Path, manifest: Mapping[str, Any], folder: Path) -> list[dict[str, Any]] | str:
    """The answers of an emitted form. Of an executable only the ids that follow one prompt, of a package the hashes."""
    from . import driver

    kind, prefix = manifest["emit"], manifest["prefix"]
    here = manifest["machine"] == machine() and manifest["system"] == platform.system().lower()
    command = driver.asking(path, manifest)
    if not here and not command:
        place = f"{manifest['machine']}-{manifest['system']}".rstrip("-")
        return f"golden logits were not asked for: this computer does not run {place}"
    if kind == "wasm":
        return json.loads(_printed(path, command))
    if kind == "exe":
        return [_following(path, command, entry) if "next" in entry else {} for entry in manifest["golden"]]
    library, weights = path, path.parent / f"{prefix}.weights"
    if kind in ("a", "c"):
        library = folder / "library"
        driver.rebuilt(path, manifest, library)
    if kind == "c":
        weights = path / f"{prefix}.weights"
    outside = manifest["weights"]["place"] == "sidecar"
    given = golden.mapped(weights) if outside else None
    return golden.ask(golden.parts(path, manifest, golden.mapped(library), given))


def _following(path: Path, command: Sequence[str], entry: Mapping[str, Any]) -> dict[str, Any]:
    options = "--ids", " ".join(map(str, entry["ids"])), "-n", str(len(entry["next"]))
    return {"next": [int(word) for word in _printed(path, [*command, *options]).split()]}


def _printed(path: Path, command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise InfercError(f"{path} does not run: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout

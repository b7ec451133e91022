"""Artifacts compiled on first use, kept in the user's cache folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

from . import hub


def _fingerprint_of_compiler() -> bytes:
    """Changes whenever a file of the compiler does: names, sizes and modification times."""
    root = Path(__file__).resolve().parent.parent
    files = sorted(
        path
        for folder in ("compiler", "ir", "backends", "runtime")
        for path in (root / folder).rglob("*")
        if path.suffix in (".py", ".h", ".c")
    )
    stats = [(str(path.relative_to(root)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return repr(stats).encode()


def artifact_path(model: Path, **options: object) -> Path:
    """Where the artifact of this model file, compiled with these options by this compiler, is kept."""
    files = sorted(model.rglob("*")) if model.is_dir() else [model]
    stats = [(str(file.resolve()), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files]
    key = hashlib.sha256(_fingerprint_of_compiler())
    key.update(repr((stats, sorted(options.items()))).encode())
    return hub.cache_folder() / "compiled" / f"{model.stem}-{key.hexdigest()[:16]}.inferc"


def is_artifact(path: Path) -> bool:
    """Whether the file is meant as a compiled artifact rather than a model, by its name or its first bytes."""
    if path.suffix == ".inferc":
        return True
    if path.is_dir():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def compiled(name: str, progress: hub.Progress, **options) -> Path:
    """The artifact for `name`: itself when it is one, else the model it names, compiled now or before.

    `options` are `compile_model`'s (target, context, chunk, kv). Raises InfercError as `pull` and `compile_model` do.
    """
    model = hub.pull(name, progress)
    if is_artifact(model):
        return model
    from ..backends.c.target import native  # names the host's target, so that a cache shared by machines holds

    options = {"target": "native", "context": None, "chunk": 512, "kv": "f16"} | options
    options["target"] = native().name if options["target"] == "native" else options["target"]
    path = artifact_path(model, **options)
    if not path.exists():
        from .driver import compile_model

        path.parent.mkdir(parents=True, exist_ok=True)
        compile_model(str(model), path, progress=progress, **options)
    return path

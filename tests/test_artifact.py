"""Artifacts: exact contents, the same bytes every time, nothing half-written, and no damage that goes unnoticed."""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import subprocess
import sys
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from inferc.compiler import emit
from inferc.errors import InfercError
from inferc.runtime import artifact as artifact_module
from inferc.runtime.artifact import ALIGNMENT, Artifact, ArtifactWriter, cpu_features, machine
from tests import fake_artifact

LIBRARY = b"no library, but bytes" * 100


@pytest.fixture
def path(tmp_path) -> Path:
    return fake_artifact.write(tmp_path / "model.inferc", LIBRARY, {"a": ["é", 1]})


def refused(path: Path, *words: str) -> None:
    """The artifact is refused in one line that holds these words and the path."""
    with pytest.raises(InfercError) as caught:
        Artifact(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message and all(word in message for word in words), message


def test_contents(path):
    artifact = Artifact(path)
    assert artifact.names() == ["weights", "c/libmodel.so", "tokenizer.json", "manifest.json"]
    assert artifact.read("c/libmodel.so") == LIBRARY
    assert artifact.read_json("tokenizer.json") == {"a": ["é", 1]}
    assert np.array_equal(artifact.view("weights").view(np.int32), fake_artifact.WEIGHTS)
    assert artifact.manifest["format"] == "inferc" and artifact.manifest["version"] == 1
    artifact.verify()


def test_members_are_mapped_in_place_aligned_and_read_only(path):
    artifact = Artifact(path)
    whole = path.read_bytes()
    for name in artifact.names():
        view = artifact.view(name)
        assert view.ctypes.data % ALIGNMENT == 0 and not view.flags.writeable and not view.flags.owndata
        assert whole.find(view.tobytes()) % ALIGNMENT == 0


def test_other_zip_tools_read_it(path):
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert {i.compress_type for i in archive.infolist()} == {zipfile.ZIP_STORED}
        assert archive.read("c/libmodel.so") == LIBRARY
    if shutil.which("unzip"):
        assert subprocess.run(["unzip", "-tq", path], capture_output=True).returncode == 0


def test_same_contents_same_bytes(path, tmp_path):
    again = fake_artifact.write(tmp_path / "other name.inferc", LIBRARY, {"a": ["é", 1]})
    assert again.read_bytes() == path.read_bytes()


def test_streamed_weights_have_gaps_of_zeros_and_a_hash(tmp_path):
    pieces = [(64, np.arange(6, dtype=np.float32).reshape(2, 3)), (128, np.ones((4, 2), np.uint8).T)]
    with ArtifactWriter(tmp_path / "a") as writer:
        digest = writer.write_stream("w", 3 << 20, iter(pieces))
        writer.write_manifest({})
    with zipfile.ZipFile(tmp_path / "a") as archive:
        data = archive.read("w")
    assert len(data) == 3 << 20 and digest == hashlib.sha256(data).hexdigest()
    assert data[:64] == bytes(64) and data[64:88] == pieces[0][1].tobytes() and data[88:128] == bytes(40)
    assert data[128:136] == bytes([1] * 8) and not any(data[136:])


@pytest.mark.parametrize("pieces", [[(0, 9)], [(4, 8)], [(0, 4), (2, 2)], [(6, 1), (0, 1)]])
def test_pieces_that_overlap_or_do_not_fit(tmp_path, pieces):
    with pytest.raises(ValueError, match="do not fit"), ArtifactWriter(tmp_path / "a") as writer:
        writer.write_stream("w", 8, [(offset, np.zeros(size, np.uint8)) for offset, size in pieces])
    assert not list(tmp_path.iterdir())


def test_sizes_beyond_four_gigabytes(tmp_path, monkeypatch):
    """The 64-bit fields of the format, at a limit lowered to a few kilobytes."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 5000)
    path = fake_artifact.write(tmp_path / "a.inferc", LIBRARY * 9)
    artifact = Artifact(path)
    assert artifact.read("c/libmodel.so") == LIBRARY * 9
    artifact.verify()


# ---- Whole or not at all ----


def test_an_error_leaves_what_was_there(path):
    before = path.read_bytes()
    with pytest.raises(RuntimeError), ArtifactWriter(path) as writer:
        writer.write("x", b"y")
        raise RuntimeError
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


def test_an_error_in_the_weights_leaves_nothing(tmp_path):
    def weights():
        yield 0, np.zeros(4, np.uint8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), ArtifactWriter(tmp_path / "a") as writer:
        writer.write_stream("w", 8, weights())
    assert not list(tmp_path.iterdir())


def test_an_artifact_without_a_manifest_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="manifest"), ArtifactWriter(tmp_path / "a") as writer:
        writer.write("x", b"y")
    assert not list(tmp_path.iterdir())


@contextmanager
def files_of_at_most(size: int):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 100, 5000, 9000, 13000, 16700])
def test_full_disk(tmp_path, size):
    with pytest.raises(InfercError, match="disk is full") as caught, files_of_at_most(size):
        fake_artifact.write(tmp_path / "a.inferc", LIBRARY)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_full_disk_of_other_forms(tmp_path):
    with pytest.raises(InfercError, match="disk is full"), emit.Publication(tmp_path / "made", "c") as publication:
        with files_of_at_most(100):
            emit.write_weights(publication.folder / "weights.bin", 4096, [(0, np.zeros(1024, np.float32))])
    assert not list(tmp_path.iterdir())
    (tmp_path / "made").write_text("")
    with pytest.raises(InfercError, match="is a file, and c a folder"), emit.Publication(tmp_path / "made", "c"):
        pass


def test_a_folder_that_cannot_be_written(tmp_path):
    for bad in (tmp_path / "missing" / "a", tmp_path):
        with pytest.raises(InfercError, match="cannot write"):
            fake_artifact.write(bad, LIBRARY)
    assert not list(tmp_path.iterdir())


# ---- Reading ----


def test_not_there(tmp_path):
    refused(tmp_path / "none.inferc", "cannot open", "No such file")
    refused(tmp_path, "cannot open")


@pytest.mark.parametrize("data", [b"", b"GGUF" + bytes(100), b"PK\5\6" + bytes(18), b"PK\3\4", os.urandom(9000)])
def test_no_artifact(tmp_path, data):
    (tmp_path / "a").write_bytes(data)
    refused(tmp_path / "a", "compile")


def test_truncated_anywhere(path):
    whole = path.read_bytes()
    for size in [*range(0, len(whole), 997), *range(len(whole) - 60, len(whole))]:
        path.write_bytes(whole[:size])
        refused(path)


def test_bytes_missing_at_the_front(path):
    path.write_bytes(path.read_bytes()[4096:])
    refused(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 2}, ["format 2", "reads format 1", "compile the model again"]),
        ({"version": None}, ["format None"]),
        ({"format": "zip"}, ["no inferc artifact"]),
        ({"machine": "pdp11"}, ["compiled for pdp11", machine()]),
        ({"variants": [{"cpu_features": ["sse2", "quantum"]}]}, ["CPU features", "quantum", "--target"]),
        ({"variants": []}, ["'variants'"]),
        ({"variants": [{"cpu_features": 5}]}, ["'variants'"]),
        ({"library": "c/other.so"}, ["c/other.so"]),
        ({"library": 5}, ["'library'"]),
        ({"tokenizer": "nope"}, ["nope"]),
        ({"context": 0}, ["'context'"]),
        ({"chunk": True}, ["'chunk'"]),
        ({"vocab_size": "64"}, ["'vocab_size'"]),
        ({"weights": {"file": "weights", "bytes": 255, "sha256": ""}}, ["other weights"]),
        ({"weights": {"file": "none", "bytes": 1, "sha256": ""}}, ["none"]),
        ({"weights": {}}, ["'weights'"]),
        ({"weights": []}, ["'weights'"]),
    ],
)
def test_manifests_that_do_not_fit(tmp_path, changes, words):
    if "quantum" in str(changes) and cpu_features() is None:
        pytest.skip("this system does not tell the CPU's features")
    refused(fake_artifact.write(tmp_path / "a.inferc", LIBRARY, **changes), *words)


def test_features_of_other_systems_are_not_checked(tmp_path, monkeypatch):
    path = fake_artifact.write(tmp_path / "a.inferc", LIBRARY, variants=[{"cpu_features": ["quantum"]}])
    monkeypatch.setattr(artifact_module, "cpu_features", lambda: None)
    Artifact(path)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 100000, "\udcff"])
def test_manifests_that_are_no_manifests(tmp_path, text):
    with zipfile.ZipFile(tmp_path / "a", "w") as archive:
        info = zipfile.ZipInfo("manifest.json")
        info.extra = b"\xff\xff" + (ALIGNMENT - 30 - 13 - 4).to_bytes(2, "little") + bytes(ALIGNMENT - 30 - 13 - 4)
        archive.writestr(info, text.encode("utf-8", "surrogateescape"))
    refused(tmp_path / "a")


def test_a_zip_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "a", "w") as archive:
        archive.writestr("readme", "x")
    refused(tmp_path / "a", "no manifest")


def test_compressed_or_moved_members_are_refused(path):
    for options in ({"compression": zipfile.ZIP_DEFLATED}, {"compression": zipfile.ZIP_STORED}):
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        repacked = path.with_name("repacked")
        with zipfile.ZipFile(repacked, "w", **options) as archive:
            for name, data in members.items():
                archive.writestr(name, data)
        refused(repacked, "damaged")


def test_a_member_named_twice(path):
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning):
        archive.writestr("weights", b"other")
    refused(path, "twice")


@settings(max_examples=400, deadline=None)
@given(
    changes=st.lists(
        st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8), st.booleans()), min_size=1, max_size=3
    )
)
@example(changes=[(0.0, b"\0", False)])
def test_damage_is_noticed_or_harmless(tmp_path_factory, changes):
    """Bytes changed anywhere, half of them in the directory at the end: an InfercError or the same contents."""
    folder = tmp_path_factory.getbasetemp()
    good = folder / "good.inferc"
    if not good.exists():
        fake_artifact.write(good, LIBRARY)
    data = bytearray(good.read_bytes())
    directory = data.find(b"PK\1\2")
    for place, replacement, near_end in changes:
        lowest = directory if near_end else 0
        at = lowest + int(place * (len(data) - 1 - lowest))
        data[at : at + len(replacement)] = replacement
    bad = folder / "bad.inferc"
    bad.write_bytes(data)
    try:
        artifact = Artifact(bad)
        artifact.verify()
    except InfercError as error:
        assert "\n" not in str(error)
    else:
        original = Artifact(good)
        for name in ("weights", "c/libmodel.so"):
            assert np.array_equal(artifact.view(name), original.view(name))


def test_loading_imports_no_compiler(tmp_path):
    """An artifact is opened and run without jax, gguf, or any part of the package but the runtime."""
    path = fake_artifact.write(tmp_path / "a.inferc", fake_artifact.library())
    code = (
        "import sys, inferc\n"
        f"with inferc.load({str(path)!r}) as model: list(model.generate_ids([1, 2, 3], max_tokens=2))\n"
        "taken = {'jax', 'jaxlib', 'gguf', 'torch', 'transformers', 'typer', 'inferc.compiler', 'inferc.ir', "
        "'inferc.backends'}\n"
        "print(sorted(taken & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")

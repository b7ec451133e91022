"""Tuning: files that are read strictly, sizes that change no bit, and a measurement that ends in such a file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inferc.backends.c import target as c_target
from inferc.backends.c import tuning
from inferc.backends.c.tuning import DEFAULTS, Tile, Tuning
from inferc.compiler import tune
from inferc.compiler.driver import compile_model, describe, plan_model
from inferc.errors import InfercError
from inferc.runtime.model import load

from .recorded import MIXED
from .tiny_models import write_model

IDS = [(7 * i + 3) % 50 for i in range(40)]
EXTREMES = {
    "thin": Tuning(Tile(1, (1,)), Tile(1, (1,)), kblock=256, ahead=0, chunk=1 << 10),
    "wide": Tuning(Tile(2, (1, 2, 3, 4, 6, 8)), Tile(2, (1, 2, 4, 8)), kblock=1024, ahead=8192, chunk=1 << 20),
    "variable": Tuning(Tile(2, (5,)), Tile(1, (7,)), kblock=512, ahead=64, chunk=1 << 15),
}


pytestmark = pytest.mark.usefixtures("quick_compiler")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuning")
    return write_model(folder / "tiny.gguf", "llama3", MIXED, tokenizer="bpe", metadata={"context_length": 128})


def logits(artifact: Path, threads: int) -> bytes:
    with load(artifact, threads=threads) as opened:
        return opened.logits(IDS).tobytes() + opened.logits(IDS[:1]).tobytes()


def test_every_target_has_a_default() -> None:
    assert set(DEFAULTS) == set(c_target.TARGETS)
    assert all(tuning.tuning_of(t.ir) == DEFAULTS[name] for name, t in c_target.TARGETS.items())


@pytest.mark.slow
@pytest.mark.parametrize("types", [pytest.param(MIXED, id="mixed"), "bf16", "q4_k", "f32"])
def test_no_size_changes_a_bit(types: Any, tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", "llama3", types, tokenizer="bpe", metadata={"context_length": 128})
    compile_model(str(path), tmp_path / "default.inferc", target="avx2,generic")
    want = logits(tmp_path / "default.inferc", 1)
    for name, sizes in EXTREMES.items():
        file, artifact = tmp_path / f"{name}.json", tmp_path / f"{name}.inferc"
        tuning.write(file, dict.fromkeys(("generic", "avx2"), sizes))
        compile_model(str(path), artifact, target="avx2,generic", tuning=file)
        assert logits(artifact, 3) == want


def test_the_manifest_says_which_sizes(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "wide.json"
    tuning.write(file, {"generic": EXTREMES["wide"]})
    default, tuned = (describe(plan_model(model, target="generic", tuning=f))["tuning"] for f in (None, file))
    assert default["targets"] == {"generic": tuning.as_data(DEFAULTS["generic"])}
    assert tuned["targets"] == {"generic": tuning.as_data(EXTREMES["wide"])}
    assert tuned["sha256"] == tuning.digest({"generic": EXTREMES["wide"]}) != default["sha256"]
    other = describe(plan_model(model, target="avx2", tuning=file))["tuning"]
    assert other["targets"] == {"avx2": tuning.as_data(DEFAULTS["avx2"])}  # the file says nothing about it


def test_what_is_written_is_read(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    tunings = {"generic": EXTREMES["wide"], "avx2": EXTREMES["variable"]}
    tuning.write(file, tunings, cpu="some", measured=[1])
    assert tuning.read(file) == tunings
    file.write_text(json.dumps({"format": tuning.FORMAT, "version": 1, "targets": {"avx2": {"chunk": 4096}}}))
    assert tuning.read(file) == {"avx2": replace(DEFAULTS["avx2"], chunk=4096)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "gguf"}, "is no tuning of version 1"),
        ({"version": 2}, "is no tuning of version 1"),
        ({"targets": []}, "no usable 'targets'"),
        ({"targets": {"avx2": 5}}, "no usable 'targets'"),
        ({"targets": {"mmx": {}}}, "no target 'mmx'"),
        ({"targets": {"avx2": {"speed": 5}}}, "no block size 'speed'"),
        ({"targets": {"avx2": {"kblock": 100}}}, "kblock of avx2 must be a multiple of 256"),
        ({"targets": {"avx2": {"kblock": True}}}, "kblock"),
        ({"targets": {"avx2": {"ahead": -64}}}, "ahead"),
        ({"targets": {"avx2": {"chunk": "big"}}}, "chunk"),
        ({"targets": {"avx2": {"block": {"panels": 3, "tokens": [1]}}}}, "block of avx2 must be panels, 1 or 2"),
        ({"targets": {"amx": {"block": {"panels": 1, "tokens": [1]}}}}, "block of amx must have 2 panels, not 1"),
        ({"targets": {"avx2": {"dense": {"panels": 1, "tokens": []}}}}, "dense"),
        ({"targets": {"avx2": {"dense": {"panels": 1, "tokens": [2, 3]}}}}, "dense"),
        ({"targets": {"avx2": {"dense": {"panels": 1, "tokens": [1, 3, 2]}}}}, "dense"),
        ({"targets": {"avx2": {"dense": {"panels": 1, "tokens": [1, 99]}}}}, "dense"),
    ],
)
def test_files_that_are_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    file.write_text(json.dumps({"format": tuning.FORMAT, "version": 1, "targets": {}, **change}))
    with pytest.raises(InfercError, match=words) as error:
        tuning.read(file)
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_files_that_are_no_json_or_not_there(tmp_path: Path) -> None:
    with pytest.raises(InfercError, match="cannot read"):
        tuning.read(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(InfercError, match="is no JSON"):
        tuning.read(tmp_path / "bad.json")


@pytest.mark.slow
def test_tune_writes_what_compile_reads(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "ROUNDS", 1)
    monkeypatch.setattr(tuning, "SPACE", {"kblock": (256, 512), "chunk": (1 << 12, 1 << 18)})
    lines: list[str] = []
    best = tune.tune(str(model), tmp_path / "t.json", target="generic", threads=2, say=lines.append)
    assert len(lines) == 3 and lines[1].startswith("kblock 512: prompt")
    assert tuning.read(tmp_path / "t.json") == {"generic": best}
    data = json.loads((tmp_path / "t.json").read_text())
    assert [m["size"] for m in data["measured"]] == ["kblock", "chunk"] and data["threads"] == 2
    compile_model(str(model), tmp_path / "tuned.inferc", target="generic", tuning=tmp_path / "t.json")
    compile_model(str(model), tmp_path / "plain.inferc", target="generic")
    assert logits(tmp_path / "tuned.inferc", 2) == logits(tmp_path / "plain.inferc", 1)
    with pytest.raises(InfercError, match="is compiled already"):
        tune.tune(str(tmp_path / "plain.inferc"), tmp_path / "u.json")

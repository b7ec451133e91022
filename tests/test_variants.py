"""Several targets in one library: equal bits, sessions that move, the choice, what the objects hold; host threads."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from ctypes import CFUNCTYPE, POINTER, Structure, addressof, byref, c_char_p, c_int32, c_size_t, c_void_p, cast, sizeof
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from inferc.backends.c import program, target, toolchain
from inferc.compiler.driver import compile_model
from inferc.errors import InfercError
from inferc.ir.graph import IRError
from inferc.runtime.model import load
from inferc.runtime.session import _OpenOptions

from .c_programs import (
    CPU,
    FOLDER,
    INVALID,
    OK,
    VOCABULARY,
    Library,
    compile_library,
    language_model,
    packed_weights,
    reference_logits,
)
from .tiny_models import write_model

pytestmark = pytest.mark.usefixtures("quick_compiler")

IDS = np.random.default_rng(11).integers(0, VOCABULARY, 150).tolist()
HOST = target.supported()
BEYOND_BASELINE = re.compile(r"%[yz]mm|%xmm(1[6-9]|[23]\d)|%k[0-7]|%tmm|\t(v[a-z]|pshufb|pmadd|popcnt|blend|round)")


class Info(Structure):
    _fields_ = [*((n, c_int32) for n in ("abi", "vocab_size", "context", "chunk")), ("weights_bytes", c_size_t),
                *((n, c_char_p) for n in ("name", "target", "cpu_features", "targets"))]  # fmt: skip


def described(library: Library, model: c_void_p | None = None) -> Info:
    library.c.model_describe.restype, library.c.model_describe.argtypes = POINTER(Info), [c_void_p]
    return library.c.model_describe(model).contents


def opened(library: Library, name: str | None = None, threads: int = 1, **options: object) -> Library:
    """The same library opened once more, with one variant forced."""
    other = object.__new__(Library)
    other.__dict__.update(library.__dict__, model=c_void_p())
    wanted = None if name is None else name.encode()
    assert other.open(library.weights, threads, other.model, target=wanted, **options) == OK
    return other


@pytest.fixture(scope="module")
def portable() -> Iterator[Library]:
    library = compile_library(language_model(windows=(0, 40)), "portable")
    yield library
    library.close()


def test_every_variant_gives_the_same_bits(portable: Library) -> None:
    want = reference_logits(IDS, (0, 40)).tobytes()
    for t in HOST:
        library = opened(portable, t.name, 2)
        assert described(library, library.model).target.decode() == t.name
        assert library.session(200).feed(IDS, 33).tobytes() == want
        library.close()


def test_a_session_moves_between_variants(portable: Library) -> None:
    want = reference_logits(IDS, (0, 40))
    libraries = [opened(portable, t.name) for t in HOST]
    session = portable.session(200)
    for start in range(0, len(IDS), 10):
        session.library = libraries[start // 10 % len(libraries)]
        assert session.feed(IDS[start : start + 10], 10).tobytes() == want[start : start + 10].tobytes()
    for library in libraries:
        library.close()


def test_the_best_that_the_cpu_has_is_chosen(portable: Library) -> None:
    facts = described(portable)
    assert facts.target.decode() == target.native().name == described(portable, portable.model).target.decode()
    assert facts.targets.decode().split() == [t.name for t in portable.built.targets]
    assert facts.cpu_features.decode().split() == list(target.native().cpu_features)
    assert portable.open(portable.weights, 1, c_void_p(), target=b"mmx") == INVALID


def with_features(name: str, features: tuple[str, ...]) -> target.CTarget:
    return replace(target.get(name), cpu_features=features)


@pytest.mark.parametrize(("features", "chosen"), [((("sse99",), ()), 1), ((("sse99",), ("sse98",)), None)])
def test_a_cpu_without_features_gets_a_lesser_variant_or_none(features: tuple, chosen: int | None) -> None:
    """CPUs of the past are played by features that no CPU has."""
    module = language_model(windows=(0,))
    two = [with_features(t.name, f) for t, f in zip((target.native(), target.get("generic")), features)]
    if two[0].name == two[1].name:
        pytest.skip("this machine has one target")
    built = program.build(module, two, context=512, chunk=64, name="toy")
    path = FOLDER / f"lesser-{chosen}.so"
    toolchain.compile_program(built, path)
    if chosen is None:
        with pytest.raises(AssertionError):
            Library(built, path, packed_weights(module, built))
        return
    library = Library(built, path, packed_weights(module, built))
    assert described(library, library.model).target.decode() == two[chosen].name
    assert library.open(library.weights, 1, c_void_p(), target=two[0].name.encode()) == CPU
    assert library.session(64).feed(IDS[:40], 40).tobytes() == reference_logits(IDS[:40], (0,)).tobytes()
    library.close()


def test_targets_with_other_passes_are_refused() -> None:
    generic = target.get("generic")
    other = replace(generic, ir=replace(generic.ir, name="other", weight_layout=""))
    with pytest.raises(IRError, match="generic and other"):
        program.build(language_model(), [generic, other], context=512, chunk=64, name="toy")


def test_names_of_targets() -> None:
    two = target.get("avx2"), target.get("generic")
    assert target.choose("generic,avx2") == target.choose(" avx2 , generic") == two
    assert target.choose("native") == (target.native(),)
    assert set(HOST) <= set(target.choose("portable"))
    with pytest.raises(InfercError, match="there is no target 'mmx'"):
        target.choose("avx2,mmx")


def run(*command: object, cwd: Path | None = None) -> str:
    return subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(not shutil.which("objdump"), reason="no objdump here")
def test_what_the_objects_hold(tmp_path: Path) -> None:
    """Every symbol that the linker sees has the prefix; code is position-independent; the chooser runs anywhere."""
    built = program.build(language_model(), target.choose("portable"), prefix="lm", context=512, chunk=64, name="toy")
    built.write(tmp_path)
    for unit, flags in built.units.items():
        run(*toolchain.find_compiler(), *toolchain.FLAGS, *flags, "-c", unit, "-o", f"{unit}.o", cwd=tmp_path)
        defined = [line.split()[-1] for line in run("nm", "-g", "--defined-only", tmp_path / f"{unit}.o").splitlines()]
        assert defined and all(name.startswith("lm_") for name in defined)
        if unit == "lm_weights.c":
            assert defined == ["lm_own_weights"]
        elif unit != "lm_abi.c":
            assert defined == [f"lm_program_{unit.removeprefix('lm_').removesuffix('.c')}"]
    code = run("objdump", "-d", "--no-show-raw-insn", tmp_path / "lm_abi.c.o")
    assert "cpuid" in code and not BEYOND_BASELINE.search(code)
    toolchain.compile_program(built, tmp_path / "lm.so")
    assert "TEXTREL" not in run("objdump", "-p", tmp_path / "lm.so")


# ---- threads of the host, pinned threads ----------------------------------------------------------------------------

Task = CFUNCTYPE(None, c_void_p, c_int32)
ParallelFor = CFUNCTYPE(None, c_void_p, c_int32, Task, c_void_p)


@pytest.mark.parametrize("backwards", [False, True])
def test_the_hosts_threads_do_the_work(portable: Library, backwards: bool) -> None:
    """A host that runs tasks one after another, in either order, on the calling thread."""
    calls: list[tuple[int | None, int]] = []

    @ParallelFor
    def parallel_for(pool: int | None, count: int, task: Task, argument: int) -> None:
        calls.append((pool, count))
        for i in reversed(range(count)) if backwards else range(count):
            task(argument, i)

    marker = c_int32(5)
    library = opened(portable, None, 3, parallel_for=cast(parallel_for, c_void_p), pool=addressof(marker))
    assert library.session(200).feed(IDS, 64).tobytes() == reference_logits(IDS, (0, 40)).tobytes()
    assert calls and all(pool == addressof(marker) and 1 < count <= 3 for pool, count in calls)
    library.close()


def test_pinned_threads_give_the_same_bits(portable: Library) -> None:
    library = opened(portable, None, 3, pin=1)
    assert library.session(200).feed(IDS, 64).tobytes() == reference_logits(IDS, (0, 40)).tobytes()
    library.close()


# ---- artifacts ------------------------------------------------------------------------------------------------------


def test_a_portable_artifact(tmp_path: Path) -> None:
    model = write_model(tmp_path / "tiny.gguf", "llama3", "q4_0", tokenizer="bpe", metadata={"context_length": 128})
    output = tmp_path / "tiny.inferc"
    report = compile_model(str(model), output, target="portable")
    names = report.target.split()
    assert names == [t.name for t in target.choose("portable")]
    logits = set()
    for name in (None, *(t.name for t in HOST)):
        with load(output, threads=1, target=name) as opened_model:
            assert opened_model.target == (name or target.native().name)
            assert [v["target"] for v in opened_model.artifact.manifest["variants"]] == names
            assert {f"c/model_{n}.c" for n in names} <= set(opened_model.artifact.names())
            logits.add(opened_model.logits([1, 2, 3, 4, 5]).tobytes())
    assert len(logits) == 1
    with pytest.raises(InfercError, match="has no variant 'mmx': choose one of"):
        load(output, target="mmx")


@pytest.mark.parametrize("architecture", ["llama3", "gemma3"])
def test_regions_of_one_token_are_as_the_manifest_says(architecture: str, tmp_path: Path) -> None:
    model = write_model(tmp_path / "tiny.gguf", architecture, "q4_0", tokenizer="bpe", metadata={"context_length": 128})
    compile_model(str(model), tmp_path / "tiny.inferc")
    count = 0

    @ParallelFor
    def parallel_for(pool: int | None, tasks: int, task: Task, argument: int) -> None:
        nonlocal count
        count += 1
        for i in range(tasks):
            task(argument, i)

    with load(tmp_path / "tiny.inferc", threads=4) as opened_model:
        engine = opened_model._engine
        weights, host = engine._weights, cast(parallel_for, c_void_p)
        options = _OpenOptions(sizeof(_OpenOptions), weights.ctypes.data, weights.nbytes, 4, parallel_for=host)
        own, engine.handle = engine.handle, c_void_p()
        engine.check(engine.c.open(byref(options), byref(engine.handle)))
        opened_model.logits([1])
        regions = opened_model.artifact.manifest["regions"]
        engine.c.close(own)
    assert count == regions["step"] > regions["layer"] > 3

"""`compile --emit`: every form is built, runs, has the same answers, is the same bytes again, and is checked."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest

from inferc.backends.c import toolchain
from inferc.backends.c.target import supported
from inferc.compiler import checking, hub
from inferc.compiler.driver import compile_model
from inferc.errors import InfercError

from .tiny_models import write_model

PREFIX = "tiny"
TARGET = "avx2" if "avx2" in {t.name for t in supported()} else "native"  # quickly built
IDS = "3 1 4 1 5 9 2 6"
FORMS = ("c", "so", "a", "exe")


@cache
def model() -> Path:
    return write_model(Path(mkdtemp(prefix="inferc-emit-")) / "tiny.gguf", "llama", "q4_0", tokenizer="bpe")


def made(form: str, folder: Path, prefix: str = PREFIX, **options: str) -> Path:
    folder.mkdir(exist_ok=True)
    output = folder / {"c": "sources", "so": f"lib{prefix}.so", "a": f"lib{prefix}.a", "exe": prefix,
                       "inferc": f"{prefix}.inferc", "wasm": "package"}[form]  # fmt: skip
    target = "wasm32" if form == "wasm" else TARGET
    compile_model(str(model()), output, prefix=prefix, emit=form, chunk=16, **{"target": target, **options})
    return output


@cache
def emitted_as(prefix: str, *forms: str) -> Path:
    """A folder with these forms under another name, made once."""
    folder = Path(mkdtemp(prefix="inferc-emit-"))
    for form in forms:
        made(form, folder, prefix)
    return folder


@cache
def emitted(form: str, weights: str = "embed") -> Path:
    """The form, made once."""
    return made(form, Path(mkdtemp(prefix="inferc-emit-")), weights=weights)


def run(*command: object, cwd: Path | None = None) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=cwd, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return done.stdout


def answer(program: Path, *options: str) -> str:
    """The ids that the program makes; 8 after IDS."""
    return run(program, "--ids", IDS, "-n", 8, *options)


@cache
def wanted() -> str:
    return answer(emitted("exe"))


SLOW = pytest.mark.slow
BESIDE = [pytest.param(form, "sidecar", marks=() if form == "exe" else SLOW) for form in FORMS]


@pytest.mark.parametrize("form, weights", [*((form, "embed") for form in FORMS), *BESIDE])
def test_forms_are_checked(form: str, weights: str) -> None:
    """Hashes and golden answers, of the form as it runs here; the golden ones are those of the artifact for Python."""
    path = emitted(form, weights)
    lines = checking.verify(path)
    assert re.match(r"\d+ files have their hashes", lines[0])
    assert "golden prompts have the same answers" in lines[1]
    manifest = checking.manifest_of(path)
    assert manifest["golden"] == golden_of_artifact() and manifest["weights"]["place"] == weights
    assert manifest["source"]["sha256"] and "-ffp-contract=off" in manifest["flags"]


@cache
def golden_of_artifact() -> list[dict]:
    import zipfile

    with zipfile.ZipFile(emitted("inferc")) as artifact:
        return json.loads(artifact.read("manifest.json"))["golden"]


def test_artifacts_are_checked() -> None:
    lines = checking.verify(emitted("inferc"))
    assert "members have their hashes" in lines[0] and "3 golden prompts" in lines[1]


TWICE = ["inferc", "so", *(pytest.param(form, marks=SLOW) for form in ("c", "a", "exe", "wasm"))]


@pytest.mark.parametrize("form", TWICE)
def test_equal_inputs_give_equal_bytes(form: str, tmp_path: Path) -> None:
    first, again = emitted(form), made(form, tmp_path / "elsewhere")
    if form in ("c", "wasm"):
        names = sorted(p.name for p in first.iterdir())
        assert names == sorted(p.name for p in again.iterdir())
        assert all((first / n).read_bytes() == (again / n).read_bytes() for n in names)
    else:
        assert first.read_bytes() == again.read_bytes()


def test_altered_files_are_named(tmp_path: Path) -> None:
    made("so", tmp_path / "so", weights="sidecar")
    path = tmp_path / "so" / "libtiny.so"
    weights = tmp_path / "so" / "tiny.weights"
    data = bytearray(weights.read_bytes())
    data[100] ^= 1
    weights.write_bytes(data)
    with pytest.raises(InfercError, match="tiny.weights is not what was compiled"):
        checking.verify(path)
    manifest = json.loads(path.with_name("libtiny.so.json").read_text())
    data[100] ^= 1
    weights.write_bytes(data)
    manifest["golden"][2]["logits"][0] += 1
    path.with_name("libtiny.so.json").write_text(json.dumps(manifest))
    with pytest.raises(InfercError, match="golden prompt 3 is not answered"):
        checking.verify(path)
    weights.unlink()
    with pytest.raises(InfercError, match="tiny.weights is missing"):
        checking.verify(path)
    with pytest.raises(InfercError, match="has no manifest"):
        checking.verify(Path(__file__))


def symbols(path: Path, *flags: str) -> set[str]:
    lines = run("nm", *flags, path).splitlines()
    return {line.split()[-1].partition("@")[0] for line in lines if len(line.split()) > 1 and not line.endswith(":")}


@pytest.mark.parametrize("weights", ["embed", pytest.param("sidecar", marks=SLOW)])
def test_libraries_show_the_header_and_need_the_c_library_alone(weights: str) -> None:
    path = emitted("so", weights)
    declared = set(re.findall(r"\b(tiny_\w+)\(", path.with_name("tiny.h").read_text()))
    assert symbols(path, "-D", "--defined-only") == declared
    assert all(name.startswith("tiny_") for name in symbols(emitted("a", weights), "-g", "--defined-only"))
    needed = re.findall(r"NEEDED.*\[(.*)\]", run("readelf", "-d", path))
    assert {name.split(".")[0] for name in needed} <= SYSTEM
    program = emitted("exe", weights)
    assert {name.split(".")[0] for name in re.findall(r"NEEDED.*\[(.*)\]", run("readelf", "-d", program))} <= SYSTEM


SYSTEM = {"libc", "libm", "libpthread", "ld-linux-x86-64"}


def test_two_models_are_linked_into_one_program(tmp_path: Path) -> None:
    other = write_model(tmp_path / "other.gguf", "gemma3", "q8_0")
    for prefix in ("one", "two"):
        source, target = (model(), "native") if prefix == "one" else (other, TARGET)
        compile_model(str(source), tmp_path / f"lib{prefix}.a", prefix=prefix, emit="a", chunk=16, target=target)
    (tmp_path / "main.c").write_text(
        '#include <stdio.h>\n#include <string.h>\n#include "one.h"\n#include "two.h"\n'
        "int main(void) {\n"
        "  one_open_options a = {.size = sizeof a};\n  two_open_options b = {.size = sizeof b};\n"
        "  one_model *one; two_model *two;\n"
        "  if (one_open(&a, &one) || two_open(&b, &two)) return 1;\n"
        "  size_t x, y;\n"
        "  printf(\"%d %s %s\\n\", one_weights(&x) != two_weights(&y) && x != y,\n"
        "         one_describe(one)->target, two_describe(two)->target);\n"
        "  one_close(one), two_close(two);\n  return 0;\n}\n"
    )
    run(*toolchain.find_compiler(), "-std=c11", "-Wall", "-Wextra", "-pedantic", "-Werror", "main.c", "libone.a",
        "libtwo.a", "-o", "main", *toolchain.LIBRARIES, cwd=tmp_path)  # fmt: skip
    differ, first, second = run(tmp_path / "main").split()
    assert differ == "1" and first and second


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_the_sources_have_no_warning(compiler: str, tmp_path: Path) -> None:
    """All of them, the program's too."""
    if not shutil.which(compiler):
        pytest.skip(f"no {compiler} here")
    folder = tmp_path / "sources"
    shutil.copytree(emitted("c"), folder)
    flags = [f"{f}" for f in toolchain.FLAGS if f != "-O3"] + ["-O1", *toolchain.WARNINGS, "-Werror"]
    for unit, own in checking.manifest_of(folder)["units"].items():
        run(compiler, *flags, *own, "-c", unit, "-o", "unit.o", cwd=folder)
    run(compiler, *flags, "-c", "tiny_main.c", "-o", "unit.o", cwd=folder)


def test_the_sources_build_as_their_page_says(tmp_path: Path) -> None:
    folder = tmp_path / "sources"
    shutil.copytree(emitted("c"), folder)
    page = (folder / "README.md").read_text()
    run("sh", "-e", "-c", "\n".join(re.findall(r"^    (FLAGS=.*|cc .*)$", page, re.M)), cwd=folder)
    assert answer(folder / "tiny-cli") == wanted()


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("cmake"), reason="no cmake here")
@pytest.mark.parametrize("weights", ["embed", "sidecar"])
def test_the_sources_build_with_cmake(weights: str, tmp_path: Path) -> None:
    for shared in ("OFF", "ON"):
        build = tmp_path / shared
        flags = f"-DBUILD_SHARED_LIBS={shared}", "-DCMAKE_C_FLAGS=-Werror"
        run("cmake", "-S", emitted("c", weights), "-B", build, *flags)
        run("cmake", "--build", build)
        given = ["--weights", emitted("c", weights) / "tiny.weights"] if weights == "sidecar" else []
        assert answer(build / "tiny-cli", *given) == wanted()


def test_a_sidecar_lies_beside_and_is_refused_when_it_is_wrong(tmp_path: Path) -> None:
    shutil.copytree(emitted("exe", "sidecar").parent, tmp_path / "exe")
    program, weights = tmp_path / "exe" / "tiny", tmp_path / "exe" / "tiny.weights"
    assert answer(program) == wanted()
    data = weights.read_bytes()
    for wrong in (data[:-1], data + b"\0", data[:500] + bytes([data[500] ^ 1]) + data[501:]):
        weights.write_bytes(wrong)
        failed = subprocess.run([program, "--ids", IDS], capture_output=True, text=True)
        assert failed.returncode == 1
        assert failed.stderr.startswith("error: the weights are not those") and failed.stderr.count("\n") == 1
    weights.unlink()
    failed = subprocess.run([program, "--ids", IDS], capture_output=True, text=True)
    assert failed.returncode == 1 and "cannot read the weights" in failed.stderr


def test_files_that_are_no_weights_are_refused_by_the_program(tmp_path: Path) -> None:
    program, empty = emitted("exe", "sidecar"), tmp_path / "empty"
    empty.touch()
    for wrong in (empty, tmp_path, tmp_path / "none"):
        failed = subprocess.run([program, "--ids", IDS, "--weights", wrong], capture_output=True, text=True)
        assert failed.returncode == 1 and failed.stderr.startswith("error: cannot read the weights")


def said(program: Path, *options: str, stdin: str = "") -> str:
    done = subprocess.run([program, *options], input=stdin.encode(), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode(errors="replace")


def test_the_program_continues_a_text() -> None:
    program = emitted("exe")
    text = said(program, "-p", "Once upon a time", "-n", "12")
    assert len(text) > 5 and said(program, "-n", "12", stdin="Once upon a time") == text
    begun = said(program, "-p", "Once upon a time", "-n", "6", "-t", "3")
    assert text.startswith(begun.removesuffix("\n").rstrip("\ufffd"))


def test_the_program_draws_as_it_is_told() -> None:
    program = emitted("exe")
    options = {"--temp": "1", "--top-k": "20", "--top-p": "0.9", "--min-p": "0.02", "--repetition-penalty": "1.3"}
    words = [word for pair in options.items() for word in pair]
    first, again, other = (said(program, "--ids", IDS, "-n", "12", *words, "--seed", seed) for seed in "112")
    assert first == again != other
    assert said(program, "--ids", IDS, "-n", "8", *words, "--top-k", "1", "--repetition-penalty", "1") == wanted()


def test_the_program_talks() -> None:
    """An answer for each line; the second depends on what was said before, and a system message changes it."""
    program = emitted("exe")
    both = said(program, "--chat", "-n", "8", stdin="Hello\nAnd\n")
    first, alone = (said(program, "--chat", "-n", "8", stdin=f"{line}\n") for line in ("Hello", "And"))
    assert both.startswith(first) and both.removeprefix(first) not in ("", alone)
    assert said(program, "--chat", "-n", "8", "--system", "Be kind", stdin="Hello\n") != first


def test_the_programs_errors_are_one_line() -> None:
    program = emitted("exe")
    cases = {("--bad",): "unknown option", ("-p",): "needs a value", ("--temp", "hot"): "takes a number",
             ("-p", ""): "the prompt is empty", ("--ids", "1 x"): "--ids takes numbers",
             ("--ids", "999999"): "outside of the vocabulary", ("-p", "a", "--target", "z80"): "no variant z80",
             ("-p", "a " * 500): "the text is too long"}  # fmt: skip
    for options, message in cases.items():
        failed = subprocess.run([program, *options], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert failed.returncode == 1 and message in failed.stderr, (options, failed.stderr)
        assert failed.stderr.startswith("error: ") and failed.stderr.count("\n") == 1
    with open("/dev/full", "w") as full:
        failed = subprocess.run([program, "--ids", IDS], stdout=full, stderr=subprocess.PIPE, text=True)
    assert failed.returncode == 1 and failed.stderr == "error: cannot write the text\n"


@pytest.mark.slow
def test_a_real_model_starts_at_once(tmp_path: Path) -> None:
    """SmolLM2's program, of one file, is ready in less than 50 ms; the least of ten, since the machine does more."""
    compile_model(str(hub.pull("smollm2", lambda *_: None)), tmp_path / "model", emit="exe")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.json"]
    times = []
    for _ in range(10):
        begin = time.perf_counter()
        said(tmp_path / "model", "-p", "Hello", "-n", "0")
        times.append(time.perf_counter() - begin)
    assert min(times) < 0.05


def test_nothing_is_overwritten_or_left_behind(tmp_path: Path) -> None:
    mine = tmp_path / "sources"
    mine.mkdir()
    (mine / "main.c").write_text("int main(void) { return 0; }\n")
    with pytest.raises(InfercError, match="nothing that inferc made"):
        compile_model(str(model()), mine, emit="c")
    with pytest.raises(InfercError, match="there is no form 'dll'"):
        compile_model(str(model()), tmp_path / "x", emit="dll")
    with pytest.raises(InfercError, match="there is no place for weights 'inside'"):
        compile_model(str(model()), tmp_path / "x", emit="so", weights="inside")
    with pytest.raises(InfercError, match="not for .*: use --target wasm32"):
        compile_model(str(model()), tmp_path / "x", emit="wasm")
    assert [p.name for p in tmp_path.iterdir()] == ["sources"] and len(list(mine.iterdir())) == 1

"""Whole C programs: their bits against the interpreter's, their interface, and what their objects hold."""

from __future__ import annotations

import ctypes
import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from ctypes import c_size_t, c_void_p
from dataclasses import replace
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from inferc.backends.c import program, target, toolchain
from inferc.backends.c.text import runtime_text
from inferc.errors import InfercError
from inferc.ir import ops
from inferc.ir.graph import Graph, IRError, Module, Origin, Weight, make, make_input
from inferc.ir.interpret import interpret
from inferc.ir.types import Type, f32, i32, symbol

from .c_programs import (
    CONTEXT,
    CPU,
    EVICTED,
    FOLDER,
    INVALID,
    OK,
    SIZE,
    VOCABULARY,
    WEIGHTS,
    Library,
    aligned,
    build,
    compile_library,
    emit,
    language_model,
    reference_logits,
    run_function,
    toy,
    weights_for,
)

HOST = [t.name for t in target.supported()]
IDS = np.random.default_rng(3).integers(0, VOCABULARY, 1500).tolist()
ITERATION_CALLS = "malloc calloc realloc free abort exit _exit printf fprintf puts putchar fopen fwrite write raise"


def same(got: np.ndarray, want: np.ndarray) -> bool:
    return got.dtype == want.dtype and got.shape == want.shape and got.tobytes() == want.tobytes()


def elementwise() -> Module:
    """Functions without states: elementwise ops, views, constants, an input as an output, a function called twice."""
    T = symbol("T", 1, 100)
    x, y = (make_input(n, "arg", Type((T, 24), f32)) for n in "xy")
    scale = make_input("scale", "weight", Type((24,), f32))
    inner_x, inner_scale = make_input("x", "arg", Type((T, 24), f32)), make_input("scale", "weight", Type((24,), f32))
    normed = emit("rms_norm", inner_x[0], inner_scale[0], eps=1e-6)
    half = emit("constant", value=np.float32(0.5).tobytes(), type=Type((), f32))
    halved = emit("mul", normed, emit("broadcast", half, shape=(T, 24), dims=()))
    inner = Graph("halve", (inner_x, inner_scale), (halved, inner_x[0]))
    first = make(ops.OPS["call"], x[0], scale[0], graph=inner, origin=Origin("first"))
    second = make(ops.OPS["call"], first[0], scale[0], graph=inner, origin=Origin("second"))
    total = emit("add", emit("silu", second[0]), emit("exp", emit("sub", y[0], second[1])))
    flat = emit("reshape", total, shape=(24 * T,))
    bits = emit("bitcast", total, dtype=i32)
    graph = Graph("compute", (x, y, scale), (flat, bits, y[0], flat), ("flat", "bits", "same", "again"))
    return Module({"compute": graph}, weights_for((scale,)))


@pytest.mark.parametrize("name", HOST)
def test_a_function_has_the_interpreters_bits(name: str) -> None:
    module = elementwise()
    library = compile_library(module, name, threads=2)
    rng = np.random.default_rng(5)
    for tokens in (1, 7, 100):
        x, y = rng.standard_normal((2, tokens, 24)).astype(np.float32)
        want = interpret(module, {"x": x, "y": y}, entry="compute")
        got = [np.zeros(want[n].shape, want[n].dtype) for n in ("flat", "bits", "same", "again")]
        assert run_function(library, "compute", {"T": tokens}, (x, y), got) == OK
        assert all(same(g, w) for g, w in zip(got, want.values()))
    assert run_function(library, "compute", {"T": 101}, (x, y), got) == INVALID
    library.close()


@pytest.mark.parametrize("name", HOST)
@pytest.mark.parametrize("windows", [pytest.param((0, 0), marks=pytest.mark.slow), (40, 0, 40)])
def test_a_step_has_the_interpreters_bits_however_it_is_fed(name: str, windows: tuple[int, ...]) -> None:
    module, library = toy(name, windows=windows)
    ids = IDS[:300]
    want = reference_logits(ids, windows)
    for chunk in (64, 17, 1):
        assert same(library.session(512).feed(ids, chunk), want)
    _, threaded = toy(name, 3, windows=windows)
    assert same(threaded.session(512).feed(ids, 64), want)


def test_a_ring_forgets_only_what_no_token_looks_at() -> None:
    module, library = toy(chunk=64, context=4096, windows=(100, 30))
    regions = library.built.session.regions
    assert 0 < regions["layers.0.k"].pages * 256 < 1500
    ids = IDS[:1500]
    want = reference_logits(ids, (100, 30))
    session = library.session(4096)
    assert same(session.feed(ids, 64), want)
    limit = library.c.model_rewind_limit(session.handle)
    assert 0 < limit <= 1500 - 256
    assert session.rewind(limit - 1) == EVICTED and session.position == 1500
    assert session.rewind(limit) == OK and session.position == limit
    assert same(session.feed(ids[limit:], 50), want[limit:])
    assert session.rewind(0) == OK
    assert same(session.feed(ids[:70], 64), want[:70])


def test_sessions_share_a_call_without_touching_each_other() -> None:
    module, library = toy()
    texts = IDS[:90], IDS[90:150], IDS[150:151]
    want = [reference_logits(ids) for ids in texts]
    a, b, c = (library.session(512) for _ in texts)
    assert library.eval((a, texts[0][:30], 0)) != INVALID
    first = library.eval((b, texts[1][:20], 20), (a, texts[0][30:70], 2), (c, texts[2], 1))
    second = library.eval((a, texts[0][70:], 20), (b, texts[1][20:], 40))
    assert not isinstance(first, int) and not isinstance(second, int)
    assert same(first[0], want[1][:20]) and same(first[1], want[0][68:70]) and same(first[2], want[2])
    assert same(second[0], want[0][70:]) and same(second[1], want[1][20:])
    assert [s.position for s in (a, b, c)] == [90, 60, 1]


def test_a_session_grows_in_larger_memory() -> None:
    module, library = toy()
    ids = IDS[:300]
    want = reference_logits(ids)
    session = library.session(10)
    assert library.c.model_capacity(session.handle) == 256
    assert same(session.feed(ids[:250], 50), want[:250])
    assert library.eval((session, ids[250:], 50)) == CONTEXT and session.position == 250
    larger = aligned(library.c.model_session_bytes(300))
    larger[: session.memory.nbytes] = session.memory
    session.memory, session.handle = larger, c_void_p(larger.ctypes.data)
    assert library.c.model_session_resize(session.handle, c_size_t(10)) == SIZE
    assert library.c.model_session_resize(session.handle, c_size_t(larger.nbytes)) == OK
    assert library.c.model_capacity(session.handle) == 512
    assert same(session.feed(ids[250:], 50), want[250:])


def test_errors_change_nothing() -> None:
    module, library = toy()
    session = library.session(256)
    session.feed(IDS[:200], 64)
    before = session.memory.copy()
    good = IDS[200:210]
    assert library.eval((session, IDS[200:257], 1)) == CONTEXT
    for ids in ([*good, VOCABULARY], [-1, *good], [2**31 - 1], []):
        assert library.eval((session, ids, 0)) == INVALID
    assert library.eval((session, good, 1), (session, good, 1)) == INVALID
    assert library.eval((session, good, 11)) == INVALID
    assert library.eval((session, good, -1), workspace=1 << 20) == INVALID
    other = library.session(256)
    assert library.eval((session, good, 1), (other, [VOCABULARY], 1)) == INVALID
    assert library.eval((other, IDS[:60], 1), (session, good, 1), workspace=1 << 20) == INVALID  # 70 tokens of 64
    enough = library.c.model_workspace_bytes(library.model, 10, 1)
    assert library.eval((session, good, 1), workspace=enough - 1) == SIZE
    assert np.array_equal(before, session.memory) and session.position == 200
    assert session.rewind(201) == INVALID and session.rewind(-1) == INVALID and session.rewind(200) == OK
    assert library.eval((session, good, 1), workspace=enough) != SIZE and session.position == 210


def test_sizes_outside_their_range_are_zero() -> None:
    _, library = toy()
    c = library.c
    assert [c.model_session_bytes(n) for n in (-1, 0, 513)] == [0, 0, 0]
    assert c.model_session_bytes(257) == c.model_session_bytes(512) == library.built.session.bytes(300)
    assert [c.model_workspace_bytes(library.model, t, r) for t, r in ((0, 0), (65, 1), (2, 3), (1, -1))] == [0] * 4
    assert library.built.memory["workspace_at_chunk"] == c.model_workspace_bytes(library.model, 64, 1)


def test_foreign_memory_is_no_session() -> None:
    _, library = toy()
    memory = aligned(library.c.model_session_bytes(10))
    handle = c_void_p()
    init = library.c.model_session_init
    pointer = c_void_p(memory.ctypes.data)
    assert init(library.model, pointer, c_size_t(memory.nbytes - 1), ctypes.byref(handle)) == SIZE
    shifted = c_void_p(memory.ctypes.data + 8)
    assert init(library.model, shifted, c_size_t(memory.nbytes), ctypes.byref(handle)) == INVALID
    assert library.c.model_rewind(pointer, 0) == INVALID
    session = library.session(10)
    _, other = toy(windows=(40, 0, 40))
    session.library = other
    assert other.eval((session, IDS[:3], 1)) == INVALID


def test_open_checks_weights_threads_and_cpu() -> None:
    module, library = toy()
    out = c_void_p()
    assert library.open(library.weights[:-1], 1, out) == WEIGHTS
    shifted = aligned(library.weights.nbytes + 64)[4 : 4 + library.weights.nbytes]
    assert library.open(shifted, 1, out) == INVALID
    assert library.open(library.weights, -1, out) == INVALID and not out.value
    assert library.open(library.weights, 0, out) == OK
    library.c.model_close(out)
    other = replace(target.get("generic"), cpu_features=("sse99",))
    built = program.build(module, [other], context=512, chunk=64, name="toy")
    toolchain.compile_program(built, FOLDER / "cpu.so")
    refused = ctypes.CDLL(str(FOLDER / "cpu.so"))
    assert Library.open(replace_c(library, refused), library.weights, 1, out) == CPU
    assert library.c.model_message(CPU).startswith(b"this CPU lacks")
    assert library.c.model_message(99) == b"no such status"


def test_every_status_has_a_line_of_text() -> None:
    _, library = toy()
    statuses = re.search(r"typedef enum model_status {(.*?)}", library.built.sources["model.h"], re.S)[1]
    names = re.findall(r"^  (MODEL_\w+)", statuses, re.M)
    texts = [library.c.model_message(status).decode() for status in range(len(names))]
    assert names[0] == "MODEL_OK" and len(names) > 10 and len(set(texts)) == len(names)
    assert all(text and "\n" not in text and text != "no such status" for text in texts)
    assert {library.c.model_message(status) for status in (-1, len(names))} == {b"no such status"}


def replace_c(library: Library, c: ctypes.CDLL) -> Library:
    """The library with another's functions, not opened."""
    bare = object.__new__(Library)
    bare.__dict__.update(library.__dict__, c=c)
    return bare


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="no /proc/cpuinfo here")
def test_cpu_features_agree_with_linux(tmp_path: Path) -> None:
    names = re.findall(r'{"(\w+)", ', runtime_text("cpu.h"))
    (tmp_path / "cpu.h").write_text(runtime_text("cpu.h"))
    (tmp_path / "main.c").write_text(
        '#include <stdio.h>\n#include "cpu.h"\n'
        "int main(int n, char **names) { for (int i = 1; i < n; i++) putchar(cpu_has(names[i]) ? '1' : '0'); }\n"
    )
    subprocess.run([compilers()[0], "-std=c11", "main.c", "-o", "main"], cwd=tmp_path, check=True)
    found = subprocess.run([tmp_path / "main", *names, "sse99"], capture_output=True, text=True, check=True).stdout
    linux = Path("/proc/cpuinfo").read_text().split()
    assert len(names) > 10 and found == "".join("1" if n in linux else "0" for n in [*names, "sse99"])


def test_the_hosts_rounding_mode_is_neither_used_nor_lost() -> None:
    module, library = toy()
    want = reference_logits(IDS[:40])
    libm = ctypes.CDLL("libm.so.6")
    session, upward = library.session(64), 0x800
    assert libm.fesetround(upward) == 0
    try:
        got = library.eval((session, IDS[:40], 40))
        assert np.float32(1) + np.float32(1e-9) > 1
    finally:
        libm.fesetround(0)
    assert not isinstance(got, int) and same(got[0], want)


def test_host_threads_may_use_one_model_at_once() -> None:
    module, library = toy("native", 2)
    want = reference_logits(IDS[:120])
    results: dict[int, bool] = {}

    def work(number: int) -> None:
        results[number] = all(same(library.session(512).feed(IDS[:120], 7 + number), want) for _ in range(5))

    threads = [Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == dict.fromkeys(range(4), True)


# ---- the sources and objects ----------------------------------------------------------------------------------------


def compilers() -> list[str]:
    return [c for c in ("gcc", "clang") if shutil.which(c)] or pytest.skip("neither gcc nor clang here")


def objects(built: program.Program, folder: Path, compiler: str, extra: Sequence[str] = ()) -> list[Path]:
    """Every unit compiled, warnings being errors."""
    folder.mkdir(exist_ok=True)
    built.write(folder)
    flags = [*toolchain.FLAGS, *toolchain.WARNINGS, "-Werror", *extra]
    for unit, own in built.units.items():
        subprocess.run([compiler, *flags, *own, "-c", unit, "-o", f"{unit}.o"], cwd=folder, check=True)
    return [folder / f"{unit}.o" for unit in built.units]


def symbols(path: Path, *flags: str) -> list[tuple[str, str]]:
    """(kind, name) of an object's symbols."""
    out = subprocess.run(["nm", *flags, str(path)], capture_output=True, text=True, check=True).stdout
    return [(line.split()[-2], line.split()[-1]) for line in out.splitlines() if len(line.split()) > 1]


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_sources_compile_without_a_warning(compiler: str, tmp_path: Path) -> None:
    if compiler not in compilers():
        pytest.skip(f"no {compiler} here")
    for number, module in enumerate((language_model(), language_model(windows=(0, 30)), elementwise())):
        objects(build(module, "native"), tmp_path / str(number), compiler)


def test_only_the_prefix_is_seen_and_the_step_allocates_nothing(tmp_path: Path) -> None:
    built = build(language_model(), "native", prefix="toy_lm")
    model, abi, weights = objects(built, tmp_path, compilers()[0])
    defined = [name for path in (model, abi, weights) for kind, name in symbols(path, "-g", "--defined-only")]
    assert defined and all(name.startswith("toy_lm_") for name in defined)
    needed = {name for _, name in symbols(model, "-u")}
    assert not needed & set(ITERATION_CALLS.split()) and not any(name.startswith("toy_lm") for name in needed)
    assert {name for _, name in symbols(abi, "-u")} & set(ITERATION_CALLS.split()) <= {"free"}  # model_close
    state = [name for path in (model, abi, weights) for kind, name in symbols(path) if kind in "bBdDcCsS"]
    constant = ("const", "messages", "_own_weights", "_program_")
    allowed = [n for n in state if n.partition(".")[0] in ALLOWED_DATA or any(part in n for part in constant)]
    assert state == allowed
    library = tmp_path / "lib.so"
    toolchain.compile_program(built, library)
    exported = {name.partition("@")[0] for kind, name in symbols(library, "-D", "--defined-only")}
    declared = set(re.findall(r"\b(toy_lm_\w+)\(", built.sources["toy_lm.h"]))
    assert exported == declared


def references(path: Path) -> dict[str, set[str]]:
    """What each function of an object calls or takes the address of, of one built with a section for each."""
    names: dict[str, set[str]] = {}
    done = subprocess.run(["objdump", "-dr", str(path)], capture_output=True, text=True, check=True)
    for line in done.stdout.splitlines():
        if start := re.match(r"[0-9a-f]+ <(\w+)>:$", line):
            names[current := start[1]] = set()
        elif used := re.search(r"\sR_\w+\s+(?:\.text\.)?(\w+)", line) or re.search(r"<(\w+)>$", line):
            names[current].add(used[1])
    return names


def reached(names: dict[str, set[str]], *roots: str) -> set[str]:
    found, left = set(), [*roots]
    while left:
        if (name := left.pop()) not in found:
            found.add(name)
            left += names.get(name, ())
    return found


def test_only_open_and_close_allocate_or_start_threads(tmp_path: Path) -> None:
    """By the calls in the object's code, pointers to functions being calls: of the other functions of the interface, of
    what they hand to threads, and of what threads run."""
    built = build(language_model(), "native")
    _, abi, _ = objects(built, tmp_path, compilers()[0], ("-O0", "-fno-inline", "-ffunction-sections"))
    names = references(abi)
    exported = set(re.findall(r"\b(model_\w+)\(", built.sources["model.h"]))
    assert {"model_eval", "model_tokenize", "model_chat", "model_restore"} <= exported <= names.keys()
    refused = {*ITERATION_CALLS.split(), "aligned_alloc", "pthread_create", "mmap"}
    assert "aligned_alloc" in reached(names, "model_open") and "pthread_create" in reached(names, "model_open")
    rest = exported - {"model_open", "model_close"}
    assert "pool_for" in reached(names, *rest)
    helpers = {n for n in names if n.startswith("pool_") and n not in ("pool_start", "pool_stop", "pool_pin")}
    assert not reached(names, *rest, *helpers) & refused


# Constant tables of pointers: relocated once by the loader, never written (.data.rel.ro).
ALLOWED_DATA = ("cpu_features", "features", "programs")


def test_two_models_link_into_one_program(tmp_path: Path) -> None:
    compiler = compilers()[0]
    files = [p for prefix in ("one", "two") for p in objects(build(language_model(), "native", prefix=prefix),
                                                           tmp_path / prefix, compiler)]  # fmt: skip
    (tmp_path / "main.c").write_text(
        '#include "one/one.h"\n#include "two/two.h"\n'
        "int main(void) { return one_describe(0) == (const void *)two_describe(0) || one_session_bytes(1) == 0; }\n"
    )
    subprocess.run([compiler, "main.c", *map(str, files), "-o", "main", *toolchain.LIBRARIES], cwd=tmp_path, check=True)
    assert subprocess.run([tmp_path / "main"]).returncode == 0


HOST_PROGRAM = r"""
#include <stdio.h>
#include <stdlib.h>
#include "model.h"

static void *take(size_t bytes) { return aligned_alloc(64, (bytes + 63) / 64 * 64); }

/* Feeds the ids of stdin to two sessions, in pieces of 1, 2, 3 ... and 7, and writes all logits of the first. */
int main(int argc, char **argv) {
  static int32_t ids[4096];
  int32_t count = 0, done[2] = {0, 0};
  while (count < 4096 && scanf("%d", &ids[count]) == 1) count++;
  const size_t size = model_describe(NULL)->weights_bytes;
  void *weights = take(size);
  FILE *file = argc > 1 ? fopen(argv[1], "rb") : NULL;
  if (!file || fread(weights, 1, size, file) != size) return 1;
  fclose(file);
  model_open_options options = {.size = sizeof options, .weights = weights, .weights_bytes = size, .threads = 2};
  model_model *model;
  if (model_open(&options, &model)) return 2;
  model_session *s[2];
  void *memory[2];
  const size_t bytes = model_session_bytes(count);
  for (int i = 0; i < 2; i++) {
    memory[i] = take(bytes);
    if (model_session_init(model, memory[i], bytes, &s[i])) return 3;
  }
  float *logits = malloc(sizeof(float) * MODEL_VOCAB_SIZE * MODEL_MAX_TOKENS);
  for (int32_t step = 1; done[0] < count || done[1] < count; step++) {
    const int32_t left[2] = {count - done[0], count - done[1]};
    const int32_t n[2] = {left[0] < step % 20 + 1 ? left[0] : step % 20 + 1, left[1] < 7 ? left[1] : 7};
    model_item items[2];
    size_t used = 0;
    if (n[0]) items[used++] = (model_item){s[0], ids + done[0], n[0], n[0], logits};
    if (n[1]) items[used++] = (model_item){s[1], ids + done[1], n[1], 0, NULL};
    const size_t need = model_workspace_bytes(model, n[0] + n[1], n[0]);
    void *workspace = take(need);
    if (model_eval(model, workspace, need, items, used)) return 4;
    free(workspace);
    fwrite(logits, sizeof(float), (size_t)n[0] * MODEL_VOCAB_SIZE, stdout);
    done[0] += n[0], done[1] += n[1];
  }
  model_close(model);
  for (int i = 0; i < 2; i++) free(memory[i]);
  free(logits);
  free(weights);
  return 0;
}
"""


@pytest.mark.parametrize("windows", [pytest.param((0, 0), marks=pytest.mark.slow), (100, 0)])
def test_sanitizers_pass_in_a_c_host(windows: tuple[int, ...], tmp_path: Path) -> None:
    """Exact sizes on the heap: a byte read or written outside a session, workspace or the weights is an error."""
    compiler = compilers()[0]
    module, library = toy(chunk=64, context=4096, windows=windows)
    files = objects(library.built, tmp_path, compiler, (*toolchain.SANITIZERS, "-O1"))
    (tmp_path / "host.c").write_text(HOST_PROGRAM)
    (tmp_path / "weights").write_bytes(library.weights.tobytes())
    subprocess.run([compiler, *toolchain.FLAGS, *toolchain.SANITIZERS, "host.c", *map(str, files), "-o", "host",
                    *toolchain.LIBRARIES], cwd=tmp_path, check=True)  # fmt: skip
    ids = IDS[:600]
    done = subprocess.run([tmp_path / "host", tmp_path / "weights"], input=" ".join(map(str, ids)).encode(),
                          capture_output=True)  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    got = np.frombuffer(done.stdout, np.float32).reshape(600, VOCABULARY)
    assert same(got, reference_logits(ids, windows))


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler here")
def test_the_header_is_cpp(tmp_path: Path) -> None:
    build(language_model(), "native").write(tmp_path)
    (tmp_path / "use.cpp").write_text('#include "model.h"\nint main() { return model_describe(0)->abi - MODEL_ABI; }\n')
    subprocess.run(["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only", "use.cpp"],
                   cwd=tmp_path, check=True)  # fmt: skip


def test_equal_modules_give_equal_sources() -> None:
    assert build(language_model(), "native").sources == build(language_model(), "native").sources


def test_entries_named_like_words_of_the_c_compile(tmp_path: Path) -> None:
    """Words of the target, helpers inside a kernel's text, and what is made from an entry's name (f32_at)."""
    x, w = make_input("x", "arg", Type((2, 8), f32)), make_input("w", "weight", Type((32, 8), f32, "panel16"))
    entries = {name: Graph(name, (x,), (emit("exp", x[0]),)) for name in ("f32_add", "prefetch", "linear_run", "exp")}
    entries["f32"] = Graph("f32", (x, w), (emit("linear", x[0], w[0]),))
    weights = {"w": Weight("w", w.types[0], lambda: np.empty(0, np.uint8))}
    toolchain.compile_program(build(Module(entries, weights), "native"), tmp_path / "model.so", extra=("-Werror",))


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_an_op_without_a_kernel_is_named_with_its_origin() -> None:
    x = make_input("x", "arg", Type((4,), f32))
    odd = replace(ops.OPS["exp"], name="odd_op")
    graph = Graph("run", (x,), (make(odd, x[0], origin=Origin("layers.3.mlp"))[0],))
    with pytest.raises(IRError, match=r"odd_op at layers\.3\.mlp: the C backend has no kernel"):
        build(Module({"compute": graph}, {}), "native")


def test_a_weight_computed_in_the_graph_cannot_be_a_layers() -> None:
    inner_x, inner_w = make_input("x", "arg", Type((4,), f32)), make_input("w", "weight", Type((4,), f32))
    inner = Graph("inner", (inner_x, inner_w), (emit("add", inner_x[0], inner_w[0]),))
    x = make_input("x", "arg", Type((4,), f32))
    call = make(ops.OPS["call"], x[0], emit("exp", x[0]), graph=inner)
    with pytest.raises(IRError, match="weight w is computed by exp"):
        build(Module({"compute": Graph("outer", (x,), (call[0],))}, {}), "native")


def test_a_step_needs_its_inputs() -> None:
    graph = language_model().entries["step"]
    x = make_input("x", "arg", Type((4,), f32))
    with pytest.raises(IRError, match="entry step: it takes tokens"):
        build(Module({"step": Graph("step", (x,), (emit("exp", x[0]),))}, {}), "native")
    with pytest.raises(IRError, match="only the entry named step may have states"):
        build(Module({"other": graph}, {}), "native")


def test_a_missing_compiler_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InfercError, match="no C compiler was found: install gcc or clang"):
        toolchain.find_compiler()
    monkeypatch.setenv("CC", "no-such-compiler -m64")
    with pytest.raises(InfercError, match="there is no compiler no-such-compiler, which CC names"):
        toolchain.find_compiler()
    monkeypatch.delenv("CC")
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", lambda name: object())
    assert toolchain.find_compiler() == [sys.executable, "-m", "ziglang", "cc"]


def test_zig_is_told_cpus_its_way() -> None:
    flags = ("-march=x86-64", "-mavx2")
    assert toolchain.spelled(flags, ["/usr/bin/gcc"]) == ["-march=x86-64", "-mavx2"]
    assert toolchain.spelled(flags, [sys.executable, "-m", "ziglang", "cc"]) == ["-mcpu=x86_64", "-mavx2"]


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("ziglang"), reason="the ziglang package is not installed")
def test_zig_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "find_compiler", lambda target, static: [sys.executable, "-m", "ziglang", "cc"])
    library = compile_library(language_model(), "native")
    assert same(library.session(100).feed(IDS[:80], 40), reference_logits(IDS[:80]))


def test_a_failing_compiler_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    built = build(language_model(), "native")
    unit = next(iter(built.units))
    broken = replace(built, sources={**built.sources, unit: "int main(void) { return nothing; }\n"})
    with pytest.raises(InfercError, match=r"failed: model_\w+\.c:1:.*error.*nothing"):
        toolchain.compile_program(broken, tmp_path / "lib.so")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_target_is_named() -> None:
    names = ", ".join((*target.TARGETS, *target.PLATFORMS))
    with pytest.raises(InfercError, match=f"there is no target 'mmx': choose one of native, portable, {names}"):
        target.get("mmx")

"""Generated C under the sanitizers: kernels in buffers of exactly their size, whole models through every part of the
interface, weights of random bytes, and threads."""

from __future__ import annotations

import ctypes
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from inferc.backends.c import toolchain
from inferc.backends.c.target import native, supported
from inferc.compiler.driver import Plan, plan_model
from inferc.ir.interpret import prepare_weights
from inferc.ir.types import evaluate

from .c_harness import calls_source, compile_kernels, compiler, dims_of, every_host_target, same_bits
from .recorded import MIXED, given, recorded_ops
from .tiny_models import VOCABULARY, write_model

DATA = Path(__file__).parent / "data"
WARNINGS = ("-std=c11", "-D_GNU_SOURCE", *toolchain.WARNINGS, "-Werror")
# Unoptimised, so that every access is one: an index beyond an inner array has no instruction left at -O1.
MEMORY = ("-O0", *toolchain.SANITIZERS, "-fsanitize=float-cast-overflow")
THREADS = ("-O1", "-g", "-fsanitize=thread")


def run(command: list[object], stdin: bytes = b"", timeout: float = 300) -> bytes:
    """What a program writes; fails with what it says on stderr where it does not end well."""
    done = subprocess.run(list(map(str, command)), input=stdin, capture_output=True, timeout=timeout)
    assert done.returncode == 0, f"exit code {done.returncode}: {done.stderr.decode(errors='replace')[:4000]}"
    return done.stdout


def integers(*values: int) -> bytes:
    return np.array(values, np.int64).tobytes()


def raw(array: object) -> bytes:
    return np.ascontiguousarray(array).tobytes() if isinstance(array, np.ndarray) else ctypes.string_at(
        ctypes.addressof(array), ctypes.sizeof(array))  # fmt: skip


@every_host_target
def test_kernels_stay_inside_their_buffers(target: str, tmp_path: Path) -> None:
    """Every recorded op, each operand, result, session and scratch at the end of a heap block, bits as interpreted."""
    lowered = [r.lowered(target) for r in recorded_ops()]
    library = compile_kernels(calls_source(lowered), target, MEMORY)
    program = tmp_path / "replay"
    run([compiler(), *WARNINGS, *MEMORY, DATA / "replay.c", library, f"-Wl,-rpath,{library.parent}", "-o", program])
    stream, wanted = [], []
    for which, (recorded, call) in enumerate(zip(recorded_ops(), lowered)):
        for one in recorded.runs:
            for threads in (1, 3):
                case, values = given(recorded, one), {**one.dims, "threads": threads}
                dims = [evaluate(d, values) for d in dims_of(call)]
                groups = len(dims), len(case.operands), len(case.results), len(case.sessions)
                stream.append(integers(which, threads, evaluate(call.scratch, values), *groups, *dims))
                stream += [integers(len(raw(o))) + raw(o) for o in case.operands]
                stream += [integers(r.nbytes) for r in case.results]
                stream += [integers(s.nbytes) + raw(s) for s in case.sessions]
                wanted += [(recorded, array) for array in (*case.results, *case.written)]
    output, at = run([program], b"".join(stream)), 0
    for recorded, array in wanted:
        got = np.frombuffer(output, array.dtype, array.size, at).reshape(array.shape)
        at += array.nbytes
        assert same_bits(got, array), recorded.name
    assert at == len(output)


# ---- whole models ---------------------------------------------------------------------------------------------------

CHUNK = 16
# (model, weight types, context, tokens): rings of 512 positions wrap around where the context is longer.
MODELS = {
    "llama of mixed K-quants": ("llama", MIXED, 128, 100),
    "gemma3 with rings": ("gemma3", "q8_0", 1024, 700),
    "qwen2 with biases": ("qwen2", "q4_1", 128, 40),
    "llama f16": ("llama", "f16", 128, 40),
    "llama bf16": ("llama", "bf16", 128, 40),
}
MORE = {f"{name} q4_0": (name, "q4_0", 128, 40) for name in ("llama3", "mistral", "qwen3", "gemma2")}


@dataclass(frozen=True)
class Host:
    """A model's sources with tests/data/sessions.c, to be built with different flags, and its weights."""

    plan: Plan
    folder: Path

    @property
    def weights(self) -> Path:
        return self.folder / "weights"

    def build(self, *flags: str) -> Path:
        """The program, of the model's own file for its target and the others for the baseline CPU."""
        program = self.plan.program
        output = self.folder / f"sessions{len(list(self.folder.iterdir()))}"
        for unit, own in program.units.items():
            run([compiler(), *toolchain.FLAGS, *flags, *own, "-c", self.folder / unit,
                 "-o", self.folder / f"{unit}.o"])  # fmt: skip
        objects = [self.folder / f"{unit}.o" for unit in program.units]
        run([compiler(), *WARNINGS, *flags, "-I", self.folder, DATA / "sessions.c", *objects, "-o", output,
             *toolchain.LIBRARIES])  # fmt: skip
        return output


def make_host(folder: Path, model: str, types: object, context: int, target: str = "native") -> Host:
    path = write_model(folder / "tiny.gguf", model, types, tokenizer="bpe", metadata={"context_length": context})
    plan = plan_model(path, target=target, chunk=CHUNK)
    plan.program.write(folder)
    packed = np.zeros(plan.program.weight_bytes, np.uint8)
    arrays = {name: array for name, _, array in prepare_weights(plan.module)}
    for name, offset, size in plan.program.weight_order:
        packed[offset : offset + size] = np.ascontiguousarray(arrays[name]).view(np.uint8).reshape(-1)
    (folder / "weights").write_bytes(packed.tobytes())
    return Host(plan, folder)


@pytest.mark.parametrize("case", [*MODELS, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def test_models_are_clean_and_give_the_plain_builds_logits(case: str, tmp_path: Path) -> None:
    """Evaluated at once, in pieces, with others, after rewinds and moves, and refusing all that is wrong."""
    model, types, context, tokens = {**MODELS, **MORE}[case]
    host = make_host(tmp_path, model, types, context)
    plain, checked = host.build("-O1"), host.build(*MEMORY)
    logits = run([plain, host.weights, 1, tokens])
    assert len(logits) == tokens * VOCABULARY * 4 and np.isfinite(np.frombuffer(logits, np.float32)).all()
    for threads in (1, 3):
        assert run([checked, host.weights, threads, tokens]) == logits


@pytest.mark.slow
@pytest.mark.parametrize("target", [t.name for t in supported() if t != native()])
def test_lesser_targets_are_clean(target: str, tmp_path: Path) -> None:
    host = make_host(tmp_path, "llama", MIXED, 128, target)
    assert run([host.build(*MEMORY), host.weights, 3, 40]) == run([host.build("-O1"), host.weights, 1, 40])


@pytest.mark.parametrize("types", [MIXED, {"attn": "q4_1", "ffn": "q8_0", "": "f16"}, "bf16"], ids=["k", "32", "bf16"])
@pytest.mark.parametrize("target", [pytest.param("generic", marks=pytest.mark.slow), "native"])
def test_weights_of_any_bytes_are_clean(target: str, types: object, tmp_path: Path) -> None:
    """Scales that are infinite, NaN or of any sign; vectors too. What they give is equal however it is evaluated."""
    host = make_host(tmp_path, "qwen2", types, 128, target)
    program = host.build(*MEMORY)
    for seed in range(2):
        host.weights.write_bytes(np.random.default_rng(seed).bytes(host.plan.program.weight_bytes))
        run([program, host.weights, 1, 20])


def test_threads_do_not_race(tmp_path: Path) -> None:
    host = make_host(tmp_path, "gemma3", MIXED, 128)
    try:
        logits = run([host.build(*THREADS), host.weights, 4, 30])
    except AssertionError as error:
        if "cannot find" in str(error) or "unexpected memory mapping" in str(error):
            pytest.skip("the thread sanitizer does not run here")
        raise
    assert logits == run([host.build("-O1"), host.weights, 1, 30])

"""Meshes on forced host devices: one device's logits from many, in one process and in two."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inferc.backends.xla import triton
from inferc.backends.xla.blocks import widen
from inferc.compiler.driver import compile_model
from inferc.errors import InfercError
from inferc.runtime import xla_devices

from .test_xla_models import close
from .tiny_models import write_model
from .xla_worker import COLLECTIVES

pytestmark = pytest.mark.slow  # eight forced devices, and processes of their own

ROOT = Path(__file__).resolve().parent.parent
LAYERS = 2


def compiled(folder: Path, mesh: str, model: str = "llama", types: Any = "q4_1", **options: Any) -> Path:
    path = folder / f"{mesh or 'one'}.inferc"
    source = write_model(folder / "m.gguf", model, types)
    given = {"backend": "xla", "mesh": mesh, "kv": "f32", "chunk": 8, "context": 64, "platforms": "cpu", **options}
    compile_model(str(source), path, **given)
    return path


def workers(artifact: Path, folder: Path, devices: int, processes: int = 1, variant: str = "cpu") -> list[Any]:
    """What each process wrote, all started at once with so many devices each; `variant` is whose programs they take."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "kept"), "PYTHONPATH": f"{ROOT / '.dev'}:{ROOT}",
    }  # fmt: skip
    outputs = [folder / f"{i}.npz" for i in range(processes)]
    running = []
    for i, output in enumerate(outputs):
        command = [sys.executable, str(ROOT / "tests/xla_worker.py"), str(artifact), str(output), variant]
        command += [address, str(processes), str(i)] if processes > 1 else []
        running.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    for process in running:
        said, _ = process.communicate(timeout=150)
        assert process.returncode == 0, said.decode()
    return [np.load(output) for output in outputs]


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> Any:
    folder = tmp_path_factory.mktemp("single")
    return workers(compiled(folder, ""), folder, 1)[0]


def check(found: Any, expected: Any, replicas: int) -> None:
    assert len(found["whole"]) == replicas
    for whole, one, made in zip(found["whole"], found["single"], found["made"]):
        close(whole, expected["whole"][0])
        close(one, expected["single"][0])
        assert np.array_equal(made, expected["made"][0])


def test_programs_for_gpus_equal_one_device(single, tmp_path, monkeypatch):
    """On two devices that share the model, with the kernels' products as any platform computes them."""

    def product(w, t, value, x):
        return w.dot(x, w.convert(widen(w, t, value), x.element), ((1,), (1,)), element="f32")

    called = []
    monkeypatch.setattr(triton, "product", lambda *given: called.append(given) or product(*given))
    monkeypatch.setattr(triton, "is_simple", lambda t: False)
    path = compiled(tmp_path, "tp=2", platforms="cpu,cuda")
    (found,) = workers(path, tmp_path, 2, variant="cuda")
    assert called
    check(found, single, replicas=1)
    assert found["collectives"].tolist()[0] == 2 * LAYERS == sum(found["collectives"])


def test_tensor_parallel_replicas_equal_one_device(single, tmp_path):
    """Eight devices: four replicas of two. Each layer sums twice, after attention and after feed-forward."""
    (found,) = workers(compiled(tmp_path, "tp=2,dp=4"), tmp_path, 8)
    check(found, single, replicas=4)
    counts = dict(zip(COLLECTIVES, found["collectives"].tolist()))
    assert counts == {**dict.fromkeys(COLLECTIVES, 0), "all-reduce": 2 * LAYERS}


@pytest.mark.parametrize("model, types", [("qwen2", "q5_0"), ("qwen3", "f16"), ("gemma3", "q8_0")])
def test_architectures_that_devices_share(model, types, tmp_path):
    """With biases, norms of heads, and windows."""
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    alone.mkdir(), shared.mkdir()
    (expected,) = workers(compiled(alone, "", model, types), alone, 1)
    (found,) = workers(compiled(shared, "tp=2", model, types), shared, 2)
    check(found, expected, replicas=1)


@pytest.mark.parametrize("mesh, devices, replicas", [("tp=2", 1, 1), ("tp=2,dp=2", 2, 1)])
def test_two_processes_equal_one_device(single, mesh, devices, replicas, tmp_path):
    """Over loopback: one model across both processes, and a replica in each."""
    for found in workers(compiled(tmp_path, mesh), tmp_path, devices, processes=2):
        assert found["devices"] == 2 * devices
        check(found, single, replicas)


def test_too_few_devices_are_said():
    with pytest.raises(InfercError, match="compiled for a mesh of 2 × 4 devices and there are 1"):
        xla_devices.groups([object()], 2, 4, "model.inferc")

"""--emit pjrt: the C host against a plugin of our own that counts what is made and freed, and against a real one."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

from inferc import load
from inferc.compiler.driver import compile_model
from inferc.errors import InfercError

from .tiny_models import write_model

PLUGIN = Path(__file__).with_name("data") / "pjrt_plugin.c"
IDS = [5, 17, 30, 99]


@pytest.fixture(scope="module")
def emitted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pjrt")
    model = write_model(folder / "m.gguf", "mistral", "q4_k")
    compile_model(str(model), folder / "out", backend="xla", emit="pjrt", context=32, chunk=8)
    warnings = "CFLAGS=-O1 -g -Wall -Wextra -Werror -fsanitize=address,undefined"
    subprocess.run(["make", "-s", "-C", folder / "out", warnings], check=True)
    return folder / "out"


def run(folder: Path, plugin: Path, *words: object) -> subprocess.CompletedProcess[str]:
    command = [str(folder / "model"), str(plugin), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def fake(emitted) -> Path:
    """A plugin without a device: greedy makes id + 1, caches must be donated once each, all that is made is freed."""
    library = emitted / "fake.so"
    flags = "-std=c11 -shared -fPIC -Wall -Wextra -Werror".split()
    command = ["cc", *flags, f"-I{emitted}", "-o", library, PLUGIN]
    subprocess.run(command, check=True)
    return library


def test_the_host_calls_a_plugin_as_it_should(emitted, fake):
    done = run(emitted, fake, 10, *IDS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(i) for i in range(100, 110)]
    assert "fake, PJRT 0.200" in done.stderr and "plugin: 0 buffers are left, 0 misuses" in done.stderr


@pytest.mark.parametrize(
    "words, message",
    [
        ((1, 5000), "5000 is no token id: there are 0 to 319"),
        ((40, 1), "the prompt and 40 ids do not fit 32 positions"),
        ((1,), "usage:"),
    ],
)
def test_what_the_host_refuses(words, message, emitted, fake):
    done = run(emitted, fake, *words)
    assert done.returncode == 1 and message in done.stderr and not done.stdout


def test_what_is_no_plugin_is_said(emitted, fake, tmp_path):
    assert "cannot load the plugin" in run(emitted, tmp_path / "none.so", 1, 1).stderr
    (tmp_path / "empty.c").write_text("int nothing;\n")
    subprocess.run(["cc", "-shared", "-o", tmp_path / "empty.so", tmp_path / "empty.c"], check=True)
    assert "is no PJRT plugin" in run(emitted, tmp_path / "empty.so", 1, 1).stderr
    copy = shutil.copytree(emitted, tmp_path / "copy")
    (copy / "weights").write_bytes(b"short")
    assert "has 5 bytes and needs" in run(copy, fake, 1, 1).stderr
    (copy / "programs/greedy.vhlo").write_bytes(b"broken program")
    shutil.copyfile(emitted / "weights", copy / "weights")
    done = run(copy, fake, 1, 1)
    assert done.returncode == 1 and "PJRT_CLIENT_COMPILE: the program is no StableHLO" in done.stderr


def test_forms_of_the_other_backend_are_refused(tmp_path):
    model = write_model(tmp_path / "m.gguf")
    with pytest.raises(InfercError, match="--emit so is a form of the backend c, not of xla"):
        compile_model(str(model), tmp_path / "m.so", backend="xla", emit="so")
    with pytest.raises(InfercError, match="--emit pjrt is a form of the backend xla, not of c"):
        compile_model(str(model), tmp_path / "out", emit="pjrt")
    with pytest.raises(InfercError, match="for language models of one slot"):
        compile_model(str(model), tmp_path / "out", backend="xla", emit="pjrt", slots=2)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_real_plugin_makes_the_same_ids(emitted):
    """XLA for the CPU as a plugin, a build of it by others, for this test only."""
    if importlib.util.find_spec("lammps_jax_pjrt_cpu") is None:
        pytest.skip("needs a PJRT plugin for the CPU: pip install --no-deps lammps-jax-pjrt-cpu==0.11.2")
    import lammps_jax_pjrt_cpu as plugin

    plain = shutil.copytree(emitted, emitted.parent / "plain")
    subprocess.run(["make", "-s", "-B", "-C", plain], check=True)  # without sanitizers, which a plugin does not bear
    done = run(plain, plugin.PLUGIN_PATH, 20, *IDS)
    assert done.returncode == 0, done.stderr
    artifact = emitted.parent / "model.inferc"
    compile_model(str(emitted.parent / "m.gguf"), artifact, backend="xla", context=32, chunk=8)
    with load(artifact) as model:
        expected = list(model.generate_ids(IDS, max_tokens=20, ignore_eos=True))
    assert list(map(int, done.stdout.split())) == expected

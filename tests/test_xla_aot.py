"""Programs compiled for an H100, an MI300X and a TPU without one: weights stay packed, states in place, kernels few.

Needs Python 3.12, and jax's CUDA 13 plugin, its ROCm 7 plugin or libtpu: pip install 'inferc[plugins]'.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

import jax
import pytest

from .xla_aot import BOOKS, CONTEXT, EXPERTS, FORMATS, LAYERS, ROWS, TOKENS, WIDTH

pytestmark = pytest.mark.slow  # a minute of compiling for each platform

ROOT = Path(__file__).resolve().parent.parent
NEEDS = {"cuda": ("jax_plugins.xla_cuda13", "nvidia.cu13"), "rocm": ("jax_plugins.xla_rocm7",), "tpu": ("libtpu",)}

# Kernels of a layer of a Llama, for a TPU with every small copy: at one token and eight, with a token of each of 32
# slots, and with 64 tokens of any. They may only fall.
IN_A_LAYER = {"cuda": {1: 18, 32: 15}, "rocm": {1: 18, 32: 16}, "tpu": {1: 36, 8: 34, 32: 28, 64: 34}}
SHARED = {"cuda": {1: 18, 32: 17}, "rocm": {1: 18, 32: 18}, "tpu": {1: 37, 32: 30}}  # of two devices; but for sums
# Kernels of a product of few tokens by itself: for a GPU at most x in its dtype, ours, and the sum of shared rows.
OF_A_PRODUCT = {"cuda": 3, "rocm": 3, "tpu": 9}
ALONE = ("q4_0", "q8_0")  # one kernel for a GPU, up to 8 tokens
# Cycles of a product of one token, as XLA estimates it for a TPU: of code books a half of choices by bits.
CYCLES = {"q4_0": 20000, "mxfp4": 24000, "iq4_nl": 25000, "iq3_s": 23000}


def found(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@pytest.fixture(scope="module", params=NEEDS)
def platform(request, tmp_path_factory) -> tuple[str, dict[str, Any]]:
    """A platform, and what was compiled for it."""
    name = request.param
    if lacking := [n for n in NEEDS[name] if not found(n)]:
        pytest.skip(f"compiling for {name} without one needs {lacking[0]}: pip install 'inferc[plugins]', Python 3.12")
    if jax.__version_info__ < (0, 11):
        pytest.skip(f"compiling for {name} without one needs jax 0.11, and this is {jax.__version__}")
    output = tmp_path_factory.mktemp("aot") / "found.json"
    environment = os.environ | {"PYTHONPATH": f"{ROOT / '.dev'}:{ROOT}"}
    done = subprocess.run([sys.executable, ROOT / "tests/xla_aot.py", name, output], env=environment, text=True,
                          capture_output=True)  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return name, json.loads(output.read_text())


@pytest.mark.parametrize("tokens", TOKENS)
def test_weights_stay_packed(platform, tokens):
    """Temporaries are less than a tenth of the widened weight, kernels few; on TPUs none writes it to any memory."""
    name, made = platform
    wide = 2 * ROWS * WIDTH
    for dtype in FORMATS:
        case = made[f"{dtype} {tokens}"]
        most = 1 if name != "tpu" and dtype in ALONE and tokens <= 8 else OF_A_PRODUCT[name]
        assert len(case["kernels"]) <= most, (dtype, case["kernels"])
        assert case["temporary"] <= 0.05 * wide + 4 * 8 * tokens * ROWS, (dtype, case["temporary"])  # shared sums
        for line in case["kernels"] if name == "tpu" else ():
            assert max(map(size, results(line))) < ROWS * WIDTH, (dtype, line)


def test_codes_cost_little_on_tpus(platform):
    name, made = platform
    if name != "tpu":
        pytest.skip("XLA estimates cycles for TPUs alone")
    for dtype in ("q4_0", *BOOKS):
        assert made[f"{dtype} 1"]["cycles"] <= CYCLES[dtype], (dtype, made[f"{dtype} 1"]["kernels"])


def test_experts_are_read_as_they_lie_on_tpus(platform):
    """No array of an expert's size is made outside the loop over pairs of a token and an expert."""
    name, made = platform
    if name != "tpu":
        pytest.skip("a form for TPUs alone")
    for tokens in (1, 8):
        case = made[f"experts {tokens}"]
        assert case["temporary"] <= 0.05 * EXPERTS * ROWS * WIDTH / 2
        assert len(case["kernels"]) <= 4
        for line in case["kernels"]:
            assert " while(" in line or max(map(size, results(line))) < ROWS * WIDTH / 2, line


def test_steps_are_in_place_and_of_few_kernels(platform):
    name, made = platform
    for tokens, most in IN_A_LAYER[name].items():
        few, more = (made[f"llama {layers} {tokens}"] for layers in LAYERS)
        assert len(more["kernels"]) - len(few["kernels"]) <= most, "\n".join(more["kernels"])
        assert few["alias"] == few["states"] and more["alias"] == more["states"]
        assert more["temporary"] < 0.05 * more["states"]  # of three layers
        cache = 8 * CONTEXT * 64 * (1 if tokens <= 8 else 32)  # elements of a layer's keys or values
        shape = f"[{1 if tokens <= 8 else 32},8,{CONTEXT},64]"
        assert not [line for line in more["copies"] if shape in line]  # to fast memory, and all of it back
        for line in more["kernels"]:
            moved = re.search(r" (copy|gather|transpose|convert)\(", line)
            for result in results(line):
                assert size(result) < cache or not moved and not result.startswith("f32"), (tokens, line)


def test_devices_that_share_a_model(platform):
    """Each has its own kernels over its parts, in place, and a layer has two sums of all devices."""
    name, made = platform
    for tokens, most in SHARED[name].items():
        few, more = (made[f"llama {layers} {tokens} shared"] for layers in LAYERS)
        alone = made[f"llama {LAYERS[1]} {tokens}"]
        assert len(more["kernels"]) - len(few["kernels"]) <= most, "\n".join(more["kernels"])
        assert [m["collectives"] for m in (few, more)] == [2 * layers for layers in LAYERS] and not alone["collectives"]
        assert more["alias"] == more["states"] == alone["states"] / 2
        assert more["temporary"] < 0.05 * more["states"]


def test_generating_on_a_tpu_is_in_place(platform):
    """The loop on the device keeps caches where they are too."""
    name, made = platform
    if name != "tpu":
        pytest.skip("on a GPU the step alone is compiled")
    for layers in LAYERS:
        case = made[f"llama {layers} greedy"]
        assert case["alias"] == case["states"] and case["temporary"] < 0.05 * case["states"]
        assert not [line for line in case["copies"] if f"[1,8,{CONTEXT},64]" in line]


def results(line: str) -> list[str]:
    """The arrays that a kernel makes, as in f32[8,64]."""
    made = line[line.index("= ") + 2 :]
    return re.findall(r"\w+\[[\d,]*\]", re.split(r" [\w-]+\(", made, maxsplit=1)[0])


def size(array: str) -> int:
    """Its elements."""
    return prod(int(n) for n in array[array.index("[") + 1 : -1].split(",") if n)

"""IREE on the StableHLO that our XLA backend writes for a function."""

from __future__ import annotations

import importlib.util
import os
import time
import zipfile
from importlib.metadata import version
from typing import Any

import numpy as np

from ...runtime.artifact import Artifact
from ..tests import Test
from .base import Adapter, CannotRun, Job, Sample, inputs, repeated


class IREE(Adapter):
    name = "iree"
    kinds = ("function",)

    @staticmethod
    def missing(job: Job) -> str:
        absent = [p for p in ("iree.compiler", "iree.runtime") if not _found(p)]
        if absent:
            return "not installed: pip install iree-base-compiler iree-base-runtime"
        return "" if not job.artifacts or "xla" in job.artifacts else "it runs what the backend xla writes: name both"

    def __init__(self, job: Job) -> None:
        if "xla" not in job.artifacts:
            raise CannotRun("it runs what the backend xla writes: name both")
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: job.threads])  # a thread for each processor
        import iree.compiler
        import iree.runtime

        artifact = Artifact(job.artifacts["xla"])
        texts = [name for name in zipfile.ZipFile(job.artifacts["xla"]).namelist() if name.endswith(".mlir")]
        if not texts:
            raise CannotRun("the artifact has no StableHLO text")
        started = time.perf_counter()
        try:
            code = iree.compiler.compile_str(artifact.read(texts[0]), target_backends=["llvm-cpu"],
                                             input_type="stablehlo",
                                             extra_args=["--iree-llvmcpu-target-cpu=host"])  # fmt: skip
        except iree.compiler.CompilerToolError as error:
            raise CannotRun(f"it refuses the StableHLO: {str(error).splitlines()[0]}") from error
        self.artifact_bytes = len(code)
        config = iree.runtime.Config("local-task")
        module = iree.runtime.load_vm_flatbuffer(code, driver="local-task")
        # The program's own order: arguments, then weights.
        given = [iree.runtime.asdevicearray(config.device, x) for x in (*inputs(job.signature), *_weights(artifact))]
        self.load_seconds = time.perf_counter() - started
        self.call = lambda: np.asarray(_first(module.main(*given)))
        self.call()
        self.first_token_seconds = time.perf_counter() - started
        self.version = version("iree-base-compiler")

    def facts(self) -> dict[str, Any]:
        return {"version": self.version}

    def run(self, test: Test) -> Sample:
        return repeated(self.call)


def _found(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _first(result: Any) -> Any:
    return result[0] if isinstance(result, (tuple, list)) else result


def _weights(artifact: Artifact) -> list[np.ndarray]:
    """The program's weights, in the order of its inputs."""
    from ...runtime.xla_call import dtype_of

    data = artifact.view(artifact.manifest["weights"]["file"])
    made = []
    for entry in artifact.manifest["inputs"]:
        if entry.get("role") == "weight":
            for tensor in entry["tensors"]:
                dtype, shape = np.dtype(dtype_of(tensor["element"])), tuple(tensor["shape"])
                size = int(np.prod(shape)) * dtype.itemsize
                made.append(np.array(data[tensor["offset"] : tensor["offset"] + size]).view(dtype).reshape(shape))
    return made

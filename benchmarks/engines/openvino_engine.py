"""OpenVINO on files that it reads itself, on CPUs."""

from __future__ import annotations

import importlib.util
import time
from typing import Any

from ..tests import Test
from .base import Adapter, CannotRun, Job, Sample, inputs, repeated

READS = (".onnx", ".xml", ".tflite")


class OpenVINO(Adapter):
    name = "openvino"
    kinds = ("language", "function")

    @staticmethod
    def missing(job: Job) -> str:
        if job.path.suffix not in READS:
            return f"it reads no {job.path.suffix or 'folders'}: {', '.join(READS)} only"
        return "" if importlib.util.find_spec("openvino") else "not installed: pip install openvino"

    def __init__(self, job: Job) -> None:
        import openvino

        core = openvino.Core()
        self.artifact_bytes = job.path.stat().st_size
        started = time.perf_counter()
        settings = {"INFERENCE_NUM_THREADS": job.threads, "PERFORMANCE_HINT": "LATENCY",
                    "INFERENCE_PRECISION_HINT": "f32"}  # fmt: skip
        try:
            self.request = core.compile_model(str(job.path), "CPU", settings).create_infer_request()
        except RuntimeError as error:
            raise CannotRun(f"it refuses the model: {str(error).splitlines()[0]}") from error
        self.load_seconds = time.perf_counter() - started
        self.feed = inputs(job.signature)
        started = time.perf_counter()
        self.request.infer(self.feed)
        self.first_token_seconds = self.load_seconds + time.perf_counter() - started
        self.version = openvino.__version__

    def facts(self) -> dict[str, Any]:
        return {"version": self.version, "precision": "f32"}

    def run(self, test: Test) -> Sample:
        return repeated(lambda: self.request.infer(self.feed))

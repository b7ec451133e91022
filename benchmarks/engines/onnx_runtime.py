"""onnxruntime on ONNX files, on CPUs."""

from __future__ import annotations

import importlib.util
import time
from typing import Any

from ..tests import Test
from .base import Adapter, Job, Sample, inputs, repeated


class OnnxRuntime(Adapter):
    name = "onnxruntime"
    kinds = ("function",)

    @staticmethod
    def missing(job: Job) -> str:
        if job.path.suffix != ".onnx":
            return "it reads ONNX files only"
        return "" if importlib.util.find_spec("onnxruntime") else "not installed: pip install onnxruntime"

    def __init__(self, job: Job) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = job.threads, 1
        self.artifact_bytes = job.path.stat().st_size
        started = time.perf_counter()
        self.session = onnxruntime.InferenceSession(str(job.path), options, providers=["CPUExecutionProvider"])
        self.load_seconds = time.perf_counter() - started
        names = [i.name for i in self.session.get_inputs()]
        self.feed = dict(zip(names, inputs(job.signature)))
        started = time.perf_counter()
        self.session.run(None, self.feed)
        self.first_token_seconds = self.load_seconds + time.perf_counter() - started
        self.version = onnxruntime.__version__

    def facts(self) -> dict[str, Any]:
        return {"version": self.version}

    def run(self, test: Test) -> Sample:
        return repeated(lambda: self.session.run(None, self.feed))

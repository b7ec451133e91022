"""Adapters: one small file for each engine, and the table that says which there are."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from .base import Adapter

# By the name that --backends takes: the module, and the class in it.
TABLE: Mapping[str, tuple[str, str]] = {
    "c": ("ours", "C"),
    "xla": ("ours", "XLA"),
    "llama.cpp": ("llama_bench", "LlamaCpp"),
    "ik_llama.cpp": ("llama_bench", "IkLlamaCpp"),
    "llama-cpp-python": ("llama_cpp_python", "LlamaCppPython"),
    "jax": ("jax_jit", "JaxJit"),
    "torch": ("torch_engines", "TorchEager"),
    "torch.compile": ("torch_engines", "TorchCompile"),
    "aotinductor": ("torch_engines", "AOTInductor"),
    "onnxruntime": ("onnx_runtime", "OnnxRuntime"),
    "openvino": ("openvino_engine", "OpenVINO"),
    "iree": ("iree_engine", "IREE"),
}


def adapter(name: str) -> type[Adapter]:
    """The adapter of that name. Raises ValueError for another."""
    if name not in TABLE:
        raise ValueError(f"there is no backend {name!r}: choose of {', '.join(TABLE)}")
    module, cls = TABLE[name]
    found: type[Adapter] = getattr(import_module(f".{module}", __package__), cls)
    return found

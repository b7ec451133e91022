"""ONNX files: opened and checked through the `onnx` package, imported into a module with the entry `run`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto, TensorProto, external_data_helper

from ...errors import InfercError
from ...ir.graph import Graph, Module, make_input
from ...ir.types import symbols
from ..signature import described
from ..source import weight_facts
from .arrays import Array, Limited
from .onnx_fold import FOLDABLE
from .onnx_import import Frame, Importer, Tensor, dtype_named, symbols_for
from .onnx_operators import OPERATORS


@dataclass
class Source:
    """An ONNX model. Its initializers are weights, read from the file's map when asked for.

    `bounds` are those of symbolic dimensions by name, (1, 65536) where none are given. `static` are values of inputs
    that may decide shapes: those that do are compiled in and are no longer inputs.
    """

    model: ModelProto
    path: Path | None
    bounds: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    static: Mapping[str, np.ndarray] = field(default_factory=dict)
    kind: Literal["function"] = "function"
    trained: int = 0
    _limits: dict[str, tuple[int, int]] = field(default_factory=dict)  # that the model's operators set, by name
    _built: tuple[Module, Importer] | None = None

    @property
    def name(self) -> str:
        return self.model.graph.name or (self.path.stem if self.path else "model")

    @property
    def architecture(self) -> str:
        return "onnx"

    def build(self, context: int = 0, chunk: int = 0) -> Module:
        """Entry "run": the model's inputs by name -> its outputs. Raises InfercError for what cannot be imported."""
        while self._built is None:
            try:
                self._built = self._import()
            except Limited as limited:  # by a table of positions, perhaps: again, with the sizes that it has
                if limited.bounds == self._limits.get(limited.name):
                    raise InfercError(f"{self.path or self.name}: {limited}") from limited
                self._limits[limited.name] = limited.bounds
        return self._built[0]

    @property
    def baked(self) -> frozenset[str]:
        """The inputs whose values were compiled in."""
        self.build()
        assert self._built is not None
        return frozenset(self._built[1].baked)

    def _import(self) -> tuple[Module, Importer]:
        graph, where = self.model.graph, str(self.path or self.name)
        functions = {(_domain(f.domain), f.name, f.overload): f for f in self.model.functions}
        importer = Importer(where, functions, OPERATORS, FOLDABLE, self.static)
        opsets = {_domain(o.domain): o.version for o in self.model.opset_import}
        frame = Frame({}, opsets)
        for proto in graph.initializer:
            frame.values[proto.name] = importer.tensor(proto, self._reader(proto))
        if graph.sparse_initializer:
            raise InfercError(f"{where}: sparse initializers are not supported; store them as dense tensors")
        inputs = [i for i in graph.input if i.name not in frame.values]
        try:
            types = dict(symbols_for(inputs, self.bounds, self._limits))
        except InfercError as error:
            raise InfercError(f"{where}: {error}") from error
        sizes = {s.name for t in types.values() for d in t.shape for s in symbols(d)}
        texts = {d.dim_param for i in inputs for d in i.type.tensor_type.shape.dim}
        if unknown := sorted(self.bounds.keys() - sizes - texts):
            raise InfercError(f"{where}: no input has a size {unknown[0]!r:.40}; these have names: "
                              f"{', '.join(sorted(sizes)) or 'none'}")  # fmt: skip
        nodes = {name: make_input(name, "arg", t) for name, t in types.items()}
        frame.values.update({name: Tensor(array=Array(n[0], importer.body)) for name, n in nodes.items()})
        importer.run(graph.node, frame)
        outputs = []
        for o in graph.output:
            if o.name not in frame.values:
                raise InfercError(f"{where}: no node makes the output {o.name!r}")
            outputs.append(importer.array(frame.values[o.name]).value)
        weights = tuple(importer.body.inputs.values())
        whole = Graph("run", (*nodes.values(), *weights), tuple(outputs), tuple(o.name for o in graph.output))
        reached = set(Graph("run", (), whole.outputs).nodes())
        kept = tuple(n for n in whole.inputs if n in reached or n in nodes.values() and not _gone(n, importer))
        entry = Graph("run", kept, whole.outputs, whole.output_names)
        used = {n.attr("name") for n in kept}
        module = Module({"run": entry}, {k: w for k, w in importer.body.weights.items() if k in used})
        return module, importer

    def _reader(self, proto: TensorProto) -> Callable[[], np.ndarray] | None:
        """How a tensor of another file is read: through a map, no byte before it is asked for."""
        if not external_data_helper.uses_external_data(proto):
            return None
        if self.path is None:
            raise InfercError(f"{self.name}: the tensor {proto.name!r} is in another file; compile by the file's path")
        entry = {e.key: e.value for e in proto.external_data}
        file = self.path.parent / entry["location"]
        if not file.resolve().is_relative_to(self.path.parent.resolve()):
            raise InfercError(f"{self.path}: the tensor {proto.name!r} points outside the model's folder")
        dtype = dtype_named(proto.data_type, f"{self.path}: the tensor {proto.name!r}")
        count = int(np.prod(proto.dims, dtype=np.int64))
        size, start = count * dtype.block_bytes, int(entry.get("offset", 0))
        if not file.is_file() or file.stat().st_size < start + size:
            raise InfercError(f"{file}: too short for the tensor {proto.name!r}; download the model again")
        plain = onnx.helper.tensor_dtype_to_np_dtype(proto.data_type)
        return lambda: np.memmap(file, np.uint8, "r", start, (size,)).view(plain).reshape(tuple(proto.dims))

    def tokenizer(self) -> None:
        return None

    def facts(self) -> dict[str, Any]:
        module = self.build()
        return weight_facts(module.weights.values()) | {"signature": described(module.entries["run"])}


def _gone(node: Any, importer: Importer) -> bool:
    return node.attr("role") == "arg" and node.attr("name") in importer.baked


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def load(path: Path | str, **options: Any) -> Source:
    """Opens an ONNX file; tensors in other files stay there. `options` are fields of `Source`.

    Raises InfercError for a file that is missing, corrupt, or no model.
    """
    path = Path(path)
    try:
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise InfercError(f"{path}: cannot be opened ({error.strerror}); give the path of an .onnx model") from error
    except DecodeError as error:
        raise InfercError(f"{path}: is no ONNX model; export or download it again") from error
    if not model.graph.node and not model.graph.output:
        raise InfercError(f"{path}: holds no graph; export or download it again")
    return Source(model, path, **options)


def opened(model: ModelProto, examples: Sequence[Any] = (), weights: Any = None,
           dynamic: Mapping[str, tuple[int, int]] | None = None) -> Source:  # fmt: skip
    """A model in memory, with its tensors inside; `dynamic` bounds its symbolic dimensions."""
    if examples or weights is not None:
        raise InfercError("an ONNX model has its inputs and weights inside: pass it alone, or with dynamic")
    return Source(model, None, dict(dynamic or {}))


__all__ = ["Source", "load", "opened"]

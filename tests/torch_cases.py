"""torch's own samples of its operations (OpInfo), exported, imported, and run through the interpreter and C."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch.testing._internal.common_methods_invocations import op_db

from inferc.compiler.frontends import torch_export
from inferc.errors import InfercError

from .many_functions import Function, run_functions

SAMPLES = 3  # of each operation, its first
RTOL, ATOL = 1e-4, 1e-5
DTYPES = (torch.float32, torch.int64, torch.bool)
# What no compiled function can give: random numbers, memory as it is, views of memory.
EXCLUDED = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "empty_permuted", "rand_like",
            "randint", "randint_like", "randn", "randn_like", "bernoulli", "multinomial", "normal", "uniform",
            "cauchy", "exponential", "geometric", "log_normal", "as_strided"}  # fmt: skip


class Samples(torch.nn.Module):
    """An operation applied to each of its samples; tensors are arguments, the rest is fixed."""

    def __init__(self, op: Any, structure: Any, fixed: list[Any]) -> None:
        super().__init__()
        self.op, self.structure, self.fixed = op, structure, fixed

    def forward(self, *tensors: Any) -> list[Any]:
        given = iter(tensors)
        leaves = [next(given) if leaf is None else leaf[0] for leaf in self.fixed]
        results: list[Any] = []
        for sample, args, kwargs in pytree.tree_unflatten(leaves, self.structure):
            made = self.op(sample, *args, **kwargs)
            results += [r for r in pytree.tree_leaves(made) if isinstance(r, torch.Tensor)]
        return results


@dataclass(frozen=True)
class Outcome:
    """Of one operation: "" if all its samples are right, else what was refused or is wrong."""

    name: str
    refused: str = ""
    wrong: str = ""


def names() -> list[str]:
    """The operations that have samples, but for those that cannot be compared."""
    found = {o.formatted_name: o for o in op_db}
    return sorted(n for n, o in found.items() if o.name.split(".")[-1] not in EXCLUDED and "rand" not in o.name)


def outcomes(wanted: Collection[str]) -> dict[str, Outcome]:
    """The outcome of each of these operations."""
    found: dict[str, Outcome] = {}
    functions, expected = [], {}
    for op in {o.formatted_name: o for o in op_db if o.formatted_name in wanted}.values():
        name = op.formatted_name
        try:
            program, inputs, results = _exported(op)
            module = torch_export.opened(program).build()
        except InfercError as error:
            found[name] = Outcome(name, str(error).removeprefix("program: "))
            continue
        except Exception as error:  # torch's export fails in many ways
            found[name] = Outcome(name, f"torch.export: {type(error).__name__}")
            continue
        expected[name] = results
        entry = module.entries["run"]
        arrays = [x.detach().contiguous().numpy() for x in inputs]
        functions.append(Function(name, module, dict(zip((n.attr("name") for n in entry.inputs_of("arg")), arrays))))
    for name, by, outputs in run_functions(functions):
        if name in found:
            continue
        if isinstance(outputs, str):
            found[name] = Outcome(name, outputs)
        elif problem := _compared(list(outputs.values()), expected[name]):
            found[name] = Outcome(name, wrong=f"by {by}: {problem}")
    return {name: found.get(name, Outcome(name)) for name in wanted}


def _exported(op: Any) -> tuple[Any, list[Any], list[Any]]:
    torch.manual_seed(0)
    np.random.seed(0)
    dtype = next((d for d in DTYPES if d in op.dtypes), None)
    if dtype is None:
        raise InfercError("takes none of float32, int64, bool")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        samples = [s for s, _ in zip(list(op.sample_inputs("cpu", dtype)), range(SAMPLES))]
        leaves, structure = pytree.tree_flatten([(s.input, list(s.args), dict(s.kwargs)) for s in samples])
        tensors = [x for x in leaves if isinstance(x, torch.Tensor)]
        fixed = [None if isinstance(x, torch.Tensor) else (x,) for x in leaves]
        model = Samples(op.op, structure, fixed)
        with torch.no_grad():
            results = [r.clone() for r in model(*(t.clone() for t in tensors))]
            if not results or any(r.is_sparse or r.is_complex() for r in results):
                raise InfercError("gives no dense tensors of real numbers")
            return torch.export.export(model, tuple(tensors), strict=False), tensors, results


def _compared(got: list[np.ndarray], wanted: list[Any]) -> str:
    for i, (a, b) in enumerate(zip(got, wanted, strict=True)):
        if b.dtype == torch.bfloat16:
            a, b = torch.from_numpy(a).view(b.dtype).float().numpy(), b.float()
        b = b.numpy()
        if a.dtype != b.dtype or a.shape != b.shape:
            return f"result {i} is {a.dtype}{list(a.shape)}, not {b.dtype}{list(b.shape)}"
        if not np.allclose(a, b, rtol=RTOL, atol=ATOL, equal_nan=True):
            worst = np.nanmax(np.abs(a.astype(np.float64) - b.astype(np.float64)))
            return f"result {i} differs by {worst:.3g}"
    return ""

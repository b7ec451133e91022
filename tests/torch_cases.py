"""torch's own samples of its operations (OpInfo), exported, imported, and run through the interpreter and C."""

from __future__ import annotations

import re
import textwrap
import warnings
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch.testing._internal.common_methods_invocations import op_db

from inferc.compiler.frontends import torch_complex, torch_export
from inferc.errors import InfercError

from .many_functions import Function, run_functions

SAMPLES = 3  # of each operation, its first
RTOL, ATOL = 1e-4, 1e-5
EXPORT_ERRORS = (RuntimeError, AssertionError, ValueError, TypeError, KeyError, AttributeError)  # of torch's tracing
DTYPES = (torch.float32, torch.int64, torch.bool, torch.complex64)
COMPLEX = ":complex64"  # ends the name of an operation that is tested with complex numbers too
# What no compiled function can give: random numbers, memory as it is, views of memory.
EXCLUDED = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "empty_permuted", "rand_like",
            "randint", "randint_like", "randn", "randn_like", "bernoulli", "multinomial", "normal", "uniform",
            "cauchy", "exponential", "geometric", "log_normal", "as_strided"}  # fmt: skip


class Samples(torch.nn.Module):
    """An operation applied to each of its samples; tensors are arguments, the rest is fixed.

    Complex numbers are arguments and results as pairs of real ones. `processed` makes results comparable whose signs
    are nobody's in particular, such as those of eigenvectors.
    """

    def __init__(self, op: Any, structure: Any, fixed: list[Any], processed: list[Any]) -> None:
        super().__init__()
        self.op, self.structure, self.fixed, self.processed = op, structure, fixed, processed

    def forward(self, *tensors: Any) -> list[Any]:
        given = iter(tensors)
        leaves = [leaf[0] if isinstance(leaf, tuple) else _as(next(given), leaf) for leaf in self.fixed]
        results: list[Any] = []
        for (sample, args, kwargs), processed in zip(pytree.tree_unflatten(leaves, self.structure), self.processed):
            made = processed(self.op(sample, *args, **kwargs))
            results += [r for r in pytree.tree_leaves(made) if isinstance(r, torch.Tensor)]
        return [torch.view_as_real(r.resolve_conj()) if r.is_complex() else r for r in results]


def _as(tensor: Any, dtype: Any) -> Any:
    return torch.view_as_complex(tensor) if dtype.is_complex else tensor


@dataclass(frozen=True)
class Outcome:
    """Of one operation: "" if all its samples are right, else what was refused or is wrong."""

    name: str
    refused: str = ""
    wrong: str = ""


def names() -> list[str]:
    """The operations that have samples, but for those that cannot be compared."""
    found = {o.formatted_name: o for o in op_db}
    kept = sorted(n for n, o in found.items() if o.name.split(".")[-1] not in EXCLUDED and "rand" not in o.name)
    return kept + [n + COMPLEX for n in kept
                   if torch.complex64 in found[n].dtypes and found[n].name in torch_complex.COMPLEX]  # fmt: skip


def outcomes(wanted: Collection[str]) -> dict[str, Outcome]:
    """The outcome of each of these operations."""
    found: dict[str, Outcome] = {}
    functions, expected, models = [], {}, {}
    known = {o.formatted_name: o for o in op_db}
    for name in wanted:
        op = known[name.removesuffix(COMPLEX)]
        try:
            program, inputs, results, model = _exported(op, name.endswith(COMPLEX))
        except InfercError as error:
            found[name] = Outcome(name, str(error))
            continue
        except EXPORT_ERRORS as error:
            found[name] = Outcome(name, f"torch.export: {type(error).__name__}")
            continue
        try:
            module = torch_export.opened(program).build()
        except InfercError as error:
            found[name] = Outcome(name, str(error).removeprefix("program: "))
            continue
        expected[name], models[name] = results, (model, inputs)
        entry = module.entries["run"]
        arrays = [x.detach().contiguous().numpy() for x in inputs]
        functions.append(Function(name, module, dict(zip((n.attr("name") for n in entry.inputs_of("arg")), arrays))))
    for name, by, outputs in run_functions(functions):
        if name in found:
            continue
        if isinstance(outputs, str):
            found[name] = Outcome(name, outputs)
        elif problem := _compared(list(outputs.values()), expected[name]):
            exact = _in_f64(*models[name])
            rounded = [e.to(r.dtype) for e, r in zip(exact or [], expected[name])]
            if not rounded or _compared(list(outputs.values()), rounded):
                found[name] = Outcome(name, wrong=f"by {by}: {problem}")
    return {name: found.get(name, Outcome(name)) for name in wanted}


def coverage(found: Mapping[str, Outcome]) -> str:
    """docs/pytorch_coverage.md: the operations that pass, and why others are refused."""
    passed = sorted(n for n, o in found.items() if not o.refused and not o.wrong)
    refused: dict[str, list[str]] = defaultdict(list)
    for name, outcome in sorted(found.items()):
        if outcome.refused:
            refused[_short(outcome.refused)].append(name)
    lines = [
        "# PyTorch operations", "",
        "Generated by `pytest tests/test_torch_opinfo.py -m slow --update-golden` from torch's own samples of its "
        f"operations (OpInfo of torch {torch.__version__.split('+')[0]}),",
        f"the first {SAMPLES} of each, in float32 where the operation takes it, through the interpreter and through "
        f"generated C, within {RTOL:g} relative and {ATOL:g} of torch's result, or of that in f64.",
        f"Names with {COMPLEX} are operations on complex numbers, which go in and out as pairs of real ones.",
        f"Of {len(found)} operations {len(passed)} pass, {sum(map(len, refused.values()))} are refused, none is wrong. "
        "Random operations are left out.", "", "## Pass", "",
        *textwrap.wrap(", ".join(f"`{n}`" for n in passed), 118, break_on_hyphens=False), "", "## Refused", "",
        "| why | operations |", "|---|---|",
        *(f"| {why} | {', '.join(n)} |" for why, n in sorted(refused.items(), key=lambda r: (-len(r[1]), r[0]))),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _short(refusal: str) -> str:
    """A refusal without what is of one sample alone."""
    if "torch cannot decompose" in refusal:
        return "torch cannot decompose the program"
    operation = re.search(r"the operation (\S+) is not supported", refusal)
    return f"no rule for {operation[1].split('.')[0]}" if operation else refusal.split(": ")[-1][:110].replace("|", "/")


def claimed() -> list[str]:
    """The operations that the page says pass."""
    text = (Path(__file__).parent.parent / "docs/pytorch_coverage.md").read_text()
    return re.findall(r"`([^` ]+)`", text.split("## Pass")[1].split("## Refused")[0])


def _exported(op: Any, is_complex: bool = False) -> tuple[Any, list[Any], list[Any], Any]:
    torch.manual_seed(0)
    np.random.seed(0)
    dtype = torch.complex64 if is_complex else next((d for d in DTYPES if d in op.dtypes), None)
    if dtype is None:
        raise InfercError("takes none of float32, int64, bool, complex64")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        samples = [s for s, _ in zip(list(op.sample_inputs("cpu", dtype)), range(SAMPLES))]
        leaves, structure = pytree.tree_flatten([(s.input, list(s.args), dict(s.kwargs)) for s in samples])
        tensors = [torch.view_as_real(x.resolve_conj().contiguous()) if x.is_complex() else x
                   for x in leaves if isinstance(x, torch.Tensor)]  # fmt: skip
        fixed = [x.dtype if isinstance(x, torch.Tensor) else (x,) for x in leaves]
        model = Samples(op.op, structure, fixed, [s.output_process_fn_grad for s in samples])
        with torch.no_grad():
            results = [r.clone() for r in model(*(t.clone() for t in tensors))]
            if not results or any(r.is_sparse for r in results):
                raise InfercError("gives no dense tensors")
            return torch.export.export(model, tuple(tensors), strict=False), tensors, results, model


def _in_f64(model: Any, tensors: list[Any]) -> list[Any] | None:
    """What torch gives in f64, for results that its f32 is too far from; None where it cannot."""
    try:
        with torch.no_grad():
            return list(model(*(t.double() if t.is_floating_point() else t.clone() for t in tensors)))
    except EXPORT_ERRORS:
        return None


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

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
TRIED = 12  # where some of those are refused, others among its first
RTOL, ATOL = 1e-4, 1e-5
EXPORT_ERRORS = (RuntimeError, AssertionError, ValueError, TypeError, KeyError, AttributeError)  # of torch's tracing
DTYPES = (torch.float32, torch.int64, torch.bool, torch.complex64)
COMPLEX = ":complex64"  # ends the name of an operation that is tested with complex numbers too
# What no compiled function can give: random numbers, memory as it is, views of memory.
EXCLUDED = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "empty_permuted", "rand_like",
            "randint", "randint_like", "randn", "randn_like", "bernoulli", "multinomial", "normal", "uniform",
            "cauchy", "exponential", "geometric", "log_normal", "as_strided"}  # fmt: skip


class Samples(torch.nn.Module):
    """An operation applied to each of its samples; tensors are arguments, the rest is fixed. `processed` makes results
    comparable whose signs are nobody's in particular, such as those of eigenvectors.
    """

    def __init__(self, op: Any, structure: Any, fixed: list[Any], processed: list[Any]) -> None:
        super().__init__()
        self.op, self.structure, self.fixed, self.processed = op, structure, fixed, processed

    def forward(self, *tensors: Any) -> list[Any]:
        given = iter(tensors)
        leaves = [leaf[0] if isinstance(leaf, tuple) else next(given) for leaf in self.fixed]
        results: list[Any] = []
        for (sample, args, kwargs), processed in zip(pytree.tree_unflatten(leaves, self.structure), self.processed):
            made = processed(self.op(sample, *args, **kwargs))
            results += [r for r in pytree.tree_leaves(made) if isinstance(r, torch.Tensor)]
        return [r.resolve_conj() for r in results]


@dataclass(frozen=True)
class Outcome:
    """Of one operation: "" if its samples are right, else what was refused or is wrong. `partly` is why some samples
    are left out, where others are right; `random` operations are compiled, and have no result to compare with."""

    name: str
    refused: str = ""
    wrong: str = ""
    partly: str = ""
    random: bool = False


@dataclass(frozen=True)
class Case:
    """An operation on samples: the module, its inputs, torch's results, and torch's model."""

    module: Any
    inputs: list[Any]
    results: list[Any]
    model: Any


def names() -> list[str]:
    """The operations that have samples, but for those that cannot be compared."""
    found = {o.formatted_name: o for o in op_db}
    kept = sorted(n for n, o in found.items() if o.name.split(".")[-1] not in EXCLUDED and "rand" not in o.name)
    return kept + [n + COMPLEX for n in kept
                   if torch.complex64 in found[n].dtypes and found[n].name in torch_complex.COMPLEX]  # fmt: skip


def outcomes(wanted: Collection[str]) -> dict[str, Outcome]:
    """The outcome of each of these operations."""
    found: dict[str, Outcome] = {}
    functions, cases = [], {}
    known = {o.formatted_name: o for o in op_db}
    for name in wanted:
        try:
            case, found[name] = _case(known[name.removesuffix(COMPLEX)], name)
        except InfercError as error:
            found[name] = Outcome(name, str(error))
            continue
        if case is not None:
            entry = case.module.entries["run"]
            arrays = [_array(x) for x in case.inputs]
            given = dict(zip((n.attr("name") for n in entry.inputs_of("arg")), arrays))
            functions.append(Function(name, case.module, given))
            cases[name] = case
    for name, by, outputs in run_functions(functions):
        if found[name].refused or found[name].wrong:
            continue
        case = cases[name]
        if isinstance(outputs, str):
            found[name] = Outcome(name, outputs)
        elif problem := _compared(list(outputs.values()), case.results):
            exact = _in_f64(case.model, case.inputs)
            rounded = [e.to(r.dtype) for e, r in zip(exact or [], case.results)]
            if not rounded or _compared(list(outputs.values()), rounded):
                found[name] = Outcome(name, wrong=f"by {by}: {problem}")
    return found


def _case(op: Any, name: str) -> tuple[Case | None, Outcome]:
    """An operation's samples as a program, those that are refused left out. Raises InfercError where all are."""
    samples = _samples(op, name.endswith(COMPLEX))
    try:
        case = _imported(op, samples[:SAMPLES])
        if not _draws(case):
            return case, Outcome(name)
    except InfercError as error:
        if len(samples) < 2:
            raise
        refusal = error
    kept, why, random = [], [], False
    for sample in samples:
        if len(kept) == SAMPLES:
            break
        try:
            random |= (draws := _draws(_imported(op, [sample])))
            kept += [] if draws else [sample]
        except InfercError as error:
            why.append(str(error))
    if not kept and random:
        return None, Outcome(name, random=True)
    if not kept:
        raise refusal
    return _imported(op, kept), Outcome(name, partly=why[0] if why else "random", random=random and not why)


def _draws(case: Case) -> bool:
    return len(case.module.entries["run"].inputs_of("arg")) > len(case.inputs)


def coverage(found: Mapping[str, Outcome]) -> str:
    """docs/pytorch_coverage.md: the operations that pass, wholly or in part, and why others are refused."""
    passed = sorted(n for n, o in found.items() if not o.refused and not o.wrong and not (o.random and not o.partly))
    random = sorted(n for n, o in found.items() if o.random and not o.partly)
    refused, partly = (
        _by_reason({n: _short(getattr(o, kind)) for n, o in sorted(found.items()) if getattr(o, kind)})
        for kind in ("refused", "partly")
    )
    lines = [
        "# PyTorch operations", "",
        "Generated by `pytest tests/test_torch_opinfo.py -m slow --update-golden` from torch's own samples of its "
        f"operations (OpInfo of torch {torch.__version__.split('+')[0]}),",
        f"the first {SAMPLES} of each (or of the first {TRIED}, those that are not refused), in float32 where the "
        "operation takes it, through the interpreter and through "
        f"generated C, within {RTOL:g} relative and {ATOL:g} of torch's result, or of that in f64.",
        f"Names with {COMPLEX} are operations on complex numbers. Those that begin with `torch.export:` below are "
        "errors of torch's own export.",
        f"Of {len(found)} operations {len(passed)} pass, {sum(map(len, partly.values()))} of them with some of these "
        f"samples refused; {len(random)} are random; {sum(map(len, refused.values()))} are refused, none is wrong.",
        "", "## Pass", "",
        *textwrap.wrap(", ".join(f"`{n}`" for n in passed), 118, break_on_hyphens=False), "",
        "## Refused in part", "", "Other samples of these pass.", "", *_table(partly), "",
        "## Random", "",
        "Compiled, from a seed that is an argument; `tests/test_torch_random.py` has the distributions of random "
        "operations.", "", ", ".join(f"`{n}`" for n in random), "", "## Refused", "", *_table(refused),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _by_reason(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for name, reason in reasons.items():
        found[reason].append(name)
    return found


def _table(rows: Mapping[str, list[str]]) -> list[str]:
    ordered = sorted(rows.items(), key=lambda r: (-len(r[1]), r[0]))
    return ["| why | operations |", "|---|---|", *(f"| {why} | {', '.join(n)} |" for why, n in ordered)]


def _short(refusal: str) -> str:
    """A refusal without what is of one sample alone."""
    if "torch cannot decompose" in refusal:
        return "torch cannot decompose the program"
    operation = re.search(r"the operation (\S+) is not supported", refusal)
    if operation:
        advice = refusal.split(" is not supported; ")[-1]
        return "it has no rule" if advice.startswith("docs/") else advice
    return ("torch.export: " if refusal.startswith("torch.export") else "") + refusal.split(": ")[-1].replace("|", "/")


def claimed() -> list[str]:
    """The operations that the page says pass."""
    text = (Path(__file__).parent.parent / "docs/pytorch_coverage.md").read_text()
    return re.findall(r"`([^` ]+)`", text.split("## Pass")[1].split("## Refused")[0])


def _samples(op: Any, is_complex: bool) -> list[Any]:
    torch.manual_seed(0)
    np.random.seed(0)
    dtype = torch.complex64 if is_complex else next((d for d in DTYPES if d in op.dtypes), None)
    if dtype is None:
        raise InfercError("takes none of float32, int64, bool, complex64")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return [s for s, _ in zip(list(op.sample_inputs("cpu", dtype)), range(TRIED))]
        except EXPORT_ERRORS as error:
            raise InfercError(f"has no samples here ({type(error).__name__})") from error


def _imported(op: Any, samples: list[Any]) -> Case:
    """The operation on these samples, exported and imported. Raises InfercError for what is refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        leaves, structure = pytree.tree_flatten([(s.input, list(s.args), dict(s.kwargs)) for s in samples])
        given = [x for x in leaves if isinstance(x, torch.Tensor)]
        tensors = [x.resolve_conj().contiguous() if x.is_complex() else x for x in given]
        fixed = [x.dtype if isinstance(x, torch.Tensor) else (x,) for x in leaves]
        model = Samples(op.op, structure, fixed, [s.output_process_fn_grad for s in samples])
        try:
            with torch.no_grad():
                torch.manual_seed(0)
                results = [r.clone() for r in model(*(t.clone() for t in tensors))]
                if not results or any(r.is_sparse for r in results):
                    raise InfercError("gives no dense tensors")
                program = torch.export.export(model, tuple(tensors), strict=False)
        except EXPORT_ERRORS as error:
            raise InfercError(f"torch.export: {type(error).__name__}") from error
    return Case(torch_export.opened(program).build(), tensors, results, model)


def _array(tensor: Any) -> np.ndarray:
    """As the module takes it: complex numbers as pairs."""
    plain = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    array: np.ndarray = plain.detach().contiguous().numpy()
    return array


def _in_f64(model: Any, tensors: list[Any]) -> list[Any] | None:
    """What torch gives in f64, for results that its f32 is too far from; None where it cannot."""
    try:
        with torch.no_grad():
            return list(model(*(_wide(t) for t in tensors)))
    except EXPORT_ERRORS:
        return None


def _wide(tensor: Any) -> Any:
    wide = torch.complex128 if tensor.is_complex() else torch.float64 if tensor.is_floating_point() else tensor.dtype
    return tensor.to(wide, copy=True)


def _compared(got: list[np.ndarray], wanted: list[Any]) -> str:
    for i, (a, b) in enumerate(zip(got, wanted, strict=True)):
        if b.dtype == torch.bfloat16:
            a, b = torch.from_numpy(a).view(b.dtype).float().numpy(), b.float()
        b = _array(b.resolve_neg())
        if a.dtype != b.dtype or a.shape != b.shape:
            return f"result {i} is {a.dtype}{list(a.shape)}, not {b.dtype}{list(b.shape)}"
        if not np.allclose(a, b, rtol=RTOL, atol=ATOL, equal_nan=True):
            worst = np.nanmax(np.abs(a.astype(np.float64) - b.astype(np.float64)))
            return f"result {i} differs by {worst:.3g}"
    return ""

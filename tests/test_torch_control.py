"""Control flow, complex numbers and views of memory in programs of torch, in the interpreter and in C."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from inferc.errors import InfercError

torch = pytest.importorskip("torch")

from torch._higher_order_ops import map as over_rows  # noqa: E402
from torch._higher_order_ops import scan, while_loop  # noqa: E402

from inferc.compiler.frontends import refused, torch_complex, torch_export  # noqa: E402

from .many_functions import Function, run_functions  # noqa: E402

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("quick_compiler")]


class Model(torch.nn.Module):
    """A function of a tensor and the model's weights."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function, self.linear = function, torch.nn.Linear(6, 6)

    def forward(self, x: Any) -> Any:
        return self.function(self, x)


def _cond(m: Any, x: Any) -> Any:
    return torch.cond(x.sum() > 0, lambda x: (m.linear(x) * 2, x.sum()), lambda x: (x.cos(), x.mean()), (x,))


def _other_branch(m: Any, x: Any) -> Any:
    return torch.cond(x.sum() > 1e6, lambda x: m.linear(x), lambda x: x - 1, (x,))


def _nested(m: Any, x: Any) -> Any:
    def inner(x: Any) -> Any:
        return torch.cond(x[0, 0] > 0, lambda x: x.sin(), lambda x: x.cos() + 1, (x,))

    return torch.cond(x.sum() > 0, inner, lambda x: m.linear(x), (x,))


def _while(m: Any, x: Any) -> Any:
    start = torch.zeros((), dtype=torch.int64)
    return while_loop(lambda i, y: (i < 5) & (y.abs().sum() < 1e4), lambda i, y: (i + 1, m.linear(y) * 3), (start, x))


def _scan(m: Any, x: Any) -> Any:
    def step(carry: Any, row: Any) -> Any:
        new = torch.tanh(m.linear(carry) + row)
        return new, (new * 2).sum(-1)

    return scan(step, torch.zeros(6), x, dim=0)


def _scan_backwards(m: Any, x: Any) -> Any:
    return scan(lambda carry, column: (carry + column, carry * column), torch.ones(4), x, dim=1, reverse=True)


def _rotary(m: Any, x: Any) -> Any:
    """Rotary positions as many models write them."""
    turned = torch.view_as_complex(x.reshape(4, 3, 2))
    angles = torch.outer(torch.arange(4.0), torch.tensor([1.0, 0.1, 0.01]))
    return torch.view_as_real(turned * torch.polar(torch.ones_like(angles), angles)).flatten(1)


def _spectrogram(m: Any, x: Any) -> Any:
    signal = torch.nn.functional.pad(x.reshape(-1), (0, 40))
    found = torch.stft(signal, 16, 4, window=torch.hann_window(16), return_complex=True)
    return found.abs() ** 2, torch.istft(found, 16, 4, window=torch.hann_window(16), length=64)


def _filtered(m: Any, x: Any) -> Any:
    spectrum = torch.fft.rfft2(x, norm="ortho")
    return torch.fft.irfft2(spectrum * torch.exp(1j * torch.arange(4.0)), s=x.shape, norm="ortho")


def _bags(m: Any, x: Any) -> Any:
    table, offsets = m.linear.weight, torch.tensor([0, 3, 3, 5])
    places = (x.reshape(-1)[:9].abs() * 3).long().clamp(max=5)
    return [torch.nn.functional.embedding_bag(places, table, offsets, mode=mode, padding_idx=0)
            for mode in ("sum", "mean", "max")]  # fmt: skip


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "cond": _cond, "cond's other branch": _other_branch, "nested": _nested, "while": _while,
    "scan": _scan, "scan backwards": _scan_backwards,
    "map": lambda m, x: over_rows(lambda row, other: m.linear(row) * other.sum(0), x, x.cos()),
    "rotary": _rotary, "spectrogram": _spectrogram, "filtered": _filtered, "bags": _bags,
    "distances": lambda m, x: torch.nn.functional.pdist(x), "windows": lambda m, x: x.as_strided((3, 4), (2, 3), 1),
    "masked scatter": lambda m, x: x.masked_scatter(x > 0, -x.abs() * 7),
    "put by a mask": lambda m, x: torch.index_put(x, (x > 0,), torch.tensor(2.5)),
    "solve": lambda m, x: torch.linalg.solve(m.linear.weight + 2 * torch.eye(6), x.T),
    "symmetric": lambda m, x: torch.linalg.eigvalsh(x @ x.T),
    "low rank": lambda m, x: torch.linalg.svdvals(x),
    "statistics of the batch": lambda m, x: torch.nn.functional.batch_norm(x, None, None, training=True),
    "numbers": lambda m, x: (x * x[0, 0].item() + (x[0].argmax().item() + 1) * 2, x[:, x[0].argmax().item()], len(x)),
    "double transform": lambda m, x: torch.fft.rfft(x.double()), "complex": lambda m, x: (torch.fft.fft(x) + 1j).acos(),
    "repeats": lambda m, x: torch.repeat_interleave(x, torch.tensor([0, 2, 1, 3]), 0, output_size=6),
    "searched": lambda m, x: torch.bucketize(x, torch.tensor([-1.0, 0.0, 0.5])),
}  # fmt: skip


QUICK = ("cond", "while", "scan", "rotary", "bags", "solve")  # in every run


@pytest.mark.parametrize("names", [QUICK, pytest.param(tuple(n for n in FUNCTIONS if n not in QUICK),
                                                       marks=pytest.mark.slow)], ids=["some", "others"])  # fmt: skip
def test_programs(names: tuple[str, ...]) -> None:
    torch.manual_seed(3)
    x = torch.randn(4, 6)
    functions, wanted = [], {}
    for name in names:
        function = FUNCTIONS[name]
        model = Model(function).eval()
        with torch.no_grad():
            expected = model(x.clone())
            module = torch_export.opened(torch.export.export(model, (x,), strict=False)).build()
        found = map(torch.as_tensor, torch.utils._pytree.tree_leaves(expected))
        wanted[name] = [(torch.view_as_real(e) if e.is_complex() else e).numpy() for e in found]
        functions.append(Function(name, module, {"x": x.numpy()}))
    ran = set()
    for name, by, results in run_functions(functions):
        assert isinstance(results, dict), (name, results)
        for ours, theirs in zip(results.values(), wanted[name], strict=True):
            assert ours.dtype == theirs.dtype and ours.shape == theirs.shape, (name, by)
            np.testing.assert_allclose(ours, theirs, 1e-4, 1e-5, err_msg=f"{name} by {by}")
        ran.add((name, by))
    assert len(ran) == 2 * len(names)


def test_all_of_core_aten_is_decided() -> None:
    """Each operation of torch's list has a rule, is decomposed, computes a size, or is refused with a way out."""
    decided = {*torch_export.TABLE, *torch_complex.COMPLEX, *refused.TORCH}
    decomposed = torch_export.decompositions()
    core, missing = 0, set()
    for full in torch._C._dispatch_get_all_op_names():
        name, _, overload = full.removeprefix("aten::").partition(".")
        if not full.startswith("aten::") or name.startswith("sym_") or name.endswith("_"):  # programs write in no place
            continue
        operation = getattr(getattr(torch.ops.aten, name, None), overload or "default", None)
        if operation is None or torch.Tag.core not in operation.tags:
            continue
        core += 1
        if not {name, f"{name}.{overload}"} & decided and operation not in decomposed:
            missing.add(full)
    assert core > 150 and not missing


@pytest.mark.parametrize("function, message", [
    (lambda m, x: torch.zeros(x.sum().int().abs().item()), "full.*shape of its result depends on the data"),
    (lambda m, x: torch.linalg.eigvals(x[:, :4]).real, "linalg_eig.* not supported; eigenvalues of a matrix that"),
    (lambda m, x: torch.view_as_complex(x.reshape(4, 3, 2)).erf().real, "erf.* of complex numbers is not supported"),
    (lambda m, x: x.kthvalue(x[0, 0].int().item())[0], "kthvalue.*k must be a number that does not depend on the data"),
    (lambda m, x: torch.repeat_interleave(x, (x[:, 0] > 0).long(), 0), "repeat_interleave.*give output_size"),
    (lambda m, x: x.T.as_strided((2, 2), (1, 1)), "as_strided.*memory in another order is not supported; call contig"),
    (lambda m, x: over_rows(lambda row: row + torch.rand(6), x), "rand.*inside a loop would be the same in each turn"),
], ids=["size", "eig", "erf", "late", "repeats", "strides", "rand"])  # fmt: skip
def test_refusals_name_the_operation_and_the_line(function: Callable[..., Any], message: str) -> None:
    program = torch.export.export(Model(function), (torch.randn(4, 6),), strict=False)
    with pytest.raises(InfercError, match=message) as caught:
        torch_export.opened(program).build()
    assert "test_torch_control.py" in str(caught.value) and "\n" not in str(caught.value)

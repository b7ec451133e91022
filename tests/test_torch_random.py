"""Random operations of torch: their distributions, from a seed that programs take as an argument."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import inferc
from inferc.ir.interpret import interpret

torch = pytest.importorskip("torch")

from inferc.compiler.frontends import torch_export  # noqa: E402

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("quick_compiler")]
N = 2000


class Model(torch.nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Any) -> Any:
        return self.function(x)


# Of each the mean and the standard deviation, for x of ones.
MOMENTS: dict[str, tuple[Callable[[Any], Any], float, float]] = {
    "rand": (lambda x: torch.rand(N), 0.5, 12**-0.5),
    "randn": (lambda x: torch.randn_like(x) * 2 + 1, 1, 2),
    "halves": (lambda x: torch.rand(N, dtype=torch.float16).float(), 0.5, 12**-0.5),
    "doubles": (lambda x: torch.randn(N, dtype=torch.float64), 0, 1),
    "randint": (lambda x: torch.randint(2, 9, (N,)), 5, 2),
    "uniform": (lambda x: torch.empty(N).uniform_(-1, 3), 1, 4 * 12**-0.5),
    "normal": (lambda x: torch.normal(x * 3, 2.0), 3, 2),
    "bernoulli": (lambda x: torch.bernoulli(x * 0.3), 0.3, 0.21**0.5),
    "exponential": (lambda x: torch.empty(N).exponential_(2.0), 0.5, 0.5),
    "geometric": (lambda x: torch.empty(N).geometric_(0.4), 2.5, 0.6**0.5 / 0.4),
    "log normal": (lambda x: torch.empty(N).log_normal_(0.0, 0.5), np.exp(0.125), (np.exp(0.5) - np.exp(0.25)) ** 0.5),
    "multinomial": (lambda x: torch.multinomial(torch.tensor([0.0, 1, 3]), N, True), 1.75, 0.1875**0.5),
    "cauchy": (lambda x: torch.empty(N).cauchy_(1.0, 2.0) < 1.0, 0.5, 0.5),
    "permutation": (lambda x: torch.randperm(N), (N - 1) / 2, N * 12**-0.5),
}
SLOW = {
    "poisson": (lambda x: torch.poisson(x * 3), 3, 3**0.5),
    "gamma": (lambda x: torch._standard_gamma(x * 2.5), 2.5, 2.5**0.5),
    "dirichlet": (lambda x: torch._sample_dirichlet(x.reshape(-1, 2)), 0.5, 12**-0.5),
}


def checked(rows: dict[str, Any], run: Callable[..., Any]) -> None:
    """`run(program) -> (function of a seed)`: moments within 5 standard errors, other numbers for another seed."""
    program = torch.export.export(Model(lambda x: [f(x) for f, *_ in rows.values()]), (torch.ones(N),), strict=False)
    function = run(program)
    first, again, other = function(1), function(1), function(2)
    for name, a, b, c in zip(rows, first, again, other, strict=True):
        _, mean, deviation = rows[name]
        assert np.array_equal(a, b) and not np.array_equal(a, c), name
        for x in (a, c):
            x = x.astype(np.float64)
            assert abs(x.mean() - mean) < 5 * deviation / len(x.ravel()) ** 0.5, name
            assert abs(x.std() - deviation) < 0.15 * deviation, name


def interpreted(program: Any) -> Callable[[int], Any]:
    module = torch_export.opened(program).build()
    ones = np.ones(N, np.float32)
    return lambda seed: interpret(module, {"x": ones, "seed": np.array(seed, np.int64)}, entry="run").values()


def compiled(program: Any) -> Callable[[int], Any]:
    function = inferc.compile(program)
    return lambda seed: function(np.ones(N, np.float32), seed=seed)


def test_distributions() -> None:
    checked({n: MOMENTS[n] for n in ("randn",)}, interpreted)


@pytest.mark.slow
def test_distributions_in_c() -> None:
    checked(MOMENTS | SLOW, compiled)


@pytest.mark.slow
def test_samples_without_replacement_and_the_seed() -> None:
    def draw(x: Any) -> Any:
        return torch.multinomial(torch.softmax(x, -1), 3), torch.randperm(7), torch.cond(
            x.sum() > 0, lambda x: torch.rand_like(x), lambda x: x + torch.rand_like(x), (x,))  # fmt: skip

    x = torch.tensor([[0.0, -200, 0, 0], [-200, 0, 0, 0]])
    with inferc.compile(torch.export.export(Model(draw), (x,), strict=False)) as function:
        assert [p.name for p in function.inputs] == ["x", "seed"]
        for seed in range(5):
            chosen, order, _ = function(x.numpy(), seed=seed)
            assert [sorted(row) for row in chosen] == [[0, 2, 3], [1, 2, 3]] and sorted(order) == list(range(7))
        with pytest.raises(inferc.InfercError, match=r"program takes \(x, seed\): no value for seed"):
            function(x.numpy())

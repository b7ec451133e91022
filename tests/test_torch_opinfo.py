"""torch's own samples of its operations: some of those that are claimed in every run, all of them in the slow one."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from . import torch_cases  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # what torch says about its own samples
EVERY = 30


def test_some_operations_that_are_claimed() -> None:
    found = torch_cases.outcomes(torch_cases.claimed()[::EVERY])
    assert not {n: o for n, o in found.items() if o.wrong or o.refused}


@pytest.mark.slow
def test_operations_are_right_or_refused(request: pytest.FixtureRequest, golden) -> None:
    """Those that are claimed; with --update-golden all that have samples, and the page is written anew."""
    if request.config.getoption("--update-golden"):
        found = torch_cases.outcomes(torch_cases.names())
        assert not {n: o for n, o in found.items() if o.wrong}
        golden("../../docs/pytorch_coverage.md", torch_cases.coverage(found))
    else:
        found = torch_cases.outcomes(torch_cases.claimed())
        assert not {n: o for n, o in found.items() if o.wrong or o.refused}

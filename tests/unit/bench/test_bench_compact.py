"""bench compact notices kernels that are wrong, and tells rows outside their bounds."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from fedgmr_hpc.bench.compact import steps as compact
from fedgmr_hpc.training.kernels.torch_csr import TorchKernels


class WrongKernels(TorchKernels):
    """They add twice the bias to linear layers."""

    def linear(self, x: Tensor, values: Tensor, pattern: Any, bias: Tensor) -> Tensor:
        return super().linear(x, values, pattern, bias) + bias


def test_a_step_that_moves_weights_otherwise_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compact, "RUNS", {"conv2": "femnist"})
    monkeypatch.setattr(compact, "DENSITIES", (0.05,))
    monkeypatch.setattr(compact, "make_kernels", WrongKernels)
    with pytest.raises(AssertionError, match="compact is off by"):
        compact.measure_compact(1)


def test_a_row_says_whether_it_is_within_its_bound() -> None:
    times_s = {"dense": 0.04, "compact": 0.012, "torch CSR": 0.03}
    assert not compact._row("conv2", 0.05, times_s)["within"]
    assert compact._row("conv2", 0.1, times_s)["within"]
    assert compact._row("vgg11", 0.05, times_s)["SparseProp ms"] is None

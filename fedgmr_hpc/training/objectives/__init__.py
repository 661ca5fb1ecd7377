"""What clients minimise besides the run's loss: one module an objective
(docs/method.md#objectives).
"""

from fedgmr_hpc.training.objectives.contract import LocalSteps, Objective

__all__ = ["LocalSteps", "Objective"]

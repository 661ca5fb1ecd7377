"""A data set of one's own from arrays: the digits of scikit-learn, as large as Conv2 takes them.

    python examples/own_data.py run.max_rounds=50
    mpirun -n 3 python -m fedgmr_hpc.launch --plugin examples/own_data.py \\
        data.name=large_digits model.name=conv2_small
"""

import sys
from pathlib import Path

import numpy as np

import fedgmr_hpc
from fedgmr_hpc import Arrays, register_dataset


@register_dataset("large_digits", num_classes=10, max_value=16)
def large_digits(root: Path | None) -> Arrays:
    """Return images [N, 28, 28] and their classes; `root`, data.root, is not needed here.

    This runs once: the arrays are kept in the data cache until this file changes.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    large = digits.images.astype(np.uint8).repeat(3, axis=1).repeat(3, axis=2)
    x, y = np.pad(large, ((0, 0), (2, 2), (2, 2))), digits.target
    is_test = np.arange(len(x)) % 5 == 0
    return Arrays(x[~is_test], y[~is_test], x[is_test], y[is_test])


if __name__ == "__main__":
    words = ["data.name=large_digits", "model.name=conv2_small", *sys.argv[1:]]
    result = fedgmr_hpc.run(fedgmr_hpc.load_config(None, words))
    print(f"accuracy {result.evaluations['test_accuracy'][-1]:.3f}, results in {result.path}")

"""Read a result file into pandas: python examples/read_with_pandas.py RUN.h5

pandas is no dependency of fedgmr_hpc: pip install pandas
"""

from __future__ import annotations

import sys

import fedgmr_hpc


def main(path: str) -> None:
    """Print the curve of a run, and what each client sent and received."""
    result = fedgmr_hpc.read_result(path)
    print(f"{path}: {result.status}, method {result.config['method']}")

    scores = result.frame("evaluations").set_index("version")
    print(scores[["now_s", "val_accuracy", "test_accuracy", "mean_density"]].tail())

    clients = (
        result.frame("updates")
        .groupby("client")
        .agg(
            updates=("version", "size"),
            density=("density", "last"),
            sent_mb=("up_bytes", lambda sent: sent.sum() / 1e6),
            received_mb=("down_bytes", lambda received: received.sum() / 1e6),
        )
    )
    print(clients.round(3))


if __name__ == "__main__":
    main(sys.argv[1])

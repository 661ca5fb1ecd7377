"""A run in cells, as notebooks and editors take them: python examples/notebook.py

Needs nothing but fedgmr_hpc; with pandas, the last cell shows data frames.
"""

# %% A configuration: a named run, and what is different
import tempfile
from pathlib import Path

import fedgmr_hpc

folder = Path(tempfile.mkdtemp())
config = fedgmr_hpc.load_config(
    "digits",
    {"run.max_rounds": 6, "run.interval_rounds": 2, "progress": "quiet"},
    data={"max_train": 300, "max_test": 60},
    results={"path": folder / "digits.h5"},
)


# %% A callback of one's own: it sees the run, and may stop it
class EarlyStop(fedgmr_hpc.Callback):
    """Stops a run once its model is good enough."""

    def __init__(self, accuracy: float) -> None:
        self.accuracy = accuracy

    def on_round(self, run, end):
        """Show where the run is."""
        print(f"round {end.round}: {end.now_s:.1f} s, {end.server_up_bytes / 1e6:.2f} MB")

    def on_evaluation(self, run, row):
        """Look at the validation set only: the test set decides nothing."""
        if row.version and row.val_accuracy >= self.accuracy:
            run.stop()


# %% Train until it stops; the interrupt button of a notebook checkpoints it, too
lines = fedgmr_hpc.CsvLines(folder / "scores.csv")
result = fedgmr_hpc.run(config, callbacks=[EarlyStop(0.01), lines])
print(result)

# %% Go on to the end: the same bytes as without a stop
result = fedgmr_hpc.run(config, resume=True, callbacks=[lines])
print(result)  # as the last line of a cell, `result` is shown as a table

# %% Tables, figures, and the model as a torch module
print(result.evaluations["test_accuracy"], (folder / "scores.csv").read_text().count("\n"), "lines")
result.plot().savefig(folder / "accuracy.png")
model = result.model()
print(sum(weights.numel() for weights in model.parameters()), "weights")
try:
    print(result.frame("merges", by_client=True).groupby("client").up_bytes.last())
except ValueError as error:  # pandas is optional
    print(error)

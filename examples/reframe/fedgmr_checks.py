"""ReFrame checks: a benchmark of the codec, and short runs over three ranks.

    reframe -c examples/reframe/fedgmr_checks.py -r --exec-policy=serial \
        -S python=$PWD/.venv/bin/python

They run where ReFrame's configuration says: on this machine, or on the partitions of a cluster with
their own launcher (docs/performance.md#reframe). Where that is `local`, ranks are started by the
mpirun beside the Python that `python` names.
"""

import json
from pathlib import Path

import reframe as rfm
import reframe.utility.sanity as sn
from reframe.core.backends import getlauncher
from reframe.core.builtins import (
    parameter,
    performance_function,
    run_after,
    run_before,
    sanity_function,
    variable,
)

# Bytes of full models, and of a frame of one density, are the same on every machine.
FEDAVG = {"server_up": (5.7, 0, 0, "MB"), "server_down": (57.4, 0, 0, "MB")}


class FedgmrCheck(rfm.RunOnlyRegressionTest):
    """What the checks share: every system and environment, and a Python that has fedgmr_hpc."""

    python = variable(str, value="python3")
    valid_systems = ["*"]
    valid_prog_environs = ["*"]

    @run_after("init")
    def set_executable(self):
        """Run this Python, with its mpirun first on the path and one thread a rank."""
        self.executable = self.python
        self.env_vars = {"OMP_NUM_THREADS": 1}
        if "/" in self.python:
            self.env_vars["PATH"] = f"{Path(self.python).parent}:$PATH"


@rfm.simple_test
class CodecCheck(FedgmrCheck):
    """Encoding and decoding a frame whose receiver knows the positions, against a copy of the
    dense model in the same process. Where the model fits a cache the copy is fast: 0.2 on an AMD
    EPYC, 1.5 on an Intel Xeon. Set what your partition reaches.
    """

    executable_opts = ["-m", "fedgmr_hpc", "bench", "codec", "--quick", "--json"]
    reference = {
        "*": {
            "frame": (1_295_024, 0, 0, "bytes"),
            "of_copy": (0.2, -0.5, None, "1"),
        }
    }

    @sanity_function
    def is_right(self):
        """Every frame was decoded to what was encoded, and no row is outside its bound."""
        return sn.assert_eq(self.record()["outside"], 0)

    @sn.deferrable
    def record(self):
        """The JSON line of the benchmark."""
        return json.loads((Path(self.stagedir) / str(self.stdout)).read_text())

    @sn.deferrable
    def known(self, density, column):
        """A figure of the frame of fp32 values of this density."""
        for row in self.record().evaluate()["rows"]:
            if (row["density"], row["dtype"], row["positions"]) == (density, "fp32", "known"):
                return row[column]
        raise ValueError(f"no row of density {density}")

    @performance_function("bytes")
    def frame(self):
        """The length at density 0.05."""
        return self.known(0.05, "frame bytes")

    @performance_function("1")
    def of_copy(self):
        """The speed of the whole model."""
        return self.known(1.0, "of copy")


@rfm.simple_test
class DigitsRun(FedgmrCheck):
    """Twenty rounds over a server and two client ranks, which have to learn, in known bytes."""

    method = parameter(["fedavg", "fedgmr"])
    num_tasks = 3

    @run_after("init")
    def set_run(self):
        """Name the run, and what is known of it: bytes where no mask depends on weights."""
        self.executable_opts = [
            *("-m", "fedgmr_hpc.launch", "--config", "digits", f"method={self.method}"),
            *("run.max_rounds=20", "progress=quiet", "results.path=run.h5"),
        ]
        known = {"fedavg": {"accuracy": (87, -0.1, None, "%"), **FEDAVG}}
        known["fedgmr"] = {"accuracy": (41, -0.3, None, "%")}
        self.reference = {"*": known[self.method]}

    @run_before("run")
    def start_ranks(self):
        """Use mpirun where the partition's launcher would start one process."""
        if self.current_partition.launcher_type.registered_name == "local":
            self.job.launcher = getlauncher("mpirun")()

    @sanity_function
    def has_finished(self):
        """The run says that it has finished."""
        return sn.assert_found(rf"^{self.method} on digits, seed 0: finished", self.stdout)

    @performance_function("%")
    def accuracy(self):
        """On the test set at the end."""
        return self.told(r"test accuracy +([\d.]+) %")

    @performance_function("MB")
    def server_up(self):
        """What the server sent."""
        return self.told(r"server +([\d.]+) MB up")

    @performance_function("MB")
    def server_down(self):
        """What the server received."""
        return self.told(r"([\d.]+) MB down")

    @performance_function("s")
    def wall_time(self):
        """Of the run, without its start."""
        return self.told(r"virtual, ([\d.]+) s wall")

    @sn.deferrable
    def told(self, pattern):
        """The first number of the summary that a pattern finds."""
        return sn.extractsingle(pattern, self.stdout, 1, float).evaluate()

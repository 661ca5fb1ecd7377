"""The configuration of a whole run: every section with its keys, typed and frozen.

The attribute docstrings are the reference of the keys (docs/configuration.md). files.py makes a
configuration of a method's row, YAML files and dotted overrides; rules.py says which values rule
one another out. Units stand in the names: `_s` seconds, `_bytes_per_s` bytes per second
(1 MB = 10^6 bytes), `_frac` a share from 0 to 1.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedgmr_hpc.config.axes import (
    AdmissionConfig,
    AggregationConfig,
    Machine,
    Positive,
    RestorationConfig,
    Run,
    Section,
    SubmodelConfig,
    Transmission,
)
from fedgmr_hpc.config.sections import (
    CheckpointConfig,
    ClientsConfig,
    DataConfig,
    EvalConfig,
    FaultConfig,
    LinksConfig,
    ModelConfig,
    ResultsConfig,
    RunConfig,
    TrainConfig,
    WireConfig,
)


class Config(Section):
    """A whole run."""

    seed: Run[Annotated[int, Field(ge=0, strict=True)]] = 0
    """Key of every random stream: partition, initial weights, batches, link speeds."""
    method: Run[str] = "fedgmr"
    """Row of configs/methods; it sets the five axes, which can still be overridden."""
    clock: Run[Literal["virtual", "wall"]] = "virtual"
    """`virtual` computes when bytes arrive, `wall` makes them take that long."""
    time_scale: Run[Positive] = 1.0
    """Wall seconds of one second of links, training and windows; used by `wall` only."""
    trace: Machine[bool] = False
    """Write what every rank did when, as a timeline for Perfetto, beside the results."""
    device: Machine[Literal["auto", "cpu", "cuda"]] = "auto"
    """Where clients train; `auto` takes the GPUs that are there, one for each local rank."""
    transport: Machine[Literal["auto", "inproc", "mpi", "gloo", "nccl"]] = "auto"
    """How ranks talk; `auto` follows the launcher."""
    progress: Machine[Literal["auto", "live", "plain", "quiet"]] = "auto"
    """Live line on a terminal, or plain timestamped lines."""
    run: RunConfig = RunConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    clients: ClientsConfig = ClientsConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    submodel: SubmodelConfig = SubmodelConfig()
    restoration: RestorationConfig = RestorationConfig()
    aggregation: AggregationConfig = AggregationConfig()
    admission: AdmissionConfig = AdmissionConfig()
    transmission: Run[Transmission] = "increments"
    """Nested increments that leave the server once (IMS), or whole sub-models."""
    links: LinksConfig = LinksConfig()
    wire: WireConfig = WireConfig()
    faults: Run[tuple[FaultConfig, ...]] = ()
    """Faults on purpose, for tests of what a run survives."""
    results: ResultsConfig = ResultsConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

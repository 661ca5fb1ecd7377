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
    """The configuration of a whole run."""

    seed: Run[Annotated[int, Field(ge=0, strict=True)]] = 0
    """Seed of every random stream: partition, initial weights, batches, link speeds."""
    method: Run[str] = "fedgmr"
    """Row of the method table (docs/methods.md), with wrappers as in `heterofl+aux`. It chooses on
    the six axes; every key that it sets can be overridden."""
    clock: Run[Literal["virtual", "wall"]] = "virtual"
    """`virtual` computes when bytes arrive, `wall` lets them take that long
    (docs/concepts.md#two-clocks)."""
    time_scale: Run[Positive] = 1.0
    """Wall clock only: real seconds for each second of links, training and windows."""
    trace: Machine[bool] = False
    """Write a timeline for Perfetto beside the results: what every rank did, and when."""
    device: Machine[Literal["auto", "cpu", "cuda"]] = "auto"
    """Where clients train; `auto` uses GPUs where there are any, one for each local rank."""
    transport: Machine[Literal["auto", "inproc", "mpi", "gloo", "nccl"]] = "auto"
    """How ranks communicate; `auto` follows the launcher."""
    progress: Machine[Literal["auto", "live", "plain", "quiet"]] = "auto"
    """Output while a run goes on: a `live` line, `plain` lines with times, or none (`quiet`).
    `auto` is live on a terminal and plain elsewhere."""
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
    """What the server sends: nested `increments` that leave it once for all (IMS), or `whole`
    sub-models, one for each client (docs/method.md#increments)."""
    links: LinksConfig = LinksConfig()
    wire: WireConfig = WireConfig()
    faults: Run[tuple[FaultConfig, ...]] = ()
    """Injected faults, to test what a run survives."""
    results: ResultsConfig = ResultsConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

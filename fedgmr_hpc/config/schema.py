"""The configuration of a whole run: every section with its keys, typed and frozen.

The attribute docstrings are the reference of the keys (docs/configuration.md). files.py makes a
configuration of a method's row, YAML files and dotted overrides; rules.py says which values rule
one another out. Units stand in the names: `_s` seconds, `_bytes_per_s` bytes per second
(1 MB = 10^6 bytes), `_frac` a share from 0 to 1.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from fedgmr_hpc.config.axes import (
    AdmissionConfig,
    AggregationConfig,
    RestorationConfig,
    SubmodelConfig,
    Transmission,
)
from fedgmr_hpc.config.choices.registry import TRANSPORTS
from fedgmr_hpc.config.choices.section import Machine, Positive, Run, Section
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
    methods: Machine[dict[str, dict[str, Any]]] = {}
    """Rows of one's own by name, each with what a file of the method table says: its axes, or a
    `base` and what differs. `method` can then name one of them."""
    plugins: Machine[tuple[Annotated[str, Field(min_length=1)], ...]] = ()
    """Plug-ins, Python files or modules that add choices (docs/extending.md#plug-ins): every rank
    imports them before the configuration is checked. A file is found from the folder of the file
    that names it, or from the working directory."""
    plugin_digests: Run[dict[str, str]] = {}
    """The content of the plug-ins that a run uses, by name; filled in. Another content is another
    run, and refused where one goes on."""
    clock: Run[Literal["virtual", "wall"]] = "virtual"
    """`virtual` computes when bytes arrive, `wall` lets them take that long
    (docs/concepts.md#two-clocks)."""
    time_scale: Run[Positive] = 1.0
    """Wall clock only: real seconds for each second of links, training and windows."""
    trace: Machine[bool] = False
    """Write a timeline for Perfetto beside the results: what every rank did, and when."""
    device: Machine[Literal["auto", "cpu", "cuda"]] = "auto"
    """Where clients train; `auto` uses GPUs where there are any, one for each local rank."""
    transport: Machine[Annotated[str, TRANSPORTS]] = "auto"
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

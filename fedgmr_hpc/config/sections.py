"""The sections of the configuration that a run file sets; axes.py has those of a method's row."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedgmr_hpc.config.axes import (
    Count,
    Density,
    Fraction,
    Limit,
    LocalConfig,
    Look,
    Machine,
    NonNegative,
    Number,
    Positive,
    Run,
    Section,
    Sigma,
)

DataName = Literal[
    "digits",
    "femnist",
    "cifar10",
    "imagenet100",
    "stackoverflow",
    "synthetic_femnist",
    "synthetic_cifar10",
]

ModelName = Literal[
    "digits_cnn", "cifar_cnn", "conv2", "conv2_small", "vgg11", "resnet18", "transformer"
]
# Bandwidth shares, and which part of the clients has each (spec section 1.1).
RUNGS = (1.0, 0.5, 0.2, 0.1, 0.05)
LEVELS = {
    "high": (0.1, 0.1, 0.1, 0.1, 0.6),
    "medium": (0.1, 0.1, 0.2, 0.3, 0.3),
    "low": (0.2, 0.2, 0.2, 0.2, 0.2),
}


class RunConfig(Section):
    """How long to run, and when the server stops to look."""

    max_rounds: Limit[Count] = 500
    """Rounds after which the run ends (a round is one merge for `window` and `barrier`)."""
    max_time_s: Limit[Positive | None] = None
    """Virtual time after which the run ends; null for no limit."""
    interval_rounds: Run[Count] = 25
    """k: evaluation, restoration and mask refresh happen every k rounds (spec section 1.3)."""
    timeout_s: Machine[Positive] = 600.0
    """Longest silence of a rank that owes an answer before the run fails, naming it."""
    pin_cores: Machine[bool] = False
    """Give every rank of a node one core of its own, where the node has enough of them."""


class DataConfig(Section):
    """The data set, its partition over clients and its validation split (spec section 9)."""

    name: Run[DataName] = "digits"
    """The data set; `digits` needs no files, `synthetic_*` are shape-true stand-ins."""
    root: Machine[str | None] = None
    """Folder of the data set's files in their official layout; null for the embedded ones."""
    cache: Machine[str] = "~/.cache/fedgmr_hpc"
    """Folder of the decoded, memory-mapped copies that the ranks of a node share."""
    cache_owner: Machine[Annotated[str, Field(min_length=1)] | None] = None
    """User whose files in the cache are believed besides one's own and root's, as those of a
    colleague who has prepared it for all; null for nobody's."""
    partition: Run[Literal["iid", "group", "dirichlet", "shards"]] = "dirichlet"
    """Equal random slices, whole writers or users, Dirichlet(alpha) shares of each class, or
    random shards of the samples in label order."""
    alpha: Run[Positive] = 0.6
    """Concentration of the Dirichlet partition; small is uneven."""
    shards_per_client: Run[Count] = 2
    """With `shards`: how many equal shards a client gets; few is uneven."""
    sort_by_size: Run[bool] = False
    """Give the smallest parts to the fastest clients, as the released code does."""
    validation_frac: Run[Annotated[Number, Field(gt=0, lt=1)]] = 0.1
    """Share of each client's training samples kept for validation, rounded up."""
    max_train: Run[Count | None] = None
    """Use only this many training samples (a seeded subset); null for all."""
    max_test: Run[Count | None] = None
    """Use only this many test samples (a seeded subset); null for all."""
    class_list: Run[Annotated[str, Field(min_length=1)] | None] = None
    """`imagenet100`: file with the class folders to use, one a line, in the order of their labels;
    null for the first 100 by name."""
    image_size: Run[Annotated[int, Field(ge=16, le=1024, strict=True)]] = 168
    """`imagenet100`: pixels of the edges that images are resized to, once."""
    max_train_users: Run[Count] = 6000
    """`stackoverflow`: use the first so many clients of the training file, by id."""
    max_test_users: Run[Count] = 1500
    """`stackoverflow`: use the first so many clients of the test file, by id."""
    max_user_samples: Run[Count] = 50
    """`stackoverflow`: use the first so many sentences of each client."""
    unknown_words: Run[Literal["skipped", "scored"]] = "skipped"
    """`stackoverflow`: whether words outside the vocabulary are targets, in training and in
    accuracy. Skipped as in the metric of the data set's authors, they are inputs only; scored, as
    the released code has it, they all are one word that is easy to guess: with it among five
    constant guesses 22.3 % are right, and 19.9 % where it is skipped."""


class ModelConfig(Section):
    """The model (spec section 8)."""

    name: Run[ModelName] = "digits_cnn"
    """`conv2` and `conv2_small` for 1x28x28 images, `vgg11` and the small `cifar_cnn` for 3x32x32,
    `digits_cnn` for 1x8x8, `resnet18` for any square RGB image, `transformer` for sequences of
    tokens."""


class ClientsConfig(Section):
    """How many clients, and how fast their links are (spec section 1.1)."""

    count: Run[Count] = 10
    """Number of clients; they are spread over all ranks but the server's."""
    level: Run[Literal["high", "medium", "low"]] = "high"
    """Heterogeneity level: which share of the clients has which bandwidth share."""
    shares: Run[tuple[Density, ...] | None] = None
    """Bandwidth share of every client, in place of `level`; it is the initial density too."""

    max_densities: Run[tuple[Density, ...] | None] = None
    """Highest density of every client, for those short of memory or speed; null for no limit."""
    sampled: Run[Count | None] = None
    """Clients that take part at a time, drawn anew whenever some have delivered; null for all."""
    availability: Run[Annotated[str, Field(min_length=1)] | None] = None
    """CSV file `client,from_s,to_s` of when clients can be chosen; clients that it does not name
    always can; null for everybody always."""
    availability_period_s: Run[Positive | None] = None
    """When the availability begins anew; null for never."""

    def bandwidth_shares(self) -> tuple[float, ...]:
        """[C] share of each client, fastest first."""
        if self.shares is not None:
            return self.shares
        counts = [int(part * self.count + 1e-9) for part in LEVELS[self.level][:-1]]
        counts.append(self.count - sum(counts))
        return tuple(rung for rung, n in zip(RUNGS, counts, strict=True) for _ in range(n))


class TrainConfig(LocalConfig):
    """Local training (spec section 1.3)."""

    steps: Run[Count] = 5
    """E: local SGD steps before an upload."""
    batch: Run[Annotated[int, Field(ge=1, le=100_000, strict=True)]] = 20
    """Samples in a local step."""
    loss: Run[Literal["bce", "cross_entropy"]] = "cross_entropy"
    """Mean binary cross-entropy on one-hot labels, or softmax cross-entropy."""
    learning_rate: Run[Positive] = 0.1
    """Step size of local SGD at round 0."""
    decay_factor: Run[Annotated[Number, Field(gt=0, le=1)]] = 1.0
    """The learning rate is multiplied by this every `decay_rounds` rounds."""
    decay_rounds: Run[Count] = 2000
    """Rounds between two decays of the learning rate."""
    max_decays: Run[Count | None] = None
    """How often the learning rate decays at most; null for no end."""
    momentum: Run[Annotated[Number, Field(ge=0, lt=1)]] = 0.0
    """Heavy-ball momentum; its state is reset whenever a client receives a model."""
    weight_decay: Run[NonNegative] = 0.0
    """L2 coefficient added to the gradient, on kept entries only."""


class EvalConfig(Section):
    """Evaluation of the server's model and of the clients' local models."""

    every_s: Look[Annotated[Number, Field(ge=0.001)] | None] = None
    """Virtual time (on the wall clock unscaled) between two looks at the then current version, the
    same for every method; refreshes, which decide, stay with rounds. Null for refreshes only."""
    submodels: Look[bool] = False
    """Score every evaluated version also cut to each density with which clients begin."""
    client_samples: Run[Count] = 512
    """Size of the fixed validation subset that scores each client's local model."""
    chunk: Run[Count] = 128
    """Samples in one evaluation task; fixed, so that sums do not depend on the ranks."""
    norm_samples: Run[Count | None] = 5000
    """With `train.batch_norm = static`: clients' training samples, a fixed random choice of all, in
    the pass from which the model gets its statistics, in batches of `chunk`; null for all, as in
    HeteroFL's code, which makes an evaluation several times as long."""


class LinksConfig(Section):
    """Links and constant times of both clocks (spec sections 1.2 and 2.1)."""

    size: Run[Literal["frames", "nominal"]] = "frames"
    """Charge the frames' real lengths, or `nominal_mb` times the density as the release does."""
    nominal_mb: Run[Positive] = 25.9811
    """S of spec section 1.3 in units of 10^6 bytes, used by `nominal` only."""
    client_down_bytes_per_s: Run[Positive] = 20e6
    """Download rate of a client with bandwidth share 1."""
    client_up_bytes_per_s: Run[Positive] = 5e6
    """Upload rate of a client with bandwidth share 1."""
    server_up_bytes_per_s: Run[Positive] = 10e6
    """Rate at which the server sends, shared by its broadcasts."""
    server_down_bytes_per_s: Run[Positive] = 50e6
    """Rate at which the server receives, shared by the uploads."""
    client_sigma: Run[Sigma] = 0.3
    """Sigma of a client link's log-normal draws; 0 for constant links."""
    server_sigma: Run[Sigma] = 0.1
    """Sigma of the server links' log-normal draws; 0 for constant links."""
    num_draws: Run[Count] = 20
    """Draws averaged into one transfer's speed."""
    latency_s: Run[NonNegative] = 0.0
    """How much later a broadcast, and an upload, begins than it is ready to go."""
    rank_down_bytes_per_s: Run[Positive | None] = None
    """Wall clock only: what the clients of one rank download at most together; null for no cap."""
    rank_up_bytes_per_s: Run[Positive | None] = None
    """Wall clock only: what the clients of one rank upload at most together; null for no cap."""
    trace: Run[Annotated[str, Field(min_length=1)] | None] = None
    """CSV file `time_s,client,direction,bytes_per_s` of the speeds of some links over time (client
    -1 is the server), in place of rates, shares and draws; null for none."""
    trace_period_s: Run[Positive | None] = None
    """When the trace begins anew; null lets its last values hold."""
    compute_s: Run[NonNegative] = 0.5
    """Virtual time of one client's local training."""
    merge_s: Run[NonNegative] = 0.5
    """Virtual time of one merge."""


class WireConfig(Section):
    """Numbers on the wire."""

    dtype: Run[Literal["fp32", "fp16", "bf16", "int8"]] = "fp32"
    """Type of the values in frames; training and merging stay in fp32. With int8 the dense part
    stays in fp32, and what rounding took from an upload is added to the client's next one."""
    max_resends: Run[Annotated[int, Field(ge=0, strict=True)]] = 3
    """How often a damaged transfer is sent once more on the wall clock before the run fails."""
    resend_after_s: Run[Positive] = 2.0
    """Wall time after which a transfer that should be through is taken for lost."""


class ResultsConfig(Section):
    """Where results go."""

    path: Machine[Annotated[str, Field(min_length=1)] | None] = None
    """The HDF5 file; null for results/<data>-<method>-<level>-s<seed>-<time>.h5."""
    flush_s: Machine[Positive] = 2.0
    """Longest time a row waits before it is on disk."""
    locking: Machine[Literal["auto", "on", "off"]] = "auto"
    """Whether the file is locked while it is made: `auto` where the file system has locks, `off`
    for Lustre, NFS or BeeGFS mounts that refuse or hang on them, `on` to fail without them."""


class CheckpointConfig(Section):
    """State on disk, from which `launch --resume` goes on; see resume.py."""

    every_s: Machine[NonNegative | None] = 300.0
    """Wall time between two checkpoints beside the results; null for none but at a signal."""


class FaultConfig(Section):
    """One fault on purpose; see comm/faults.py. Wall clock only."""

    kind: Literal["delay", "cut", "drop", "corrupt", "duplicate"]
    """What happens to a transfer."""
    client: Annotated[int, Field(ge=0, strict=True)] | None = None
    """Whose transfers; null for everybody's."""
    direction: Literal["down", "up", "both"] = "both"
    """To the client, from it, or both."""
    probability: Fraction = 1.0
    """Share of the transfers that it hits, drawn for each attempt."""
    at_s: NonNegative = 0.0
    """From when on."""
    for_s: NonNegative = 1e9
    """For how long."""
    delay_s: NonNegative = 0.0
    """Length of a `delay`."""

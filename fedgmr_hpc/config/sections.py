"""The sections of the configuration that a run file sets; axes.py has those of a method's row."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from fedgmr_hpc.config.axes import LocalConfig
from fedgmr_hpc.config.choices.open_section import OpenSection
from fedgmr_hpc.config.choices.own_data import Augment
from fedgmr_hpc.config.choices.registry import DATASETS, MODELS, SELECTIONS
from fedgmr_hpc.config.choices.section import (
    Count,
    Density,
    Fraction,
    Limit,
    Look,
    Machine,
    NonNegative,
    Number,
    Positive,
    Run,
    Seconds,
    Section,
    Sigma,
)

# Bandwidth shares, and which part of the clients has each (docs/method.md#levels).
RUNGS = (1.0, 0.5, 0.2, 0.1, 0.05)
LEVELS = {
    "high": (0.1, 0.1, 0.1, 0.1, 0.6),
    "medium": (0.1, 0.1, 0.2, 0.3, 0.3),
    "low": (0.2, 0.2, 0.2, 0.2, 0.2),
}


Precision = Literal["fp32", "bf16", "tf32"]
Partition = Literal["iid", "group", "dirichlet", "shards", "pathological", "quantity", "file"]


class RunConfig(Section):
    """Length of the run, and when the server pauses to evaluate."""

    max_rounds: Limit[Count] = 500
    """Rounds after which the run ends. A round is one merge with `window` and `barrier`; with
    `count` and `each` it is as many merged updates as there are active clients."""
    max_time_s: Limit[Positive | None] = None
    """Virtual time in seconds after which the run ends; null for no limit."""
    interval_rounds: Run[Count] = 25
    """k: the server evaluates, restores and cuts new masks every k rounds
    (docs/method.md#refreshes)."""
    timeout_s: Machine[Seconds] = 600.0
    """Seconds that a rank which owes an answer may be silent before the run fails and names it."""
    pin_cores: Machine[bool] = False
    """Bind every rank of a node to a core of its own, where the node has enough cores."""
    server_threads: Machine[Count] = 1
    """Threads of rank 0 that share the work on large updates; not more than the cores that it has
    to itself (docs/scaling.md#threads-of-the-server)."""
    relay: Machine[Literal["auto", "off"]] = "auto"
    """Whether a model crosses to each node once, for all client ranks there: `auto` where MPI
    carries the messages of the virtual clock and a node hosts at least two of them, else every
    rank is sent its own (docs/scaling.md#one-copy-a-node)."""


class DataConfig(OpenSection):
    """The data set, its partition over the clients and its validation split
    (docs/method.md#data-sets)."""

    choices: ClassVar = {"name": DATASETS}
    name: Run[Annotated[str, DATASETS]] = "digits"
    """The data set. `digits` needs no files; `npz` and `imagefolder` are arrays and images of your
    own; `synthetic_*` are random stand-ins of the same shapes (docs/method.md#data-sets)."""
    root: Machine[str | None] = None
    """Folder with the files of the data set in their official layout, or the file of `npz`; null
    for a data set that needs none."""
    cache: Machine[str] = "~/.cache/fedgmr_hpc"
    """Folder for decoded copies, which the ranks of a node share by mapping them into memory."""
    cache_owner: Machine[Annotated[str, Field(min_length=1)] | None] = None
    """User whose files in the cache are trusted besides your own and root's, such as a colleague
    who prepared it for everybody; null for none."""
    device_memory_frac: Machine[Fraction] = 0.4
    """Share of a GPU's free memory that samples may take. Where they fit they are kept there, else
    sent with each batch; the bits are the same. Less where ranks share a GPU, 0 to send always."""
    partition: Run[Partition] = "dirichlet"
    """How samples are dealt to clients: `iid` in equal random parts, `group` by whole writers or
    users, `dirichlet` by Dirichlet(`alpha`) shares of each class, `shards` by random slices of the
    samples in label order, `pathological` by a few classes each, `quantity` by Dirichlet(`alpha`)
    shares of all samples, `file` as `partition_file` says (docs/method.md#partitions)."""
    alpha: Run[Positive] = 0.6
    """Concentration of the `dirichlet` and the `quantity` partition; the smaller, the more uneven.
    """
    shards_per_client: Run[Count] = 2
    """With `shards`: number of equal shards of a client; the fewer, the more uneven."""
    classes_per_client: Run[Count] = 2
    """With `pathological`: number of classes of a client, each shared by about equally many clients
    in equal parts."""
    partition_file: Machine[Annotated[str, Field(min_length=1)] | None] = None
    """With `file`: CSV file `client,sample`, a line for each sample that a client holds; samples
    are numbered from 0 in the order of the training split. Null otherwise."""
    partition_xxh3: Run[str | None] = None
    """The content of `partition_file`; filled in. Another content is another run, and refused where
    one goes on."""
    sort_by_size: Run[bool] = False
    """Give the smallest parts to the fastest clients, as the released code of FedGMR does."""
    augment: Run[Augment | None] = None
    """How training images are changed at random: `none`, `crop_flip` moves and mirrors them,
    `resized_crop` enlarges and mirrors a part of them; null for the data set's own way
    (docs/method.md#data-sets)."""
    validation_frac: Run[Annotated[Number, Field(gt=0, lt=1)]] = 0.1
    """Share of each client's training samples that is set aside for validation, rounded up."""
    max_train: Run[Count | None] = None
    """Number of training samples to use, a seeded random subset; null for all."""
    max_test: Run[Count | None] = None
    """Number of test samples to use, a seeded random subset; null for all."""
    class_list: Run[Annotated[str, Field(min_length=1)] | None] = None
    """`imagenet100` and `imagefolder`: a text file with the class folders to use, one a line, in
    the order of their labels; null for the first 100, or all, by name."""
    image_size: Run[Annotated[int, Field(ge=16, le=1024, strict=True)]] = 168
    """`imagenet100` and `imagefolder`: edge length in pixels to which images are resized once, when
    they are cached."""
    max_train_users: Run[Count] = 6000
    """`stackoverflow`: number of users taken from the training file, the first by id."""
    max_test_users: Run[Count] = 1500
    """`stackoverflow`: number of users taken from the test file, the first by id."""
    max_user_samples: Run[Count] = 50
    """`stackoverflow`: number of sentences taken from each user, the first ones."""
    unknown_words: Run[Literal["skipped", "scored"]] = "skipped"
    """`stackoverflow`: whether words outside the vocabulary are targets of training and accuracy.
    `skipped` leaves them as inputs only, as in the metric of the data set's authors. `scored`, as
    in the released code, makes them all one word, which is easy to guess: with it among five
    constant guesses 22.3 % of the words are right, without it 19.9 %."""


class ModelConfig(OpenSection):
    """The model (docs/method.md#models)."""

    choices: ClassVar = {"name": MODELS}
    name: Run[Annotated[str, MODELS]] = "digits_cnn"
    """The architecture: `digits_cnn` for images of 1x8x8, `conv2` and `conv2_small` for 1x28x28,
    `vgg11` and the small `cifar_cnn` for 3x32x32, `resnet18` for any square RGB image,
    `transformer` for sequences of tokens, or any module that a plug-in registers
    (docs/extending.md#a-model)."""
    init: Run[Literal["paper", "kaiming"]] = "paper"
    """How weights start: `paper` as the released code of FedGMR draws them; with `kaiming` those of
    convolutions have variance 2 / fan in instead of 1 / (3 fan in), so that deep networks without
    norms learn from the first steps on (docs/method.md#initial-weights). `kaiming` is for
    `digits_cnn`, `conv2`, `conv2_small` and `vgg11`: other convolutions start so anyway, and a
    plug-in's model has starts of its own."""


class ClientsConfig(OpenSection):
    """The clients and the shares of bandwidth that they have (docs/method.md#levels)."""

    choices: ClassVar = {"selection": SELECTIONS}
    count: Run[Count] = 10
    """Number of clients, which are spread over all ranks but the server's."""
    level: Run[Literal["high", "medium", "low"]] = "high"
    """Level of heterogeneity, which says how many clients have which bandwidth share."""
    shares: Run[tuple[Density, ...] | None] = None
    """Bandwidth share of every client, which is also its initial density; null to follow `level`.
    """

    max_densities: Run[tuple[Density, ...] | None] = None
    """Highest density of every client, for devices short of memory or speed; null for no limit."""
    sampled: Run[Count | None] = None
    """Number of clients that take part at a time, redrawn whenever some have delivered; null for
    all."""
    selection: Run[Annotated[str, SELECTIONS]] = "uniform"
    """With `sampled`: who of the clients that can be chosen takes part, drawn `uniform`ly or as a
    plug-in chooses (docs/extending.md#a-selection-rule)."""
    availability: Machine[Annotated[str, Field(min_length=1)] | None] = None
    """CSV file `client,from_s,to_s` of the times when clients can be chosen; those that it does not
    name can be chosen at any time. Null if all can."""
    availability_xxh3: Run[str | None] = None
    """The content of `availability`; filled in. Another content is another run, and refused where
    one goes on."""
    availability_period_s: Run[Positive | None] = None
    """Seconds after which the availability repeats itself; null for never."""

    def bandwidth_shares(self) -> tuple[float, ...]:
        """Return the bandwidth share of each client, [C], the fastest first."""
        if self.shares is not None:
            return self.shares
        counts = [int(part * self.count + 1e-9) for part in LEVELS[self.level][:-1]]
        counts.append(self.count - sum(counts))
        return tuple(rung for rung, n in zip(RUNGS, counts, strict=True) for _ in range(n))


class CompactBelow(Section):
    """Densities below which a layer trains as the vector of its kept weights
    (docs/compact-training.md)."""

    linear: Run[Fraction] = 0.4
    """Masks of single weights, on the CPU: a linear layer of lower density than this is computed
    from its kept weights alone; 0 for never."""
    conv: Run[Fraction] = 0.15
    """The same of convolutions."""
    embedding: Run[Fraction] = 0.5
    """The same of tables of embeddings."""
    min_weights: Run[Count] = 50_000
    """Linear layers and tables of fewer weights, kept or not, are computed as a whole: they have
    more calls than work."""


class TrainConfig(LocalConfig):
    """Local training (docs/method.md#local-training)."""

    steps: Run[Count] = 5
    """E: local SGD steps between a download and the next upload."""
    batch: Run[Annotated[int, Field(ge=1, le=100_000, strict=True)]] = 20
    """Samples of a local step."""
    loss: Run[Literal["bce", "cross_entropy"]] = "cross_entropy"
    """`bce` is the mean binary cross-entropy on one-hot labels, `cross_entropy` that of the
    softmax."""
    learning_rate: Run[Positive] = 0.1
    """Step size of local SGD in round 0."""
    decay_factor: Run[Annotated[Number, Field(gt=0, le=1)]] = 1.0
    """Factor of the learning rate every `decay_rounds` rounds; 1 keeps it constant."""
    decay_rounds: Run[Count] = 2000
    """Rounds between two decays of the learning rate."""
    max_decays: Run[Count | None] = None
    """Largest number of decays of the learning rate; null for no limit."""
    momentum: Run[Annotated[Number, Field(ge=0, lt=1)]] = 0.0
    """Heavy-ball momentum, whose state is reset whenever a client receives a model."""
    weight_decay: Run[NonNegative] = 0.0
    """Coefficient of the L2 penalty, which acts on the kept entries only."""
    precision: Run[Precision] = "fp32"
    """What clients multiply in: `fp32`, `bf16`, or `tf32` on CUDA devices. Weights, gradients and
    updates are fp32 in all of them (docs/method.md#precision). Refused where the hardware would
    only emulate it."""
    deterministic: Run[bool] = True
    """Use repeatable algorithms on CUDA devices, so that a training gives the same bits however
    often it runs. `false` takes torch's fastest ones, and runs then agree only nearly. CPUs always
    repeat themselves."""
    cuda_graphs: Machine[bool] = True
    """On a GPU: record a local step as a CUDA graph and replay it. A recorded step is compared with
    a plain one before it is used; steps that cannot be recorded stay plain, and the result file
    says why."""
    parallel_clients: Machine[Annotated[int, Field(ge=1, le=64, strict=True)]] = 1
    """Clients that a rank trains side by side on its GPU, each in a stream and in memory of its
    own, so that small batches fill the device. On the CPU they train in turn, to the same bits.
    Virtual clock only."""
    compact_below: CompactBelow = CompactBelow()

    def rate_in(self, round_: int) -> float:
        """Return the learning rate in a round."""
        decays = round_ // self.decay_rounds
        if self.max_decays is not None:
            decays = min(decays, self.max_decays)
        return self.learning_rate * self.decay_factor**decays


class EvalConfig(Section):
    """Evaluation of the server's model and of the clients' local models
    (docs/method.md#evaluation)."""

    every_s: Look[Annotated[Number, Field(ge=0.001)] | None] = None
    """Seconds of virtual time (unscaled on the wall clock) between two additional evaluations of
    the current version, at the same times for every method. They decide nothing: refreshes still
    follow rounds. Null to evaluate at refreshes only."""
    submodels: Look[bool] = False
    """Also score versions cut to each density with which clients begin, on the test set: those of
    `every_s`, or at refreshes where that is null."""
    client_samples: Run[Count] = 512
    """Validation samples, a fixed subset, on which each client's local model is scored."""
    chunk: Run[Count] = 128
    """Samples of one evaluation task; fixed, so that sums do not depend on the number of ranks."""
    norm_samples: Run[Count | None] = 5000
    """With `train.batch_norm: static`: training samples, a fixed random choice from all clients,
    from which the model gets its statistics before an evaluation, in batches of `chunk`. Null for
    all, as in the code of HeteroFL, which makes an evaluation several times as long."""


class LinksConfig(Section):
    """Links (docs/method.md#links) and constant times (docs/method.md#constant-times)."""

    size: Run[Literal["frames", "nominal"]] = "frames"
    """What a transfer costs: the real lengths of its `frames`, or, as in the release, the `nominal`
    size, `nominal_mb` times the density."""
    nominal_mb: Run[Annotated[Number, Field(gt=0, le=1e9)]] = 25.9811
    """With `nominal`: size of the whole model in megabytes (10^6 bytes;
    docs/method.md#nominal-sizes)."""
    client_down_bytes_per_s: Run[Positive] = 20e6
    """Download rate of a client with bandwidth share 1, in bytes per second."""
    client_up_bytes_per_s: Run[Positive] = 5e6
    """Upload rate of a client with bandwidth share 1, in bytes per second."""
    server_up_bytes_per_s: Run[Positive] = 10e6
    """Rate at which the server sends, in bytes per second, shared by its broadcasts."""
    server_down_bytes_per_s: Run[Positive] = 50e6
    """Rate at which the server receives, in bytes per second, shared by the uploads."""
    client_sigma: Run[Sigma] = 0.3
    """Sigma of the log-normal draws of a client's speed; 0 for constant links."""
    server_sigma: Run[Sigma] = 0.1
    """Sigma of the log-normal draws of the server's speed; 0 for constant links."""
    num_draws: Run[Count] = 20
    """Number of draws whose mean is the speed of one transfer."""
    latency_s: Run[NonNegative] = 0.0
    """Seconds from when a broadcast or an upload is ready to when it begins."""
    rank_down_bytes_per_s: Run[Positive | None] = None
    """Wall clock only: bytes per second that the clients of a rank download together at most; null
    for no limit."""
    rank_up_bytes_per_s: Run[Positive | None] = None
    """Wall clock only: bytes per second that the clients of a rank upload together at most; null
    for no limit."""
    trace: Machine[Annotated[str, Field(min_length=1)] | None] = None
    """CSV file `time_s,client,direction,bytes_per_s` with the speeds of some links over time
    (client -1 is the server), which replace their rates, shares and draws; null for none."""
    trace_xxh3: Run[str | None] = None
    """The content of `trace`; filled in. Another content is another run, and refused where one goes
    on."""
    trace_period_s: Run[Positive | None] = None
    """Seconds after which the trace repeats itself; null to keep its last values."""
    compute_s: Run[NonNegative] = 0.5
    """Seconds that the local training of a client takes."""
    merge_s: Run[NonNegative] = 0.5
    """Seconds that a merge takes."""


class WireConfig(Section):
    """Values on the wire, and transfers that fail (docs/wire-format.md)."""

    verify: Machine[bool] = False
    """Encode, checksum and decode frames even where server and clients share one process. No result
    depends on it; between ranks frames always travel so."""
    dtype: Run[Literal["fp32", "fp16", "bf16", "int8"]] = "fp32"
    """Type of the values in frames; training and merging stay in fp32. With `int8` the dense part
    stays in fp32, and what rounding took from an upload is added to the client's next one."""
    max_resends: Run[Annotated[int, Field(ge=0, strict=True)]] = 3
    """Wall clock only: how often a damaged transfer is sent again before the run fails."""
    resend_after_s: Run[Seconds] = 2.0
    """Wall clock only: seconds after its expected end when a transfer counts as lost."""


class ResultsConfig(Section):
    """The result file (docs/results-format.md)."""

    path: Machine[Annotated[str, Field(min_length=1)] | None] = None
    """Path of the HDF5 file; null for results/<data>-<method>-<level>-s<seed>-<time>.h5."""
    flush_s: Machine[Seconds] = 2.0
    """Seconds that a row may wait before it is on disk."""
    locking: Machine[Literal["auto", "on", "off"]] = "auto"
    """Whether the file is locked while it is written: `auto` where the file system has locks, `off`
    for mounts of Lustre, NFS or BeeGFS that refuse locks or hang on them, `on` to fail without."""


class CheckpointConfig(Section):
    """State on disk from which `launch --resume` continues."""

    every_s: Machine[NonNegative | None] = 300.0
    """Wall-clock seconds between two checkpoints beside the results; null to write one only at a
    signal."""


class FaultConfig(Section):
    """One injected fault, to test what a run survives. Wall clock only."""

    kind: Literal["delay", "cut", "drop", "corrupt", "duplicate"]
    """What happens to a transfer: it is delayed, cut off, dropped, corrupted or duplicated."""
    client: Annotated[int, Field(ge=0, strict=True)] | None = None
    """Client whose transfers are hit; null for those of all clients."""
    direction: Literal["down", "up", "both"] = "both"
    """Transfers to the client (`down`), from it (`up`), or `both`."""
    probability: Fraction = 1.0
    """Probability that a transfer is hit, drawn for each attempt."""
    at_s: NonNegative = 0.0
    """From when on."""
    for_s: NonNegative = 1e9
    """For how long."""
    delay_s: NonNegative = 0.0
    """With `delay`: seconds that a transfer is late."""

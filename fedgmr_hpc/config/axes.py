"""The sections of the configuration that make up a method's row: its axes.

A method is a row of choices on six axes (docs/concepts.md#methods-are-rows). The sixth,
`transmission`, is a single word and stands in schema.py; the keys of `train` that belong to the run
rather than to a method stand in sections.py. Units stand in the names: `_s` seconds, `_frac` a
share from 0 to 1.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from fedgmr_hpc.config.choices.open_section import OpenSection
from fedgmr_hpc.config.choices.registry import (
    ADMISSIONS,
    AGGREGATIONS,
    OBJECTIVES,
    RESTORATIONS,
    SCORES,
)
from fedgmr_hpc.config.choices.section import (
    Count,
    Density,
    Fraction,
    NonNegative,
    Number,
    Positive,
    Run,
)

SubmodelKind = Literal[
    "importance", "magnitude", "width_prefix", "width_rolling", "ordered_dropout", "full"
]
MergeRule = Annotated[str, AGGREGATIONS]
Transmission = Literal["increments", "whole"]
WIDTH_KINDS = ("width_prefix", "width_rolling", "ordered_dropout")


class SubmodelConfig(OpenSection):
    """The part of the model that a client holds (docs/method.md#sub-models)."""

    choices: ClassVar = {"score": SCORES}

    kind: Run[SubmodelKind] = "importance"
    """How sub-models are chosen: `importance` cuts nested masks by score (FMP), `magnitude` by |W|
    in each layer (FIARSE); `width_prefix` (HeteroFL), `width_rolling` (FedRolex) and
    `ordered_dropout` (FjORD) keep some units of each layer; `full` gives every client the whole
    model."""
    refresh: Run[Literal["interval", "round"]] = "interval"
    """When masks are cut: every `run.interval_rounds` rounds, or in every round."""
    scaler: Run[bool] = False
    """Width methods: during training divide the output of a layer by its share of kept units,
    before the norm that follows (the scaler of HeteroFL); only in models with normalisation layers.
    Without norms it does not make training diverge but learn less: after 120 rounds the row
    heterofl on digits has a test accuracy of 66.0 and 72.4 % with it (seeds 0 and 1) and of 79.7
    and 73.5 % without."""
    width_rates: Run[tuple[Density, ...]] = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
    """With `ordered_dropout`: each local step trains a density drawn uniformly from those of this
    list that are at most the client's own."""
    score: Run[Annotated[str, SCORES]] = "w"
    """Score of an entry: `w` is |W|, `wg` is |W| times its change since the last refresh, `g` the
    sum of the clients' squared gradients (docs/method.md#scores)."""
    floor_frac: Run[Fraction] = 0.02
    """Share of each layer, its largest weights, that ranks before all other entries."""
    use_costs: Run[bool] = True
    """Divide scores by what an entry of the layer costs to compute and to send, kappa
    (docs/method.md#layer-costs)."""
    layer_mean: Run[bool | None] = None
    """With `use_costs`: also divide scores by the mean score of the layer outside the floor, so
    that layers of small weights are not left at the floor. Null for what suits the model: true for
    the transformer, false for the others."""
    gate_biases: Run[bool] = False
    """Masks of single weights: keep a bias only while one of the weights into its unit is kept, as
    the rows of FedGMR do and FIARSE does not."""
    surrogate: Run[bool] = True
    """With `magnitude`: gradients of kept weights pass through the threshold that cut the mask, as
    in the paper of FIARSE (Wu et al. 2024). False leaves them as they are, as in its public code,
    whose mask is a truth value and stops them."""


class LocalConfig(OpenSection):
    """What a method may require of local training."""

    choices: ClassVar = {"objective": OBJECTIVES}
    objective: Run[Annotated[str, OBJECTIVES]] = "plain"
    """What clients minimise besides the loss: `plain` nothing, `fedprox` the distance from the
    weights that they were sent; with `scaffold` control variates correct their gradients
    (docs/method.md#objectives)."""
    proximal_mu: Run[NonNegative] = 0.01
    """With `fedprox`: mu, the factor of half the squared distance."""

    batch_norm: Run[Literal["tracked", "static"]] = "tracked"
    """Statistics of batch norms. `tracked`: running statistics, sent and merged like weights.
    `static` (HeteroFL): those of the batch in training; before an evaluation the server's model
    gets them from a pass over training samples (`eval.norm_samples`), a client's local model from
    the batches it was trained on. Without effect in models without batch norms."""
    clip_norm: Run[Positive | None] = None
    """Largest norm of the gradient of a local step; longer gradients are scaled down to it. Null
    for no limit."""
    masked_loss: Run[bool] = False
    """During training set the logits of classes of which the client has no training sample, and
    another client has one, to 0 (the masked cross-entropy of HeteroFL); images only."""
    distillation: Run[bool] = False
    """With `ordered_dropout`: each local step trains the client's widest network on the labels, and
    the width that was drawn on the output of the widest (the self-distillation of FjORD)."""


class RestorationConfig(OpenSection):
    """Gradual model restoration: when densities grow, and to what (docs/method.md#restoration)."""

    choices: ClassVar = {"trigger": RESTORATIONS}

    trigger: Run[Annotated[str, RESTORATIONS]] = "none"
    """When densities grow: at a `plateau` of the validation scores (docs/method.md#stagnation), at
    fixed times (`time`), at either (`both`), or never (`none`)."""
    step: Run[Literal["ladder", "fixed", "factor"]] = "ladder"
    """The next density: the next rung of the bandwidth shares (`ladder`), `fixed_step` more
    (`fixed`), or `factor` times as much (`factor`; docs/method.md#next-density)."""
    fixed_step: Run[Density] = 0.1
    """With `fixed`: density added at a restoration."""
    factor: Run[Annotated[Number, Field(gt=1)]] = 2.0
    """With `factor`: factor of the density at a restoration."""
    patience: Run[Count] = 5
    """Consecutive evaluations without a new best score that make a plateau
    (docs/method.md#patience)."""
    arm_after_first_plateau: Run[bool] = False
    """Let the first plateau of the server only arm the trigger, as the released code does."""
    total_time_s: Run[Positive] = 70_000.0
    """Seconds over which the `time` trigger fires, at 0.2, 0.4, 0.6, 0.8 and 1.0 of them."""
    balance: Run[bool] = False
    """Stage 1: move densities towards equal cycle times until the first restoration (formula (4) of
    the paper; docs/method.md#bandwidth-balance)."""
    balance_rate: Run[Annotated[Number, Field(gt=0, le=1)]] = 0.5
    """lambda of formula (4): how far a density moves at a time."""
    min_density: Run[Density] = 0.02
    """Lowest density that the balance may choose."""


class AggregationConfig(OpenSection):
    """How delivered sub-models become the next version (docs/method.md#aggregation)."""

    choices: ClassVar = {"rule": AGGREGATIONS}

    rule: Run[MergeRule] = "mask_aware"
    """The merge: `mask_aware` is the mean over the holders of each entry (MA); `average` counts
    absent entries as 0 (FA), `gradient` as unchanged (GA); `mix` mixes the result of MA into the
    old model (FedAsync); `fedbuff` adds the mean of what local training changed to the old model.
    `momentum` (FedAvgM) and `adam` (FedAdam) step towards the result of MA as an optimiser does.
    `median`, `trimmed_mean` and `krum` look at the values of all holders and withstand a few false
    ones (docs/method.md#robust-rules)."""
    mix_share: Run[Annotated[Number, Field(gt=0, le=1)] | None] = None
    """With `mix`: alpha, the share of the new model, which is multiplied by the mean staleness
    weight of the arrivals; null for their share of the staleness weights of all clients."""
    server_learning_rate: Run[Positive] = 1.0
    """With `fedbuff`, `momentum` and `adam`: factor of the server's step."""
    server_momentum: Run[Annotated[Number, Field(ge=0, lt=1)]] = 0.9
    """With `momentum`: share of the last step that is made once more."""
    beta1: Run[Annotated[Number, Field(ge=0, lt=1)]] = 0.9
    """With `adam`: how slowly the mean step follows."""
    beta2: Run[Annotated[Number, Field(ge=0, lt=1)]] = 0.99
    """With `adam`: how slowly the mean square of the steps follows."""
    tau: Run[Positive] = 1e-3
    """With `adam`: added to the root of the mean square; the smaller, the more alike the steps of
    all entries."""
    trim_frac: Run[Annotated[Number, Field(ge=0, lt=0.5)]] = 0.1
    """With `trimmed_mean`: share of an entry's values that is left out at each end, rounded down to
    whole values: none of fewer than 1 / `trim_frac`."""
    krum_faulty: Run[Annotated[int, Field(ge=0, strict=True)]] = 1
    """With `krum`: f, how many false updates a merge is to withstand."""
    krum_kept: Run[Count | None] = None
    """With `krum`: m, the number of updates whose mean is taken; null for all but `krum_faulty`."""
    buffered: Run[bool] = False
    """Merge the last delivered update of every client (Algorithm 3 of the paper;
    docs/method.md#buffer), not only those that have just arrived."""
    max_entries: Run[Count | None] = None
    """With `buffered`: number of updates kept, beyond which the oldest is evicted; null for one a
    client, or for `clients.sampled` of them where that is set."""
    weigh_by: Run[Literal["steps", "data"]] = "steps"
    """What an update weighs besides its staleness: the samples of its local `steps`, as many for
    every client, or those of the `data` that its client holds, as in FedAvg (McMahan et al. 2017).
    `median`, `trimmed_mean` and `krum` take all updates alike."""
    staleness: Run[Literal["constant", "poly", "hinge"]] = "constant"
    """Weight of an update by its age tau in versions: 1 (`constant`), tau^-`exponent` (`poly`), or
    1 up to `hinge_delay` and falling from there (`hinge`; docs/method.md#staleness). Without effect
    with `median`, `trimmed_mean` and `krum`."""
    exponent: Run[NonNegative] = 0.6
    """With `poly` and `hinge`: a, how fast the weight falls."""
    hinge_delay: Run[NonNegative] = 2.0
    """With `hinge`: age in versions up to which the weight is 1."""
    max_norm_ratio: Run[Positive | None] = None
    """Exclude a client whose update has a root mean square more than this many times that of the
    model on the same entries; null for no limit. Updates with NaN or infinite values always exclude
    their client."""


class AdmissionConfig(OpenSection):
    """When the server stops waiting and merges (docs/method.md#admission)."""

    choices: ClassVar = {"kind": ADMISSIONS}

    kind: Run[Annotated[str, ADMISSIONS]] = "window"
    """What the server waits for: `window` for the clients of the greatest bandwidth share and then
    `slack_s` longer, `barrier` for all clients, `count` for so many updates (FedBuff), `each` for
    one (FedAsync)."""
    slack_s: Run[NonNegative] = 0.5
    """With `window`: seconds that it stays open after the clients that pace it have arrived."""
    count: Run[Count | None] = None
    """With `count`: number of updates that make a merge."""

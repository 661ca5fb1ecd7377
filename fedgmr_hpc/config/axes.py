"""The sections of the configuration that make up a method's row: its six axes (DESIGN idea 1).

`transmission`, a word, stands in config.py, and so do those keys of `train` that are the run's.
Units stand in the names: `_s` seconds, `_frac` 0 to 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Number = Annotated[float, Field(strict=True)]  # neither a truth value nor text
Positive = Annotated[Number, Field(gt=0)]
NonNegative = Annotated[Number, Field(ge=0)]
Sigma = Annotated[Number, Field(ge=0, le=5)]
Fraction = Annotated[Number, Field(ge=0, le=1)]
Density = Annotated[Number, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1, strict=True)]
SubmodelKind = Literal[
    "importance", "magnitude", "width_prefix", "width_rolling", "ordered_dropout", "full"
]
MergeRule = Literal["mask_aware", "gradient", "average", "mix", "fedbuff"]
Transmission = Literal["increments", "whole"]
Mark = Literal["run", "look", "limit", "machine"]


@dataclass(frozen=True)
class Belongs:
    """What a key belongs to; every key of the configuration has one, see identity.py."""

    to: Mark


T = TypeVar("T")
Run = Annotated[T, Belongs("run")]  # what is trained, and in which order
Look = Annotated[T, Belongs("look")]  # what is looked at beside, which changes no training
Limit = Annotated[T, Belongs("limit")]  # when it ends
Machine = Annotated[T, Belongs("machine")]  # where and how it is carried out, written and shown
WIDTH_KINDS = ("width_prefix", "width_rolling", "ordered_dropout")


class Section(BaseModel):
    """A frozen group of keys that refuses unknown ones; attribute docstrings are the reference."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _take_off_for_null(cls, value: Any, info: ValidationInfo) -> Any:
        """`off` is null where a key may be null, and neither text nor a truth value."""
        if not is_off(value):
            return value
        types = types_in(cls.model_fields[info.field_name or ""].annotation)
        return None if type(None) in types and types.isdisjoint({str, bool}) else value


def is_off(value: Any) -> bool:
    """Whether a value says that something is not there."""
    return value is False or (isinstance(value, str) and value.lower() in ("off", "no", "false"))


def types_in(annotation: Any) -> set[Any]:
    """The types that a value may have: those of its words for a literal, `tuple` for any tuple."""
    return set(_each_type(annotation))


def _each_type(annotation: Any) -> Iterator[Any]:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        yield from map(type, inner)
    elif origin is tuple or not inner:
        yield origin or annotation
    else:
        for each in inner[:1] if hasattr(annotation, "__metadata__") else inner:
            yield from _each_type(each)


class SubmodelConfig(Section):
    """Which part of the model a client holds (spec section 3)."""

    kind: Run[SubmodelKind] = "importance"
    """`importance` cuts nested masks by score (FMP), `magnitude` by |W| in each layer (FIARSE);
    `width_prefix` (HeteroFL), `width_rolling` (FedRolex) and `ordered_dropout` (FjORD) keep some
    units of each layer; `full` gives everybody the whole model."""
    refresh: Run[Literal["interval", "round"]] = "interval"
    """Cut masks every `run.interval_rounds`, or in every round as well."""
    scaler: Run[bool] = False
    """Width methods: in training divide what a layer gives by its share of kept units, before the
    norm that follows (HeteroFL's scaler); only in models with normalisation layers. Without them
    training with it does not diverge but learns less: row heterofl on digits has after 120 rounds a
    test accuracy of 66.0 and 72.4 % with it (seeds 0 and 1) and of 79.7 and 73.5 % without."""
    width_rates: Run[tuple[Density, ...]] = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
    """`ordered_dropout`: each local step trains one of these densities up to the client's own,
    drawn uniformly."""
    score: Run[Literal["w", "wg", "g"]] = "w"
    """|W|, |W times its change since the last refresh|, or summed squared client gradients."""
    floor_frac: Run[Fraction] = 0.02
    """Share of each layer, its largest weights, that ranks before everything else."""
    use_costs: Run[bool] = True
    """Divide scores by the layer's cost of computing and sending one entry (kappa)."""
    layer_mean: Run[bool | None] = None
    """With `use_costs`: divide them by the mean score of the layer's entries outside the floor,
    too, so that layers of small weights are not left at the floor; null for what the model asks
    for, which the transformer does."""
    gate_biases: Run[bool] = False
    """Masks of single weights: a bias counts only while one of its unit's weights is kept. FedGMR's
    rows do; FIARSE does not."""
    surrogate: Run[bool] = True
    """`magnitude`: kept weights' gradients pass through the threshold that cut the mask, as
    FIARSE's paper has it (Wu et al. 2024); false leaves them as they are, as its public code does,
    where the mask is a truth value and stops them."""


class LocalConfig(Section):
    """What a method asks of local training."""

    batch_norm: Run[Literal["tracked", "static"]] = "tracked"
    """Running statistics of batch norms: `tracked` in training, sent and merged like weights, or
    `static` (HeteroFL): none in training; before an evaluation the model gets them from a pass over
    training samples (`eval.norm_samples`), the local model that is scored from the batches it was
    trained on. Without meaning in a model without batch norms."""
    clip_norm: Run[Positive | None] = None
    """Greatest norm of the gradient of a local step; longer ones are shortened to it. Null for no
    limit."""
    masked_loss: Run[bool] = False
    """In training take the logits of classes that the client has no training sample of as 0
    (HeteroFL's masked cross-entropy); images only."""
    distillation: Run[bool] = False
    """`ordered_dropout`: each local step trains the client's widest network on the labels, and the
    width drawn on what the widest says (FjORD's self-distillation)."""


class RestorationConfig(Section):
    """Gradual model restoration: when densities grow, and to what (spec section 5)."""

    trigger: Run[Literal["none", "plateau", "time", "both"]] = "none"
    """Grow on stagnating validation scores, at fixed times, on either, or never."""
    step: Run[Literal["ladder", "fixed", "factor"]] = "ladder"
    """Next rung of the bandwidth shares, plus `fixed_step`, or times `factor`."""
    fixed_step: Run[Density] = 0.1
    """Density added by a `fixed` step."""
    factor: Run[Annotated[Number, Field(gt=1)]] = 2.0
    """Density multiplier of a `factor` step."""
    patience: Run[Count] = 5
    """Evaluations without a new best score that make a plateau."""
    arm_after_first_plateau: Run[bool] = False
    """Let the server's first plateau only arm the trigger, as the released code does."""
    total_time_s: Run[Positive] = 70_000.0
    """Time base of the `time` trigger, which fires at 0.2, 0.4, 0.6, 0.8 and 1.0 of it."""
    balance: Run[bool] = False
    """Stage 1: move densities towards equal cycle times until the first restoration (formula 4)."""
    balance_rate: Run[Annotated[Number, Field(gt=0, le=1)]] = 0.5
    """lambda of formula (4)."""
    min_density: Run[Density] = 0.02
    """Lowest density that the balance may choose."""


class AggregationConfig(Section):
    """How delivered sub-models become the next version (spec section 6)."""

    rule: Run[MergeRule] = "mask_aware"
    """Mean over the holders of each entry (MA), mean with absent entries as 0 (FA) or as unchanged
    (GA, `gradient`), MA mixed into the old model (FedAsync), or the old model plus the mean of what
    local training changed (`fedbuff`)."""
    mix_share: Run[Annotated[Number, Field(gt=0, le=1)] | None] = None
    """`mix`: alpha, times the arrivals' mean staleness weight; null: their share of all clients'
    staleness weights."""
    server_learning_rate: Run[Positive] = 1.0
    """`fedbuff`: factor of the mean change."""
    buffered: Run[bool] = False
    """Merge every client's last delivered update (Algorithm 3) instead of the arrivals only."""
    max_entries: Run[Count | None] = None
    """With `buffered`: evict the oldest update beyond this many; null for one per client, or with
    `clients.sampled` for that many."""
    staleness: Run[Literal["constant", "poly", "hinge"]] = "constant"
    """Weight of an update by its age tau: 1, tau^-exponent, or 1 until `hinge_delay` then falling.
    """
    exponent: Run[NonNegative] = 0.6
    """a of the polynomial and hinge weights."""
    hinge_delay: Run[NonNegative] = 2.0
    """Versions without a penalty under `hinge`."""
    max_norm_ratio: Run[Positive | None] = None
    """Shut out a client whose update has a root mean square over this many times the model's on
    the same entries; null for no limit. NaN and infinite updates always shut their client out."""


class AdmissionConfig(Section):
    """When the server stops waiting and merges (spec section 2.3)."""

    kind: Run[Literal["window", "barrier", "count", "each"]] = "window"
    """`window` closes after the full-bandwidth clients' arrival, `barrier` waits for everybody,
    `count` (FedBuff) for so many updates, `each` (FedAsync) for one."""
    slack_s: Run[NonNegative] = 0.5
    """Time a window stays open after the clients that pace it have arrived."""
    count: Run[Count | None] = None
    """With `count`: updates since the last merge that make the next one."""

"""Rules between keys: which values another value rules out, and which have no effect beside it."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple

from fedgmr_hpc.config.axes import WIDTH_KINDS
from fedgmr_hpc.config.choices.open_section import (
    OpenSection,
    owners_of,
    refused_by_choice,
    unused_options,
)
from fedgmr_hpc.config.choices.registry import AGGREGATIONS, DATASETS
from fedgmr_hpc.config.messages import must, must_be, shown
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.config.validation import mistakes

RULES_OF_CHANGES = ("fedbuff",)  # of the built-in ones
ROBUST_RULES = ("median", "trimmed_mean", "krum")  # to which all updates weigh alike
_GROWS = ("plateau", "time", "both")


@dataclass(frozen=True)
class AllBut:
    """All values but these few, those that plug-ins add included."""

    values: tuple[Any, ...]

    def __contains__(self, value: object) -> bool:
        return value not in self.values


class Use(NamedTuple):
    """What a key has an effect beside: some values of another key.

    Attributes:
        is_refused: whether it is refused beside other values, since whoever sets it expects an
            effect. Other keys have harmless defaults that rows and run files share.
    """

    other: str
    values: Container[Any]
    is_refused: bool = False


def _only(other: str, *values: Any) -> Use:
    return Use(other, values, is_refused=True)


def _with(other: str, *values: Any) -> Use:
    return Use(other, values)


def _of_data(*names: str, is_refused: bool = False) -> Use:
    """Return the use of a key that these built-in data sets read, and a plug-in's may."""
    others = tuple(name for name in DATASETS.homes if name not in names)
    return Use("data.name", AllBut(others), is_refused)


_A_FILE = AllBut((None,))
# Keys that have an effect only beside some values of another key. The others are no part of what
# makes a run (identity.py), of what it is called, or of what is tuned.
USED_WITH: dict[str, Use] = {
    "time_scale": _with("clock", "wall"),
    "data.alpha": _with("data.partition", "dirichlet", "quantity"),
    "data.sort_by_size": _with("data.partition", "dirichlet", "quantity"),
    "data.shards_per_client": _with("data.partition", "shards"),
    "data.classes_per_client": _with("data.partition", "pathological"),
    "data.partition_file": _only("data.partition", "file"),
    "data.partition_xxh3": Use("data.partition_file", _A_FILE, is_refused=True),
    "data.class_list": _of_data("imagenet100", "imagefolder", is_refused=True),
    "data.image_size": _of_data("imagenet100", "imagefolder", is_refused=True),
    "data.max_train_users": _of_data("stackoverflow"),
    "data.max_test_users": _of_data("stackoverflow"),
    "data.max_user_samples": _of_data("stackoverflow"),
    "data.unknown_words": _of_data("stackoverflow"),
    "model.init": _only("model.name", "digits_cnn", "conv2", "conv2_small", "vgg11"),
    "clients.availability_period_s": Use("clients.availability", _A_FILE, is_refused=True),
    "clients.availability_xxh3": Use("clients.availability", _A_FILE, is_refused=True),
    "eval.norm_samples": _with("train.batch_norm", "static"),
    "submodel.refresh": Use("submodel.kind", AllBut(("full",))),
    "submodel.scaler": _only("submodel.kind", *WIDTH_KINDS),
    "submodel.width_rates": _only("submodel.kind", "ordered_dropout"),
    "submodel.score": _only("submodel.kind", "importance"),
    "submodel.floor_frac": _with("submodel.kind", "importance"),
    "submodel.use_costs": _with("submodel.kind", "importance"),
    "submodel.layer_mean": _with("submodel.kind", "importance"),
    "submodel.gate_biases": _with("submodel.kind", "importance", "magnitude"),
    "submodel.surrogate": _with("submodel.kind", "magnitude"),
    "train.distillation": _only("submodel.kind", "ordered_dropout"),
    "train.proximal_mu": _only("train.objective", "fedprox"),
    "restoration.step": _with("restoration.trigger", *_GROWS),
    "restoration.fixed_step": _with("restoration.step", "fixed"),
    "restoration.factor": _with("restoration.step", "factor"),
    "restoration.patience": _with("restoration.trigger", "plateau", "both"),
    "restoration.arm_after_first_plateau": _with("restoration.trigger", "plateau", "both"),
    "restoration.total_time_s": _with("restoration.trigger", "time", "both"),
    "restoration.balance_rate": _with("restoration.balance", True),
    "restoration.min_density": _with("restoration.balance", True),
    "aggregation.mix_share": _only("aggregation.rule", "mix"),
    "aggregation.server_learning_rate": _only("aggregation.rule", "fedbuff", "momentum", "adam"),
    "aggregation.server_momentum": _only("aggregation.rule", "momentum"),
    "aggregation.beta1": _only("aggregation.rule", "adam"),
    "aggregation.beta2": _only("aggregation.rule", "adam"),
    "aggregation.tau": _only("aggregation.rule", "adam"),
    "aggregation.trim_frac": _only("aggregation.rule", "trimmed_mean"),
    "aggregation.krum_faulty": _only("aggregation.rule", "krum"),
    "aggregation.krum_kept": _only("aggregation.rule", "krum"),
    "aggregation.max_entries": _only("aggregation.buffered", True),
    "aggregation.weigh_by": Use("aggregation.rule", AllBut(ROBUST_RULES), is_refused=True),
    # Not refused: a row with a robust rule inherits it from its base.
    "aggregation.staleness": Use("aggregation.rule", AllBut(ROBUST_RULES)),
    "aggregation.exponent": _with("aggregation.staleness", "poly", "hinge"),
    "aggregation.hinge_delay": _with("aggregation.staleness", "hinge"),
    "admission.slack_s": _with("admission.kind", "window"),
    "admission.count": _only("admission.kind", "count"),
    "links.nominal_mb": _with("links.size", "nominal"),
    # Not refused: a run on the wall clock and its pair on the other share a file.
    "links.rank_down_bytes_per_s": _with("clock", "wall"),
    "links.rank_up_bytes_per_s": _with("clock", "wall"),
    "links.trace_period_s": Use("links.trace", _A_FILE, is_refused=True),
    "links.trace_xxh3": Use("links.trace", _A_FILE, is_refused=True),
    "wire.max_resends": _with("clock", "wall"),
    "wire.resend_after_s": _with("clock", "wall"),
}
# What `scaffold` needs, and why.
_SAME_CLIENTS = "control variates need the mean of the same clients over several rounds"
_NEEDED_BY_CONTROL_VARIATES: dict[str, tuple[Any, str]] = {
    "admission.kind": ("barrier", _SAME_CLIENTS),
    "aggregation.rule": ("mask_aware", _SAME_CLIENTS),
    "submodel.refresh": ("interval", _SAME_CLIENTS),
    "submodel.gate_biases": (False, "a gated bias comes back as it was sent"),
    "clients.sampled": (None, _SAME_CLIENTS),
    "clients.availability": (None, _SAME_CLIENTS),
    "train.momentum": (0.0, "with momentum a step is longer than the rate times the gradient"),
    "wire.dtype": ("fp32", "control variates are found in weights, which must not be rounded"),
}


def is_used(key: str, values: Mapping[str, Any]) -> bool:
    """Return whether a key has an effect beside the other values of a flat configuration."""
    if key not in USED_WITH:
        owners = _owners(key)
        return not owners or any(values.get(other) == name for other, name in owners)
    use = USED_WITH[key]
    return values.get(use.other) in use.values and is_used(use.other, values)


def _owners(key: str) -> list[tuple[str, str]]:
    """Return the choices that have a plug-in's option, with their dotted keys."""
    section, _, option = key.partition(".")
    field = Config.model_fields.get(section)
    kind = field.annotation if field is not None else None
    if not isinstance(kind, type) or not issubclass(kind, OpenSection):
        return []
    return [(f"{section}.{choice}", name) for choice, name in owners_of(kind, option)]


def broken_rules(config: Config) -> list[str]:
    """Return one line for every value that another one rules out."""
    return [line for rule in _RULES for line in rule(config)]


def _unused_keys(config: Config) -> Iterator[str]:
    defaults = Config()
    for key, use in USED_WITH.items():
        value, default, beside = _get(config, key), _get(defaults, key), _get(config, use.other)
        if use.is_refused and beside not in use.values and value != default:
            yield must_be(key, shown(default), value, when={use.other: beside})


def _unused_options(config: Config) -> Iterator[str]:
    for name in Config.model_fields:
        section = getattr(config, name)
        if isinstance(section, OpenSection):
            for option, (choice, owner, chosen) in unused_options(section).items():
                condition = {f"{name}.{choice}": chosen}
                reason = f"it is an option of {owner!r}"
                yield must_be(f"{name}.{option}", "absent", when=condition, because=reason)
            for refusing, error in refused_by_choice(section):
                yield from (f"{name}.{line}" for line in mistakes(refusing, error))


def _full_models(config: Config) -> Iterator[str]:
    if config.submodel.kind != "full":
        return
    allowed = {
        "restoration.trigger": "none",
        "restoration.balance": False,
        "clients.max_densities": None,
    }
    for key, value in allowed.items():
        if _get(config, key) != value:
            yield must_be(key, shown(value), _get(config, key), when={"submodel.kind": "full"})


def _partition(config: Config) -> Iterator[str]:
    data, condition = config.data, {"data.partition": config.data.partition}
    if data.partition != "file":
        return
    if data.partition_file is None:
        yield must_be("data.partition_file", "a CSV file", None, when=condition)
    if data.max_train is not None:
        reason = "the file counts all training samples"
        yield must_be("data.max_train", "null", data.max_train, when=condition, because=reason)


def _clients(config: Config) -> Iterator[str]:
    clients = config.clients
    condition = {"clients.count": clients.count}
    for key in ("shares", "max_densities"):
        values = getattr(clients, key)
        if values is not None and len(values) != clients.count:
            yield must(
                f"clients.{key}", f"have {clients.count} values", len(values), when=condition
            )
    if clients.sampled is not None and clients.sampled > clients.count:
        need = f"at most {clients.count}"
        yield must_be("clients.sampled", need, clients.sampled, when=condition)
    if clients.selection != "uniform" and clients.sampled is None:
        sampled: dict[str, Any] = {"clients.sampled": None}
        yield must_be("clients.selection", "'uniform'", clients.selection, when=sampled)


def _scaler(config: Config) -> Iterator[str]:
    condition = {"train.batch_norm": config.train.batch_norm}
    is_scaled = config.submodel.scaler and config.submodel.kind in WIDTH_KINDS
    if is_scaled and config.train.batch_norm == "tracked":
        reason = "running statistics of scaled outputs fit no other width"
        yield must_be("submodel.scaler", "false", True, when=condition, because=reason)


def _buffered_changes(config: Config) -> Iterator[str]:
    rule = config.aggregation.rule
    if config.aggregation.buffered and _wants_changes(rule):
        condition, reason = {"aggregation.rule": rule}, "a change is added only once"
        yield must_be("aggregation.buffered", "false", True, when=condition, because=reason)


def _wants_changes(rule: str) -> bool:
    """Return whether updates bring changes; built-in rules are known without importing torch."""
    if rule not in AGGREGATIONS.origins:
        return rule in RULES_OF_CHANGES
    return getattr(AGGREGATIONS[rule], "wants", "weights") == "changes"


def _admission_count(config: Config) -> Iterator[str]:
    count, clients = config.admission.count, config.clients
    if config.admission.kind != "count":
        return
    limit = clients.sampled or clients.count
    if count is None or count > limit:
        key = "clients.count" if clients.sampled is None else "clients.sampled"
        condition = {"admission.kind": "count", key: limit}
        yield must_be("admission.count", f"between 1 and {limit}", count, when=condition)


def _control_variates(config: Config) -> Iterator[str]:
    """Check that clients can find the server's variate in what they receive."""
    if config.train.objective != "scaffold":
        return
    for key, (value, reason) in _NEEDED_BY_CONTROL_VARIATES.items():
        found = _get(config, key)
        if found != value and _is_used_beside_kind(key, config):
            condition = {"train.objective": "scaffold"}
            yield must_be(key, shown(value), found, when=condition, because=reason)


def _is_used_beside_kind(key: str, config: Config) -> bool:
    """Return whether a key has an effect on the run's kind of sub-model."""
    use = USED_WITH.get(key)
    return use is None or use.other != "submodel.kind" or config.submodel.kind in use.values


def _side_by_side(config: Config) -> Iterator[str]:
    if config.train.parallel_clients > 1 and config.clock == "wall":
        found = config.train.parallel_clients
        yield must_be("train.parallel_clients", "1", found, when={"clock": "wall"})


def _faults(config: Config) -> Iterator[str]:
    if config.faults and config.clock == "virtual":
        yield must_be("faults", "empty", len(config.faults), when={"clock": "virtual"})
    for index, fault in enumerate(config.faults):
        if fault.client is not None and fault.client >= config.clients.count:
            need, condition = f"at most {config.clients.count - 1}", config.clients.count
            yield must_be(
                f"faults.{index}.client", need, fault.client, when={"clients.count": condition}
            )


_RULES: tuple[Callable[[Config], Iterator[str]], ...] = (
    _side_by_side,
    _unused_keys,
    _unused_options,
    _full_models,
    _partition,
    _clients,
    _scaler,
    _buffered_changes,
    _admission_count,
    _control_variates,
    _faults,
)


def _get(config: Config, key: str) -> Any:
    """Return the value of a dotted key."""
    return reduce(getattr, key.split("."), config)

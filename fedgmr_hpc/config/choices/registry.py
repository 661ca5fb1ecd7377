"""The names that a key of the configuration can have, and what each stands for.

Built-in choices and those of a user's plug-in (plugins.py) come in by the same door, `register`.
The names of the built-in ones stand here beside the module that registers each, which is imported
when the choice is first used: a word is checked without importing torch.

What is registered is whatever the key's users expect: a class with a few methods, a function, a
data set, a factory of models. A class that derives from `axes.Section` has options, its fields.
Those of a plug-in are keys of the section in which its name was chosen (open_section.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any, TypeVar

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.fields import FieldInfo
from pydantic_core import PydanticKnownError, core_schema

from fedgmr_hpc.config.messages import listed, must, must_be, unknown_choice

Entry = TypeVar("Entry")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")


class Registry:
    """The choices of one key.

    Args:
        key: the dotted key that names one of them.
        homes: the built-in names, each with the module that registers it, "" for one that nothing
            stands behind, such as `none`.
        base: `module:Class` of which a plug-in's class must be; "" for anything that can be called.
        check: `module:function` that raises ValueError for a name and what cannot stand behind it.

    Attributes:
        reserved: keys of the section in which the choice is made, which no option may be called.
        origins: the plug-in that registered a name; built-in names have none.
    """

    def __init__(self, key: str, homes: Mapping[str, str], base: str = "", check: str = "") -> None:
        self.key, self.homes, self.base, self.check = key, dict(homes), base, check
        self.reserved: set[str] = set()
        self.origins: dict[str, str] = {}
        self._entries: dict[str, Any] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """All names that are known now, the built-in ones first."""
        return tuple(dict.fromkeys((*self.homes, *self._entries)))

    def register(self, name: str) -> Callable[[Entry], Entry]:
        """Return a decorator that registers what it decorates.

        Raises:
            ValueError: the name cannot be one, is taken, or an option has the name of a key.
        """

        def add(entry: Entry) -> Entry:
            self.add(name, entry)
            return entry

        return add

    def add(self, name: str, entry: Any, module: str = "") -> None:
        """Register `entry` under `name`; a plug-in that is loaded again replaces its own.

        Args:
            module: in which the author wrote it, where `entry` itself does not say so.

        Raises:
            ValueError: see `register`.
        """
        written_in = module or getattr(entry, "__module__", "__main__")
        is_built_in = written_in.startswith("fedgmr_hpc.")  # though a plug-in may import it first
        origin = _loading[-1] if _loading else written_in
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(must_be(f"a name for {self.key}", "letters, digits and ._-", name))
        if not is_built_in:
            self._check_free(name, entry, origin)
            if self.base:
                self._check_kind(name, entry)
            if self.check:
                _found(self.check)(name, entry)
            self.origins[name] = origin
        self._entries[name] = entry

    def _check_kind(self, name: str, entry: Any) -> None:
        expected: Any = _found(self.base)
        base = self.base.partition(":")[2]
        if not isinstance(entry, type) or not issubclass(entry, expected):
            found = getattr(entry, "__name__", type(entry).__name__)
            raise ValueError(must_be(f"{self.key} {name!r}", f"a class of {base}", found=found))
        if typed := [
            each for each in getattr(entry, "model_fields", {}) if hasattr(expected, each)
        ]:
            what, because = f"{self.key} {name!r}: {typed[0]}", "a type makes an option of it"
            raise ValueError(must_be(what, "without a type", because=because))
        if missing := sorted(getattr(entry, "__abstractmethods__", ())):
            raise ValueError(must(f"{self.key} {name!r}", f"have a method {', '.join(missing)}"))

    def _check_free(self, name: str, entry: Any, origin: str) -> None:
        import_module("fedgmr_hpc.config.schema")  # whose sections reserve their keys
        if _loading and name in self.origins:
            raise ValueError(must_be(f"{self.key} {name!r}", "registered only once"))
        owner = self.origins.get(name, "the package" if name in self.homes else origin)
        if owner != origin:
            raise ValueError(
                must_be(f"{self.key} {name!r}", "a new name", because=f"{owner} has it")
            )
        for option in getattr(entry, "model_fields", {}):
            if why := self._taken(option, name):
                what = f"an option of {name}"
                raise ValueError(must(what, "have a name of its own", option, because=why))

    def _taken(self, option: str, name: str) -> str:
        """Return why a choice cannot have an option of this name; empty where it can."""
        if option in self.reserved:
            return f"{self.key.rpartition('.')[0]}.{option} is a key already".lstrip(".")
        owners = [each for each in self.origins if each != name and option in self.options(each)]
        return f"it is an option of {owners[0]}" if owners else ""

    def __getitem__(self, name: str) -> Any:
        """Return what is registered under a name.

        Raises:
            ValueError: nothing is.
        """
        if name not in self._entries and self.homes.get(name):
            import_module(self.homes[name])
        if name not in self._entries:
            raise ValueError(unknown_choice(self.key, name, self.names))
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self.homes or name in self._entries

    def options(self, name: str) -> dict[str, FieldInfo]:
        """Return the options of a plug-in's choice; those of a built-in one are keys already."""
        entry = self._entries[name] if name in self.origins else None
        fields: dict[str, FieldInfo] = getattr(entry, "model_fields", {})
        return fields

    def make(self, name: str, section: Any) -> Any:
        """Make the chosen class with its options, as the section has them."""
        entry = self[name]
        return entry(**{option: getattr(section, option) for option in entry.model_fields})

    def forget(self, origin: str) -> None:
        """Forget what a plug-in has registered."""
        for name in [name for name, owner in self.origins.items() if owner == origin]:
            del self.origins[name], self._entries[name]

    # How pydantic checks a field that is annotated with a registry: a name, as known at that time.

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"type": "string", "enum": list(self.names)}

    def _check(self, name: str) -> str:
        if name not in self:
            raise PydanticKnownError("literal_error", {"expected": listed(self.names)})
        return name


def _found(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


_loading: list[str] = []  # plug-ins whose code is running, the innermost last


@contextmanager
def registering(origin: str) -> Iterator[None]:
    """Let what is registered meanwhile be all that the plug-in `origin` has registered; nothing,
    where it fails.

    Raises:
        ValueError: the plug-in is loading itself.
    """
    if origin in _loading:
        raise ValueError(must("a plug-in", "not load itself"))
    _forget(origin)
    _loading.append(origin)
    try:
        yield
    except BaseException:
        _forget(origin)
        raise
    finally:
        _loading.pop()


def adopt(origin: str) -> None:
    """Let what a module has registered, and the modules inside it, belong to the plug-in that it
    is: it was imported before it was named as one.
    """
    for registry in REGISTRIES:
        for name, owner in registry.origins.items():
            if f"{owner}.".startswith(f"{origin}."):
                registry.origins[name] = origin


def _forget(origin: str) -> None:
    for registry in REGISTRIES:
        registry.forget(origin)


def _homes(module: str, names: Iterable[str]) -> dict[str, str]:
    return dict.fromkeys(names, f"fedgmr_hpc.{module}")


AGGREGATIONS = Registry(
    "aggregation.rule",
    {
        **_homes("fl.aggregation", ("mask_aware", "gradient", "average", "mix", "fedbuff")),
        **_homes("fl.aggregation", ("momentum", "adam", "median", "trimmed_mean", "krum")),
    },
    base="fedgmr_hpc.fl.aggregation.rule:AggregationRule",
    check="fedgmr_hpc.fl.aggregation.state:check_memory",
)
SCORES = Registry(
    "submodel.score",
    _homes("fl.scores", ("w", "wg", "g")),
    check="fedgmr_hpc.fl.scores:check_parameters",
)
RESTORATIONS = Registry(
    "restoration.trigger",
    {"none": "", **_homes("fl.restoration", ("plateau", "time", "both"))},
    base="fedgmr_hpc.fl.restoration.schedule:Schedule",
)
ADMISSIONS = Registry(
    "admission.kind",
    _homes("fl.admission", ("window", "barrier", "count", "each")),
    base="fedgmr_hpc.fl.admission:AdmissionRule",
)
SELECTIONS = Registry(
    "clients.selection",
    _homes("fl.selection", ("uniform",)),
    base="fedgmr_hpc.fl.selection:SelectionRule",
)
OBJECTIVES = Registry(
    "train.objective",
    {
        "plain": "",
        **_homes("training.objectives.fedprox", ("fedprox",)),
        **_homes("training.objectives.scaffold", ("scaffold",)),
    },
    base="fedgmr_hpc.training.objectives.contract:Objective",
    check="fedgmr_hpc.training.objectives.contract:check_keeps",
)
DATASETS = Registry(
    "data.name",
    {
        **_homes("data.digits", ("digits",)),
        **_homes("data.mnist", ("mnist", "fashion_mnist")),
        **_homes("data.mnist", ("emnist_balanced", "emnist_bymerge", "emnist_byclass")),
        **_homes("data.mnist", ("emnist_letters", "emnist_digits", "emnist_mnist")),
        **_homes("data.femnist", ("femnist",)),
        **_homes("data.cifar10", ("cifar10",)),
        **_homes("data.cifar100", ("cifar100",)),
        **_homes("data.imagenet", ("imagenet100",)),
        **_homes("data.stackoverflow", ("stackoverflow",)),
        **_homes("data.own.npz", ("npz",)),
        **_homes("data.own.image_folder", ("imagefolder",)),
        **_homes("data.synthetic", ("synthetic_femnist", "synthetic_cifar10")),
    },
)
MODELS = Registry(
    "model.name",
    {
        **_homes("models.registry", ("digits_cnn", "cifar_cnn", "conv2", "conv2_small", "vgg11")),
        **_homes("models.registry", ("resnet18", "transformer")),
    },
)
TRANSPORTS = Registry(
    "transport",
    {
        "auto": "",
        "inproc": "",
        **_homes("transport.mpi", ("mpi",)),
        **_homes("transport.gloo", ("gloo",)),
        **_homes("transport.nccl", ("nccl",)),
    },
)
REGISTRIES = (
    AGGREGATIONS,
    SCORES,
    RESTORATIONS,
    ADMISSIONS,
    SELECTIONS,
    OBJECTIVES,
    DATASETS,
    MODELS,
    TRANSPORTS,
)
register_aggregation = AGGREGATIONS.register
register_score = SCORES.register
register_restoration = RESTORATIONS.register
register_admission = ADMISSIONS.register
register_selection = SELECTIONS.register
register_objective = OBJECTIVES.register
register_transport = TRANSPORTS.register

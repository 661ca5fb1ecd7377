"""Sections in which a plug-in can be chosen: they have the options of its choice as keys, too.

    aggregation: {rule: my_rule, cut_frac: 0.2}

`cut_frac` is a field of the class that a plug-in has registered as `my_rule`. An option is
checked as any key is, wherever it stands; only the whole configuration says whether the choice is
made to which it belongs (`option_defaults`, rules.py).
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, create_model, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import InitErrorDetails
from pydantic_core.core_schema import ErrorType

from fedgmr_hpc.config.choices.registry import Registry
from fedgmr_hpc.config.choices.section import Section

_KINDS = frozenset(get_args(ErrorType))


class OpenSection(Section):
    """A section to which plug-ins add their options.

    Attributes:
        choices: the key of each choice in this section, with what can be chosen.
    """

    model_config = ConfigDict(extra="allow")
    choices: ClassVar[dict[str, Registry]] = {}

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Keep the section's keys from being taken for options."""
        super().__pydantic_init_subclass__(**kwargs)
        for registry in cls.choices.values():
            registry.reserved |= set(cls.model_fields)

    @model_validator(mode="before")
    @classmethod
    def _check_options(cls, values: Any) -> Any:
        """Check what is no key of the section's own: most have nothing of that kind."""
        extra = values.keys() - cls.model_fields.keys() if isinstance(values, Mapping) else ()
        return {**values, **cls._checked({key: values[key] for key in extra})} if extra else values

    @classmethod
    def _checked(cls, extra: Mapping[str, Any]) -> dict[str, Any]:
        known = cls.option_fields()
        wrong = [
            InitErrorDetails(type="extra_forbidden", loc=(key,), input=value)
            for key, value in extra.items()
            if key not in known
        ]
        fields: Any = {key: (known[key].annotation, known[key]) for key in extra if key in known}
        options = create_model("Options", __base__=Section, **fields)
        try:
            checked = options.model_validate({key: extra[key] for key in fields})
        except ValidationError as error:
            wrong += [_detail(item) for item in error.errors()]
        if wrong:
            raise ValidationError.from_exception_data(cls.__name__, wrong)
        return {key: getattr(checked, key) for key in fields}

    @classmethod
    def option_fields(cls) -> dict[str, FieldInfo]:
        """Return the options of all that plug-ins have registered for this section."""
        return {
            option: field
            for registry in cls.choices.values()
            for name in registry.origins
            for option, field in registry.options(name).items()
        }


def _detail(item: Any) -> InitErrorDetails:
    """Return a mistake of an option as one of its section; one of a kind of the author's own is
    told by its text.
    """
    kind, context = item["type"], item.get("ctx", {})
    if kind not in _KINDS:
        kind, context = "value_error", {"error": ValueError(item["msg"])}
    return InitErrorDetails(type=kind, loc=item["loc"], input=item["input"], ctx=context)


def fields_of(section: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return the fields of a section by key, with the options that plug-ins have added."""
    fields = {field.alias or name: field for name, field in section.model_fields.items()}
    if issubclass(section, OpenSection):
        fields |= section.option_fields()
    return fields


def with_option_defaults(section: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested values with the options of the choices that they make.

    Args:
        section: what the values are of: a configuration, or a section.
        values: what was given; all that it lacks has its default.
    """
    found = dict(values)
    for key, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            own = found.get(key, {})
            if isinstance(own, Mapping) and (filled := with_option_defaults(inner, own)):
                found[key] = filled
    if issubclass(section, OpenSection):
        for choice, registry in section.choices.items():
            chosen = values.get(choice, section.model_fields[choice].default)
            options = registry.options(chosen) if isinstance(chosen, str) else {}
            found = {
                key: field.get_default(call_default_factory=True)
                for key, field in options.items()
                if not field.is_required()
            } | found
    return found


def without_unchosen(
    section: type[BaseModel], values: Mapping[str, Any], kept: Collection[str], prefix: str = ""
) -> dict[str, Any]:
    """Return nested values without the options of choices that they do not make.

    Args:
        section: what the values are of: a configuration, or a section.
        values: what was given.
        kept: dotted keys that stay, since whoever sets them expects an effect.
    """
    found = dict(values)
    for key, field in section.model_fields.items():
        inner, own = field.annotation, found.get(key)
        if isinstance(inner, type) and issubclass(inner, Section) and isinstance(own, Mapping):
            found[key] = without_unchosen(inner, own, kept, f"{prefix}{key}.")
    if issubclass(section, OpenSection):
        chosen = set(section.model_fields)
        for choice, registry in section.choices.items():
            name = found.get(choice, section.model_fields[choice].default)
            chosen |= registry.options(name).keys() if isinstance(name, str) else set()
        for option in section.option_fields().keys() - chosen:
            if f"{prefix}{option}" not in kept:
                found.pop(option, None)
    return found


def owners_of(section: type[OpenSection], option: str) -> list[tuple[str, str]]:
    """Return the choices that have an option: the key of each, and its name."""
    return [
        (choice, name)
        for choice, registry in section.choices.items()
        for name in registry.origins
        if option in registry.options(name)
    ]


def unused_options(section: OpenSection) -> dict[str, tuple[str, str, str]]:
    """Return the options that are set although their choice is not made.

    Returns:
        By option: the key of the choice, what has the option, and what is chosen.
    """
    found: dict[str, tuple[str, str, str]] = {}
    extra = section.model_extra or {}
    for choice, registry in section.choices.items():
        chosen = getattr(section, choice)
        for name in registry.origins:
            for option in registry.options(name).keys() & extra.keys():
                if option not in registry.options(chosen):
                    found[option] = (choice, name, chosen)
    return found


def refused_by_choice(section: OpenSection) -> list[tuple[type[BaseModel], ValidationError]]:
    """Return the chosen classes of plug-ins that refuse their options, with what they say."""
    found = []
    for choice, registry in section.choices.items():
        chosen = getattr(section, choice)
        if options := registry.options(chosen):
            extra, chosen_class = section.model_extra or {}, inspect.unwrap(registry[chosen])
            try:
                chosen_class.model_validate({k: v for k, v in extra.items() if k in options})
            except ValidationError as error:
                found.append((chosen_class, error))
    return found

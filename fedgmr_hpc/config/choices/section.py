"""A group of typed keys: the types that keys share, and what each belongs to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from fedgmr_hpc.config.messages import must_be

Number = Annotated[float, Field(strict=True)]  # neither a truth value nor text
Positive = Annotated[Number, Field(gt=0, le=1e30)]  # beyond, sums are infinite in single precision
NonNegative = Annotated[Number, Field(ge=0, le=1e30)]
Seconds = Annotated[Number, Field(gt=0, le=1e9)]  # 31 years: what clocks can wait for
Sigma = Annotated[Number, Field(ge=0, le=5)]
Fraction = Annotated[Number, Field(ge=0, le=1)]
Density = Annotated[Number, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1, le=10**15, strict=True)]
Mark = Literal["run", "look", "limit", "machine"]


@dataclass(frozen=True)
class Belongs:
    """What a key belongs to: every key of the configuration has one such mark (identity.py)."""

    to: Mark


T = TypeVar("T")
Run = Annotated[T, Belongs("run")]  # what is trained, and in which order
Look = Annotated[T, Belongs("look")]  # what is looked at beside, which changes no training
Limit = Annotated[T, Belongs("limit")]  # when it ends
Machine = Annotated[T, Belongs("machine")]  # where and how it is carried out, written and shown


class Section(BaseModel):
    """A frozen group of keys that refuses unknown ones, explained by their attribute docstrings."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _take_off_for_null(cls, value: Any, info: ValidationInfo) -> Any:
        """Read `off` as null where a key may be null, but neither text nor a truth value."""
        if not is_off(value):
            return value
        types = types_in(cls.model_fields[info.field_name or ""].annotation)
        return None if type(None) in types and types.isdisjoint({str, bool}) else value


def check_names(what: str, names: Any) -> None:
    """Refuse what a class of a plug-in says where names are due.

    Raises:
        ValueError: it is no tuple of names.
    """
    if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
        because = "a tuple of one has a comma" if isinstance(names, str) else ""
        raise ValueError(must_be(what, "a tuple of names", names, because=because))


def is_off(value: Any) -> bool:
    """Return whether a value says that something is switched off."""
    return value is False or (isinstance(value, str) and value.lower() in ("off", "no", "false"))


def types_in(annotation: Any) -> set[Any]:
    """Return the types that a value may have: those of a literal's words, `tuple` for any tuple,
    `dict` for any mapping."""
    return set(_each_type(annotation))


def _each_type(annotation: Any) -> Iterator[Any]:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        yield from map(type, inner)
    elif origin in (tuple, dict) or not inner:
        yield origin or annotation
    else:
        for each in inner[:1] if hasattr(annotation, "__metadata__") else inner:
            yield from _each_type(each)

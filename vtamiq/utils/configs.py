"""What the frozen configuration dataclasses share: building from plain values, and one wording for a bad value."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")


def build(cls: type[T], values: Mapping[str, Any], place: str | None = None) -> T:
    """Inverse of `dataclasses.asdict`, nested dataclasses and tuples of them included.

    Args:
        place: where the values stand in a file, for errors: "" for its top, or for example "steps[1].stage". None names
            the class instead.

    Raises:
        ValueError: no mapping, a name that `cls` has no field for (with the nearest one), or a value that `cls` refuses.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{f'{place}: ' if place else ''}{cls.__name__} is made from named values, got {values!r}")
    known = {field.name: field.type for field in fields(cls)}
    for name in values:
        if name not in known:
            at = "" if place is None else f"{_within(place, name)}: "
            raise ValueError(f"{at}{cls.__name__} has no field `{name}`{did_you_mean(str(name), known)}")
    nested = {name: _build_nested(known[name], value, place, name) for name, value in values.items()}
    try:
        return cls(**nested)
    except ValueError as error:
        if place is None:
            raise
        said, of_field = str(error), f"{cls.__name__}."  # "Stage.seed must …", or anything else about the whole
        if said.startswith(of_field):
            raise ValueError(_within(place, said.removeprefix(of_field))) from error
        raise ValueError(f"{place}: {said}" if place else said) from error


def _build_nested(kind: Any, value: Any, place: str | None, name: str) -> Any:
    at = None if place is None else _within(place, name)
    if is_dataclass(kind) and isinstance(value, Mapping):
        return build(kind, value, at)
    item = get_args(kind)[0] if get_origin(kind) is tuple else None
    if is_dataclass(item) and isinstance(value, list | tuple):
        return tuple(
            build(item, part, at and f"{at}[{number}]") if isinstance(part, Mapping) else part
            for number, part in enumerate(value)
        )
    return value


def _within(place: str, name: Any) -> str:
    return f"{place}.{name}" if place else str(name)


def conform(config: Any) -> None:
    """Bring every field of a frozen dataclass to its declared type, for values that come from YAML, JSON or NumPy.

    An integer may stand for a float, so may text that reads as a number (YAML takes 1e-4 for text), a list for a tuple.
    Raises `ValueError` naming class, field and value for anything else that is not of the type.
    """
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        try:
            object.__setattr__(config, name, _as_type(value, hint))
        except (TypeError, ValueError):
            kind = hint.__name__ if isinstance(hint, type) and get_origin(hint) is None else str(hint)
            raise ValueError(f"{type(config).__name__}.{name} must be {kind}, got {value!r}") from None


def _as_type(value: Any, hint: Any) -> Any:
    if get_origin(hint) is UnionType:
        (kind,) = (option for option in get_args(hint) if option is not NoneType)
        return None if value is None else _as_type(value, kind)
    if get_origin(hint) is tuple:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise TypeError
        return tuple(_as_type(item, get_args(hint)[0]) for item in value)
    if isinstance(value, bool):
        if hint is not bool:
            raise TypeError
        return value
    if (hint is float and isinstance(value, Real | str)) or (hint is int and isinstance(value, Integral)):
        return hint(value)
    if not isinstance(value, hint):
        raise TypeError
    return value


def require(config: Any, name: str, holds: bool, rule: str) -> None:
    """Raise `ValueError` naming class, field and value unless the rule holds."""
    if not holds:
        raise ValueError(f"{type(config).__name__}.{name} {rule}, got {getattr(config, name)!r}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ "; did you mean `near`?" for the nearest known name, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean `{near[0]}`?" if near else ""

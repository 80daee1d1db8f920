"""What the frozen configuration dataclasses share: building from plain values, and one wording for a bad value."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")


def build(cls: type[T], values: Mapping[str, Any]) -> T:
    """Inverse of `dataclasses.asdict`, nested dataclasses included.

    Raises:
        ValueError: no mapping, a name that `cls` has no field for (with the nearest one), or a value that `cls` refuses.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{cls.__name__} is made from named values, got {values!r}")
    known = {field.name: field.type for field in fields(cls)}
    for name in values:
        if name not in known:
            raise ValueError(f"{cls.__name__} has no field `{name}`{did_you_mean(name, known)}")
    nested = {
        name: build(known[name], value) if is_dataclass(known[name]) and isinstance(value, Mapping) else value
        for name, value in values.items()
    }
    return cls(**nested)


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

"""What the frozen configuration dataclasses share: building from plain values, and one wording for a bad value."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

T = TypeVar("T")


def build(cls: type[T], values: Mapping[str, Any]) -> T:
    """Inverse of `dataclasses.asdict`, nested dataclasses included.

    Raises:
        ValueError: a name that `cls` has no field for (with the nearest one), or a value that `cls` refuses.
    """
    known = {field.name: field.type for field in fields(cls)}
    for name in values:
        if name not in known:
            raise ValueError(f"{cls.__name__} has no field `{name}`{did_you_mean(name, known)}")
    nested = {
        name: build(known[name], value) if is_dataclass(known[name]) and isinstance(value, Mapping) else value
        for name, value in values.items()
    }
    return cls(**nested)


def require(config: Any, name: str, holds: bool, rule: str) -> None:
    """Raise `ValueError` naming class, field and value unless the rule holds."""
    if not holds:
        raise ValueError(f"{type(config).__name__}.{name} {rule}, got {getattr(config, name)!r}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ "; did you mean `near`?" for the nearest known name, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean `{near[0]}`?" if near else ""

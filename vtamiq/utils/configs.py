"""Frozen configuration dataclasses: building from plain values, one wording for a bad value, and the one language of
settings, `name.path[index]=value`, of the command line, of notebooks and of databases named in text."""

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, is_dataclass
from numbers import Integral, Real
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml

T = TypeVar("T")


def build(cls: type[T], values: Mapping[str, Any], place: str | None = None) -> T:
    """Inverse of `dataclasses.asdict`, nested dataclasses, tuples of them and unions told apart by `kind` included.

    A class may have a method `upgraded(values)` for the values of older files. `place` is where the values stand in a
    file, for errors: "" for its top, or "steps[1].stage"; None names the class. ValueError for what `cls` refuses.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{f'{place}: ' if place else ''}{cls.__name__} is made from named values, got {values!r}")
    if hasattr(cls, "upgraded"):
        with _told_where(cls, place):
            values = cls.upgraded(values)
    known = {field.name: field.type for field in fields(cls)}
    for name in values:
        if name not in known:
            at = "" if place is None else f"{_within(place, name)}: "
            raise ValueError(f"{at}{cls.__name__} has no field `{name}`{did_you_mean(str(name), known)}")
    nested = {name: _build_nested(known[name], value, place, name) for name, value in values.items()}
    with _told_where(cls, place):
        return cls(**nested)


@contextmanager
def _told_where(cls: type, place: str | None) -> Iterator[None]:
    """Errors such as "Stage.seed must …", or about the whole, name the place in the file instead of the class."""
    try:
        yield
    except ValueError as error:
        if place is None:
            raise
        said, of_field = str(error), f"{cls.__name__}."
        if said.startswith(of_field):
            raise ValueError(_within(place, said.removeprefix(of_field))) from error
        raise ValueError(f"{place}: {said}" if place else said) from error


def _build_nested(kind: Any, value: Any, place: str | None, name: str) -> Any:
    at = None if place is None else _within(place, name)
    if get_origin(kind) is UnionType and is_dataclass(get_args(kind)[0]) and isinstance(value, Mapping):
        kind = _choose(kind, value, name if at is None else at)
    if is_dataclass(kind) and isinstance(value, Mapping):
        return build(kind, value, at)
    item = get_args(kind)[0] if get_origin(kind) is tuple else None
    if is_dataclass(item) and isinstance(value, list | tuple):
        return tuple(
            build(item, part, at and f"{at}[{number}]") if isinstance(part, Mapping) else part
            for number, part in enumerate(value)
        )
    return value


def _choose(union: UnionType, values: Mapping[str, Any], place: str) -> type:
    """The class of a union whose field `kind` is that of the values; without one, the first."""
    kinds = {option.kind: option for option in get_args(union) if is_dataclass(option)}
    kind = values.get("kind", next(iter(kinds), None))
    if kind not in kinds:
        raise ValueError(f"{_within(place, 'kind')} must be one of {', '.join(kinds)}, got {kind!r}")
    return kinds[kind]


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
        except (TypeError, ValueError, OverflowError):
            plain = isinstance(hint, type) and get_origin(hint) is None
            kind = hint.__name__ if plain else re.sub(r"[\w.]+\.(\w+)", r"\1", str(hint))
            raise ValueError(f"{type(config).__name__}.{name} must be {kind}, got {value!r}") from None


def _as_type(value: Any, hint: Any) -> Any:
    if get_origin(hint) is UnionType:
        for option in get_args(hint):
            try:
                return _as_type(value, option)
            except (TypeError, ValueError):
                continue
        raise TypeError
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


def parse_setting(text: str) -> tuple[str, Any]:
    """Read NAME=VALUE, the value as YAML: ("steps.0.stage.epochs", 3) of "steps.0.stage.epochs=3"; else ValueError."""
    name, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not re.fullmatch(r"[\w.\[\]-]+", name):
        raise ValueError(f"expected NAME=VALUE, got {text!r}")
    try:
        return name, read_yaml(value)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or error
        raise ValueError(
            f"{text}: the value cannot be read ({problem}); quote text that has : [ or {{ in it"
        ) from error


def changed(config: T, settings: Mapping[str, Any]) -> T:
    """The configuration with other values, by where they stand: {"steps[-1].stage.epochs": 64}, or "steps.-1.stage.epochs".

    ValueError names the place where there is no such thing or the value is refused.
    """
    values = plain(config)
    for name, value in settings.items():
        *path, last = re.sub(r"\[(-?\d+)\]", r".\1", name).split(".")
        holder = values
        for part in path:
            holder = holder[_key(holder, part, name)]
        # An unknown name may be a field that was left out: `build` knows.
        holder[last if isinstance(holder, dict) else _key(holder, last, name)] = value
    return build(type(config), values, "") if settings else config


def _key(holder: Any, part: str, name: str) -> str | int:
    if isinstance(holder, dict):
        if part not in holder:
            raise ValueError(f"{name}: there is no `{part}`{did_you_mean(part, holder)}")
        return part
    if not isinstance(holder, list):
        raise ValueError(f"{name}: there is nothing below the value before `{part}`")
    if not re.fullmatch(r"-?\d+", part) or not -len(holder) <= int(part) < len(holder):
        raise ValueError(f"{name}: `{part}` must be a number from 0 to {len(holder) - 1}, or from the end, -1 the last")
    return int(part)


def plain(config: Any) -> dict[str, Any]:
    """`asdict` with only the types of YAML and JSON: lists for tuples."""
    return json.loads(json.dumps(asdict(config)))


def read_yaml(text: str | bytes) -> Any:
    """Read YAML in which 1e-3 is a number and no name may stand twice in one place; yaml.YAMLError for anything else."""
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError as error:
        raise yaml.YAMLError("nested too deeply") from error


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        names = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in names:
                raise yaml.constructor.ConstructorError(None, None, f"`{key.value}` stands twice", key.start_mark)
            names.add(key.value)
        return super().construct_mapping(node, deep)


# YAML 1.1 takes 1e-3 and 1.5e3 for text.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)

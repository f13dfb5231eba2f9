"""Between plain data (JSON, TOML) and the classes of the public interface.

`structure` and `unstructure` are each other's inverse for every class here. Values are checked by
the classes themselves; this module finds the class, and refuses keys that the class does not have.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from functools import cache
from operator import attrgetter
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import attrs
from cattrs import Converter

from tramontane.errors import ValidationError

T = TypeVar("T")


def structure(data: Any, cls: type[T]) -> T:
    """An object of ``cls`` from plain data; an object of ``cls`` comes back as it is.

    Raises:
        ValidationError: not a mapping, a key is unknown (the nearest known one is named) or
            missing, or a value is refused by the class.
    """
    if isinstance(data, cls):
        return data
    return converter.structure(data, cls)


def unstructure(obj: Any) -> Any:
    """Plain data of ``obj``: dicts, lists, strings, numbers, None."""
    return converter.unstructure(obj)


def from_json(text: str | bytes, cls: type[T]) -> T:
    """`structure` of a JSON text.

    Raises:
        ValidationError: as `structure`, or the text is not JSON.
    """
    try:
        data = json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValidationError(f"{cls.__name__}: not valid JSON: {error}") from error
    return structure(data, cls)


def to_json(obj: Any, *, indent: int | None = None) -> str:
    """JSON text of ``obj``."""
    return json.dumps(unstructure(obj), indent=indent, ensure_ascii=False, allow_nan=False)


class Record:
    """Base of responses and requests: ``to_dict`` and ``to_json``, under pydantic's names too."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """This object as plain data."""
        data: dict[str, Any] = unstructure(self)
        return data

    def to_json(self, *, indent: int | None = None) -> str:
        """This object as JSON text."""
        return to_json(self, indent=indent)

    model_dump = to_dict
    model_dump_json = to_json


def field_names(cls: type[Any]) -> dict[str, bool]:
    """Names a mapping for ``cls`` may have → whether it must."""
    return {f.name: f.default is attrs.NOTHING for f in attrs.fields(cls) if f.init}


def check_keys(data: Any, names: Mapping[str, bool], what: str) -> None:
    """Refuse data that is no mapping, has a key not in ``names``, or lacks a required one.

    Args:
        data: what should be a mapping.
        names: key → whether it is required.
        what: begins the message.
    """
    if not isinstance(data, Mapping):
        raise ValidationError(f"{what}: expected a mapping, not {data!r}")
    for key in data:
        if key not in names:
            raise ValidationError(f"{what}: unknown key {key!r}{nearest(str(key), names)}")
    missing = [name for name, required in names.items() if required and name not in data]
    if missing:
        raise ValidationError(f"{what}: {' and '.join(map(repr, missing))} missing")


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"``, or the whole list when nothing is near."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def register(
    classes: Iterable[type[Any]], load: Callable[[Any, type[Any]], Any], dump: Callable[[Any], Any]
) -> None:
    """Give attrs classes a spelling of their own, such as a tagged mapping.

    Args:
        classes: a base class and its variants.
        load: ``load(data, wanted class)``; may call `structure_fields`.
        dump: the inverse; may call `unstructure_fields`.
    """
    for cls in classes:
        converter.register_structure_hook(cls, _expecting(load))
        converter.register_unstructure_hook(cls, dump)


def _expecting(load: Callable[[Any, type[Any]], Any]) -> Callable[[Any, type[Any]], Any]:
    def build(data: Any, cls: type[Any]) -> Any:
        obj = data if isinstance(data, cls) else load(data, cls)
        if not isinstance(obj, cls):
            raise ValidationError(
                f"expected {cls.__qualname__}, the data describe {type(obj).__qualname__}"
            )
        return obj

    return build


def structure_fields(data: Any, cls: type[T]) -> T:
    """An object from a mapping of its fields, whatever spelling is registered for ``cls``."""
    hook: Callable[[Any, Any], T] = _class_hook(cls)  # type: ignore[arg-type]
    return hook(data, cls)


def unstructure_fields(obj: Any) -> dict[str, Any]:
    """The fields of an object as a mapping, whatever spelling is registered for its class."""
    return {f.name: unstructure(getattr(obj, f.name)) for f in attrs.fields(type(obj))}


@cache
def _class_hook(cls: type[Any]) -> Callable[[Any, Any], Any]:
    attrs.resolve_types(cls)
    hooks = {f.name: (converter.get_structure_hook(f.type), f.type) for f in attrs.fields(cls)}
    names = field_names(cls)

    def build(data: Any, _: Any) -> Any:
        if isinstance(data, cls):
            return data
        check_keys(data, names, cls.__qualname__)
        fields = {}
        for name, value in data.items():
            hook, annotation = hooks[name]
            with _named(name):
                fields[name] = hook(value, annotation)
        return cls(**fields)

    return build


@contextmanager
def _named(place: str) -> Iterator[None]:
    """Say in an error where in the data it is."""
    try:
        yield
    except ValidationError as error:
        raise ValidationError(f"{place}: {error}") from error


def _is_plain(annotation: Any) -> bool:
    """Whether a value of this type needs no class built: the class that holds it checks it."""
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        return all(_is_plain(arm) for arm in get_args(annotation) if arm is not NoneType)
    if origin in (list, tuple) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return all(_is_plain(arm) for arm in get_args(annotation) if arm is not ...)
    if isinstance(annotation, type):
        return not attrs.has(annotation)
    return True


def _is_list_of_classes(annotation: Any) -> bool:
    return get_origin(annotation) is list and not _is_plain(annotation)


def _list_hook(annotation: Any) -> Callable[[Any, Any], Any]:
    (item,) = get_args(annotation)

    def build(data: Any, _: Any) -> Any:
        if not isinstance(data, (list, tuple)):
            raise ValidationError(f"expected a list of {item.__qualname__}, not {data!r}")
        items = []
        for index, value in enumerate(data):
            with _named(str(index)):
                items.append(structure(value, item))
        return items

    return build


converter = Converter(detailed_validation=False)
converter.register_structure_hook_func(_is_plain, lambda data, _: data)
converter.register_structure_hook_factory(_is_list_of_classes, _list_hook)
converter.register_structure_hook_factory(attrs.has, _class_hook)
converter.register_unstructure_hook(StrEnum, attrgetter("value"))
for _primitive in (bool, float, int, str):
    converter.register_structure_hook(_primitive, lambda data, _: data)

"""From checkpoint names to parameter names: an architecture's ``WEIGHTS`` applied to names.

Rules work on names alone, before anything is read. Each turns one mapping from name to *recipe*
into the next; a recipe says how the tensor is made of stored ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from attrs import frozen

from tramontane.errors import CheckpointError, ConfigError
from tramontane.protocols import Drop, Rename, Split, Stack, Tie, Transpose, WeightRule

LISTED = 8
"""Most names that one error spells out."""

COMMON: tuple[WeightRule, ...] = (Drop(r"(.*\.)?rotary_emb\.(inv_freq|cos_cached|sin_cached)"),)
"""Applied to every model: tables that old checkpoints stored and every model computes."""


@frozen
class Stored:
    """The tensor of this name in the checkpoint."""

    name: str


@frozen
class Cut:
    """Part ``index`` of ``source``, which ``sizes`` cut along ``axis`` without remainder; where
    ``interleaved``, the parts take turns."""

    source: Recipe
    sizes: tuple[int, ...]
    index: int
    axis: int = 0
    interleaved: bool = False

    @property
    def rows(self) -> slice:
        """Where the part lies along the axis."""
        if self.interleaved:
            return slice(self.index, None, len(self.sizes))
        start = sum(self.sizes[: self.index])
        return slice(start, start + self.sizes[self.index])


@frozen
class Transposed:
    """``source`` with its last two axes exchanged, unless it is packed."""

    source: Recipe


@frozen
class Stacked:
    """All parts along a new first axis."""

    parts: tuple[Recipe, ...]


Recipe = Stored | Cut | Stacked | Transposed


@frozen
class Arrangement:
    """How a model's parameters come out of a checkpoint.

    Attributes:
        recipes: parameter name → how to make it. Every name is a parameter of the model.
        aliases: parameter name → the parameter whose tensor it shares.
    """

    recipes: Mapping[str, Recipe]
    aliases: Mapping[str, str]

    @property
    def stored(self) -> set[str]:
        """Names in the checkpoint that are made into parameters; the others are never read."""
        return {name for recipe in self.recipes.values() for name in _stored(recipe)}


def _stored(recipe: Recipe) -> Iterator[str]:
    match recipe:
        case Stored():
            yield recipe.name
        case Cut() | Transposed():
            yield from _stored(recipe.source)
        case Stacked():
            for part in recipe.parts:
                yield from _stored(part)


def arrange(
    stored: Iterable[str], wanted: Sequence[str], rules: Sequence[WeightRule], config: Any
) -> Arrangement:
    """Match the names of a checkpoint with those of a model.

    Args:
        stored: names in the checkpoint.
        wanted: names of the model's parameters and persistent buffers.
        rules: the architecture's ``WEIGHTS``.
        config: its config, for conditions and sizes.

    Raises:
        CheckpointError: names collide, are missing or left over; nearest names are given.
    """
    recipes: dict[str, Recipe] = {name: Stored(name) for name in stored}
    aliases: dict[str, str] = {}
    for rule in (*COMMON, *rules):
        match rule:
            case Drop():
                recipes = {n: r for n, r in recipes.items() if not _dropped(n, rule, config)}
            case Rename():
                recipes = _rename(recipes, rule)
            case Stack():
                recipes = _stack(recipes, rule)
            case Split():
                recipes = _split(recipes, rule, config)
            case Transpose():
                recipes = _transpose(recipes, rule)
            case Tie() if _property(config, rule.when):
                _tie(recipes, aliases, rule)
    _account(recipes, aliases, wanted)
    return Arrangement(recipes, aliases)


def _dropped(name: str, rule: Drop, config: Any) -> bool:
    match = re.fullmatch(rule.pattern, name)
    if match is None or rule.beyond is None:
        return match is not None
    return int(match[1]) >= int(_property(config, rule.beyond))


def _property(config: Any, name: str) -> Any:
    try:
        return getattr(config, name)
    except AttributeError:
        raise ConfigError(
            f"a weight rule reads {name} of {type(config).__name__}, which has no such property"
        ) from None


def _put(recipes: dict[str, Recipe], name: str, recipe: Recipe, origin: str) -> None:
    if name in recipes:
        raise CheckpointError(f"tensor {origin!r} and another one both become {name!r}")
    recipes[name] = recipe


def _rename(recipes: Mapping[str, Recipe], rule: Rename) -> dict[str, Recipe]:
    result: dict[str, Recipe] = {}
    for name, recipe in recipes.items():
        match = re.fullmatch(rule.pattern, name)
        _put(result, match.expand(rule.into) if match else name, recipe, name)
    return result


def _stack(recipes: Mapping[str, Recipe], rule: Stack) -> dict[str, Recipe]:
    result: dict[str, Recipe] = {}
    groups: dict[str, dict[int, Recipe]] = {}
    for name, recipe in recipes.items():
        match = re.fullmatch(rule.pattern, name)
        if match:
            index = int(match[match.re.groups])
            groups.setdefault(match.expand(rule.into), {})[index] = recipe
        else:
            _put(result, name, recipe, name)
    for into, parts in groups.items():
        absent = sorted(set(range(max(parts) + 1)) - parts.keys())
        if absent:
            raise CheckpointError(
                f"{into} is stacked of {max(parts) + 1} tensors, of which the checkpoint lacks "
                f"number {', '.join(map(str, absent[:LISTED]))}"
            )
        _put(result, into, Stacked(tuple(parts[i] for i in sorted(parts))), into)
    return result


def _split(recipes: Mapping[str, Recipe], rule: Split, config: Any) -> dict[str, Recipe]:
    sizes = tuple(s if isinstance(s, int) else int(_property(config, s)) for s in rule.sizes)
    if rule.interleaved and len(set(sizes)) != 1:
        raise ConfigError(f"a weight rule has parts of lengths {sizes} take turns in a tensor")
    result: dict[str, Recipe] = {}
    for name, recipe in recipes.items():
        match = re.fullmatch(rule.pattern, name)
        if not match:
            _put(result, name, recipe, name)
            continue
        for index, into in enumerate(rule.into):
            part = Cut(recipe, sizes, index, rule.axis, rule.interleaved)
            _put(result, match.expand(into), part, name)
    return result


def _transpose(recipes: Mapping[str, Recipe], rule: Transpose) -> dict[str, Recipe]:
    result: dict[str, Recipe] = {}
    for name, recipe in recipes.items():
        match = re.fullmatch(rule.pattern, name)
        if match:
            _put(result, match.expand(rule.into), Transposed(recipe), name)
        else:
            _put(result, name, recipe, name)
    return result


def _tie(recipes: dict[str, Recipe], aliases: dict[str, str], rule: Tie) -> None:
    """``second`` becomes another name of ``first``, whichever of the two is stored."""
    second = recipes.pop(rule.second, None)
    if second is not None:
        recipes.setdefault(rule.first, second)
    aliases[rule.second] = rule.first


def _account(
    recipes: Mapping[str, Recipe], aliases: Mapping[str, str], wanted: Sequence[str]
) -> None:
    """Every parameter has a tensor, every tensor a parameter."""
    missing = [name for name in wanted if aliases.get(name, name) not in recipes]
    extra = sorted(recipes.keys() - set(wanted))
    problems = []
    if missing:
        near = _spell(missing, extra or list(recipes), "it has")
        problems.append(f"the checkpoint lacks {near}")
    if extra:
        near = _spell(extra, missing or wanted, "the model has")
        problems.append(f"the model has no place for {near}")
    if problems:
        raise CheckpointError(
            f"weights and architecture do not fit: {'; '.join(problems)}. The checkpoint may "
            f"be incomplete, or belong to another architecture (see `arch`)."
        )


def _spell(names: Sequence[str], others: Sequence[str], whose: str) -> str:
    """Some names, each with the nearest of the others."""
    parts = []
    for name in names[:LISTED]:
        near = get_close_matches(name, others, n=1)
        parts.append(f"{name!r}" + (f" ({whose} {near[0]!r})" if near else ""))
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(parts) + more

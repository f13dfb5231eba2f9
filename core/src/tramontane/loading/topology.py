"""Topology files: what a user says about single layers, in YAML.

::

    0-8:                        # layers 0 to 7
      isq: Q4K
      device: cuda[0]
    12:                         # one layer
      isq: Q8_0
    '/self_attn\\.v_proj/':      # every weight in whose name the expression is found
      isq: Q6K

``isq`` is a type of in-situ quantization; it counts before ``in_situ_quant``. ``device`` is where
the layer lies and runs. An expression counts before a range, a later expression before an earlier
one; ranges do not overlap. The file is read as a graph of texts and never turned into objects.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Self

import torch
import yaml
from attrs import frozen

from tramontane.api.convert import nearest
from tramontane.errors import ConfigError
from tramontane.protocols.in_situ import Override

KEYS = ("isq", "device")
SIZE_LIMIT = 256 << 10

_RANGE = re.compile(r"(\d{1,6})(?:\s*-\s*(\d{1,6}))?")
_DEVICE = re.compile(r"(cpu|mps)|(cuda|metal)(?:\[(\d{1,4})\]|:(\d{1,4}))")
_ROUTER = re.compile(r"(^|\.)(gate|router|shared_expert_gate|wg)\.weight")
"""Linears that choose among experts: a range leaves them alone, as ``in_situ_quant`` does."""

_TAGS = {"null": "nothing", "bool": "true or false", "float": "a number", "int": "a number"}

Origins = Callable[[str], Iterable[str]]
"""Name of a parameter → what the checkpoint calls the tensors that it is made of."""


@frozen(kw_only=True)
class Entry:
    """One selector and what it says.

    Attributes:
        selector: as the file has it.
        line: where, from 1.
        layers: those of a range; None for an expression.
        pattern: the expression; None for a range.
        isq: type of the weights it selects, or None.
        device: where the layers it selects are, or None.
    """

    selector: str
    line: int
    layers: range | None
    pattern: re.Pattern[str] | None
    isq: str | None
    device: torch.device | None


@frozen
class Topology:
    """A topology file.

    Attributes:
        path: where it was read from, for messages.
        entries: in the order of the file.
    """

    path: str
    entries: tuple[Entry, ...]

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a file.

        Raises:
            ConfigError: it cannot be read, or something in it is wrong; names file, line and key.
        """
        try:
            with Path(path).expanduser().open("rb") as file:
                data = file.read(SIZE_LIMIT + 1)
        except OSError as cause:
            raise ConfigError(f"topology {path} cannot be read: {cause.strerror}") from cause
        if len(data) > SIZE_LIMIT:
            raise ConfigError(
                f"topology {path} is larger than {SIZE_LIMIT >> 10} KiB; that is no topology"
            )
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as cause:
            raise ConfigError(f"topology {path} is no UTF-8 text") from cause
        return cls.parse(text, str(path))

    @classmethod
    def parse(cls, text: str, path: str) -> Self:
        """The topology that ``text`` says; ``path`` is for messages. Raises as `read` does."""
        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.YAMLError as cause:
            raise ConfigError(f"topology {path} is not valid YAML: {_problem(cause)}") from cause
        except RecursionError as cause:
            raise ConfigError(f"topology {path} is nested too deeply; {_SHAPE}") from cause
        if not isinstance(root, yaml.MappingNode) or not root.value:
            raise ConfigError(f"topology {path} holds no selectors; {_SHAPE}")
        entries = tuple(_entry(key, value, path) for key, value in root.value)
        _check_disjoint(entries, path)
        return cls(path, entries)

    @property
    def pins_types(self) -> bool:
        """Whether any entry says ``isq``."""
        return any(entry.isq for entry in self.entries)

    @property
    def pins_devices(self) -> bool:
        """Whether any entry says ``device``."""
        return any(entry.device for entry in self.entries)

    def fail(self, entry: Entry, problem: str) -> ConfigError:
        """What is wrong with an entry."""
        return _fail(self.path, entry.line, entry.selector, problem)

    def check(self, names: Sequence[str], layer_of: LayerOf, origins: Origins) -> None:
        """Hold the selectors against a model.

        Args:
            names: of its parameters.
            layer_of: parameter → index of its layer.
            origins: parameter → names in the checkpoint.

        Raises:
            ConfigError: a range goes past the last layer, or an expression finds nothing.
        """
        layers = {index for name in names if (index := layer_of(name)) is not None}
        for entry in self.entries:
            if entry.layers is not None and entry.layers.stop > len(layers):
                last = len(layers) - 1
                raise self.fail(
                    entry,
                    f"the model has {len(layers)} layers, 0 to {last}; end the range at "
                    f"{len(layers)}"
                    if entry.layers.start <= last
                    else f"the model has {len(layers)} layers, 0 to {last}; remove this entry",
                )
            if entry.pattern is not None and not any(
                _finds(entry.pattern, name, origins) for name in names
            ):
                some = ", ".join(name for name in names if name.endswith("weight"))[:200]
                raise self.fail(
                    entry, f"the expression is found in no name of the model's weights: {some} …"
                )

    def override(self, layer_of: LayerOf, origins: Origins) -> Override:
        """Types of single weights, for `tramontane.protocols.InSituSettings`."""
        patterns = [e for e in reversed(self.entries) if e.pattern is not None and e.isq]
        layers = {i: e.isq for e in self.entries if e.isq for i in e.layers or ()}

        def pinned(name: str) -> str | None:
            for entry in patterns:
                assert entry.pattern is not None
                if _finds(entry.pattern, name, origins):
                    return entry.isq
            index = layer_of(name)
            if index is None or _ROUTER.search(name):
                return None
            return layers.get(index)

        return pinned

    def layer_devices(
        self, names: Sequence[str], layer_of: LayerOf, origins: Origins
    ) -> Mapping[int, torch.device]:
        """Layer → where the file puts it; layers of which it says nothing are left out.

        Raises:
            ConfigError: an expression puts a part of a layer elsewhere than the rest, or something
                outside the layers.
        """
        found = {i: e.device for e in self.entries if e.device for i in e.layers or ()}
        members: dict[int | None, list[str]] = {}
        for name in names:
            members.setdefault(layer_of(name), []).append(name)
        for entry in self.entries:
            if entry.pattern is None or entry.device is None:
                continue
            for index, inside in members.items():
                hits = [name for name in inside if _finds(entry.pattern, name, origins)]
                if index is None and hits:
                    raise self.fail(
                        entry,
                        f"device is for layers; {hits[0]} lies outside them, on the main device. "
                        f"Select layers, e.g. '/\\.layers\\.[0-3]\\./' or 0-4",
                    )
                if index is not None and hits:
                    rest = sorted(set(inside) - set(hits))
                    if rest:
                        raise self.fail(
                            entry,
                            f"device is for whole layers; the expression is found in {hits[0]} "
                            f"but not in {rest[0]}. Select layers, e.g. {index}",
                        )
                    found[index] = entry.device
        return found


LayerOf = Callable[[str], int | None]
"""Name of a parameter → index of its layer; None for what lies outside the layers."""

_SHAPE = "it must read like\n0-8:\n  isq: Q4K\n  device: cuda[0]"


def parse_device(text: str) -> torch.device | None:
    """The device that mistral.rs calls ``text``: ``cpu``, ``cuda[0]``, ``metal[0]``; torch's own
    names too. None for anything else."""
    match = _DEVICE.fullmatch(text.strip().lower())
    if match is None:
        return None
    if match[1] is not None:
        return torch.device("mps", 0) if match[1] == "mps" else torch.device("cpu")
    index = int(match[3] or match[4] or 0)
    return torch.device("mps" if match[2] == "metal" else match[2], index)


def _entry(key: yaml.Node, value: yaml.Node, path: str) -> Entry:
    line = key.start_mark.line + 1
    if not isinstance(key, yaml.ScalarNode):
        raise _fail(path, line, "a selector", "it must be 0-8, 8 or '/expression/'")
    selector = key.value
    layers, pattern = _selector(selector, path, line)
    if not isinstance(value, yaml.MappingNode) or not value.value:
        raise _fail(path, line, selector, "give isq, device or both below it")
    said: dict[str, str] = {}
    for name, content in value.value:
        at = name.start_mark.line + 1
        text = name.value if isinstance(name, yaml.ScalarNode) else "a key"
        if text not in KEYS:
            raise _fail(path, at, selector, f"no key {_short(text)}{nearest(text, KEYS)}")
        if text in said:
            raise _fail(path, at, selector, f"{text} is given twice; keep one")
        said[text] = _text(content, path, at, selector, text)
    device = None
    if "device" in said:
        device = parse_device(said["device"])
        if device is None:
            raise _fail(
                path,
                line,
                selector,
                f"device {_short(said['device'])} is unknown; use cpu, cuda[0], cuda[1], …, "
                f"metal[0]",
            )
    return Entry(
        selector=selector,
        line=line,
        layers=layers,
        pattern=pattern,
        isq=said.get("isq"),
        device=device,
    )


def _selector(text: str, path: str, line: int) -> tuple[range | None, re.Pattern[str] | None]:
    if len(text) > 2 and text.startswith("/") and text.endswith("/"):
        try:
            return None, re.compile(text[1:-1])
        except (re.error, OverflowError, RecursionError) as cause:
            raise _fail(path, line, text, f"no regular expression: {cause}") from cause
    match = _RANGE.fullmatch(text.strip())
    if match is None:
        raise _fail(
            path, line, text, "a selector is a range such as 0-8, a layer such as 8, or a quoted "
            "'/expression/'",
        )  # fmt: skip
    start = int(match[1])
    stop = start + 1 if match[2] is None else int(match[2])
    if stop <= start:
        raise _fail(
            path, line, text, f"the range is empty: it begins with layer {start} and ends before "
            f"layer {stop}; for layer {start} alone write {start}",
        )  # fmt: skip
    return range(start, stop), None


def _text(node: yaml.Node, path: str, line: int, selector: str, key: str) -> str:
    """The text of a value: of a name, and for ``isq`` also of a number of bits."""
    tag = node.tag.rpartition(":")[2]
    if isinstance(node, yaml.ScalarNode) and (tag == "str" or (tag == "int" and key == "isq")):
        if node.value.strip():
            return str(node.value).strip()
        tag = "null"
    kind = _TAGS.get(tag, tag) if isinstance(node, yaml.ScalarNode) else "a collection"
    like = "a type such as Q4K" if key == "isq" else "a name such as cuda[0]"
    raise _fail(path, line, selector, f"{key} must be {like}, not {kind}")


def _check_disjoint(entries: tuple[Entry, ...], path: str) -> None:
    """No layer has two ranges, no expression two entries."""
    seen: dict[str, Entry] = {}
    for entry in entries:
        first = seen.setdefault(entry.selector, entry)
        if first is not entry:
            raise _fail(
                path, entry.line, entry.selector, f"line {first.line} selects the same; keep one"
            )
    ranges = [(e.layers, e) for e in entries if e.layers is not None]
    for (first_range, one), (second_range, two) in pairwise(sorted(ranges, key=_start)):
        if second_range.start < first_range.stop:
            late, early = (two, one) if two.line > one.line else (one, two)
            raise _fail(
                path,
                late.line,
                late.selector,
                f"it overlaps {early.selector} of line {early.line}; let each layer be in one "
                f"range",
            )


def _start(item: tuple[range, Entry]) -> int:
    return item[0].start


def _finds(pattern: re.Pattern[str], name: str, origins: Origins) -> bool:
    return any(pattern.search(candidate) for candidate in (name, *origins(name)))


def _fail(path: str, line: int, selector: str, problem: str) -> ConfigError:
    return ConfigError(f"topology {path}, line {line}, {_short(selector)}: {problem}")


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def _problem(cause: yaml.YAMLError) -> str:
    mark = getattr(cause, "problem_mark", None)
    where = "" if mark is None else f" (line {mark.line + 1})"
    return f"{getattr(cause, 'problem', None) or str(cause)[:200]}{where}"

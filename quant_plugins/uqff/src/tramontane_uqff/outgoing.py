"""What becomes of a model's weights in UQFF: entries for its linears, the rest in the residual."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from attrs import define, field, frozen
from torch import Tensor, nn

from tramontane.errors import ConfigError, UnsupportedError
from tramontane.hooks import PluginManager
from tramontane.loading.loader import BoundModel
from tramontane.loading.rules import Cut, Recipe, Stacked, Stored, Transposed
from tramontane.nn import (
    ExpertLinear,
    MoE,
    PackedEmbedding,
    PackedExpertLinear,
    PackedLinear,
    PackedStack,
)
from tramontane.protocols import PackedWeight, Quantizer
from tramontane_uqff.layout import FLOATS, SCALARS, Kind
from tramontane_uqff.parts import FLAT, QUANTIZERS

_PACKED = (PackedLinear, PackedExpertLinear, PackedEmbedding)
_PLAIN = (nn.Linear, ExpertLinear)
_EXPERT = re.compile(r"(?P<stack>.*\.experts)\.\d+\.(?P<name>\w+)\.weight")
_MIXTRAL = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}

_DTYPE_CODE = {torch.float16: 4, torch.bfloat16: 5, torch.float32: 6}
_GGML_LABELS = {0: "f32", 1: "f16", 30: "bf16"}


@frozen
class Entry:
    """One weight as it will be stored.

    Attributes:
        key: its module, by the name that checkpoints use.
        shape: logical shape.
        label: what the report calls its type.
        parts: by full name, in the order of the file.
    """

    key: str
    shape: tuple[int, ...]
    label: str
    parts: Mapping[str, Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.nbytes for part in self.parts.values())


@define
class _Weight:
    """Weights of modules that one entry stores: one, or the parts that a fused one was cut into."""

    pieces: list[Tensor | PackedWeight] = field(factory=list)
    biases: list[Tensor] = field(factory=list)
    sources: set[str] = field(factory=set)
    count: int = 1


@frozen
class Outgoing:
    """A model, taken apart for writing.

    Attributes:
        entries: makers of the entries by key, sorted as they are written.
        residual: names of the stored tensors that no entry holds.
    """

    entries: Mapping[str, Callable[[], Entry]]
    residual: Sequence[str]


def taken_apart(bound: BoundModel, plugins: PluginManager) -> Outgoing:
    """Name every weight as checkpoints do.

    Raises:
        UnsupportedError: a stack in a format that UQFF stores no stacks in.
    """
    weights: dict[str, _Weight] = {}
    for key, piece, bias, recipe, count in _pieces(bound):
        weight = weights.setdefault(key, _Weight(count=count))
        weight.pieces.append(piece)
        weight.sources |= set(_leaves(recipe))
        if bias is not None:
            weight.biases.append(bias)
    used = {source for weight in weights.values() for source in weight.sources}
    used |= {f"{key}.bias" for key, weight in weights.items() if weight.biases}
    residual = sorted(bound.arrangement.stored - used)

    def maker(key: str, weight: _Weight) -> Callable[[], Entry]:
        return lambda: _entry(key, weight, plugins)

    entries = {key: maker(key, weight) for key, weight in sorted(weights.items())}
    return Outgoing(entries, residual)


def _pieces(
    bound: BoundModel,
) -> Iterator[tuple[str, Tensor | PackedWeight, Tensor | None, Recipe, int]]:
    """Key, weight, bias, origin, and of how many pieces the entry of that key is made."""
    routers = {id(m.gate) for m in bound.model.modules() if isinstance(m, MoE)}
    recipes, aliases = bound.arrangement.recipes, bound.arrangement.aliases
    modules = [
        (name, module)
        for name, module in bound.model.named_modules()
        if isinstance(module, _PACKED + _PLAIN) and id(module) not in routers
    ]
    seen: set[str] = set()
    cuts: dict[str, list[str]] = {}
    for name, _ in modules:
        recipe = recipes.get(aliases.get(f"{name}.weight", f"{name}.weight"))
        if isinstance(recipe, Cut) and isinstance(recipe.source, Stored):
            cuts.setdefault(recipe.source.name, []).append(name)
    formats = {name: _format(module) for name, module in modules}
    for name, module in modules:
        parameter = aliases.get(f"{name}.weight", f"{name}.weight")
        if parameter in seen or (isinstance(module, _PLAIN) and parameter != f"{name}.weight"):
            continue  # tied to an embedding, which is stored once
        seen.add(parameter)
        recipe = recipes[parameter]
        key = _key(parameter, recipe)
        count = 1
        if isinstance(recipe, Cut):
            group = cuts.get(recipe.source.name, []) if isinstance(recipe.source, Stored) else []
            whole = len(group) == len(recipe.sizes) and len({formats[n] for n in group}) == 1
            if recipe.axis or recipe.interleaved or not whole:
                key = parameter.removesuffix(".weight")
            else:
                count = len(recipe.sizes)
        piece = module.packed if isinstance(module, _PACKED) else module.weight.detach()
        bias = getattr(module, "bias", None)
        yield key, piece, None if bias is None else bias.detach(), recipe, count


def _format(module: nn.Module) -> str:
    return module.packed.format if isinstance(module, _PACKED) else "plain"


def _key(parameter: str, recipe: Recipe) -> str:
    """What mistral.rs calls the module: as checkpoints do, and experts as three stacks."""
    own = parameter.removesuffix(".weight")
    match recipe:
        case Stored(name) if name.endswith(".weight"):
            # A head that serves as embedding, too, is stored under the embedding's name.
            return own if name.startswith("lm_head") else name.removesuffix(".weight")
        case Cut(source=Stored(name)) if name.endswith(".weight"):
            return name.removesuffix(".weight")
        case Stacked(parts=(Stored(name), *_)):
            found = _EXPERT.fullmatch(name)
            if found:
                return f"{found['stack']}.{_MIXTRAL.get(found['name'], found['name'])}"
    return own


def _leaves(recipe: Recipe) -> Iterator[str]:
    match recipe:
        case Stored():
            yield recipe.name
        case Stacked():
            for part in recipe.parts:
                yield from _leaves(part)
        case Cut() | Transposed():
            yield from _leaves(recipe.source)


def _entry(key: str, weight: _Weight, plugins: PluginManager) -> Entry:
    assert len(weight.pieces) == weight.count
    first = weight.pieces[0]
    if isinstance(first, PackedWeight):
        value: Tensor | PackedWeight = (
            first if weight.count == 1 else type(first).concat(weight.pieces)  # type: ignore[arg-type]
        )
    else:
        value = torch.cat(weight.pieces) if weight.count > 1 else first  # type: ignore[arg-type]
    kind, parts, label = _stored(key, value, plugins)
    name = f"{key}.weight"
    named = {f"{name}.format": torch.tensor(kind.value, dtype=torch.uint8)}
    for part, tensor in parts.items():
        named[f"{name}.{part}" if part else name] = tensor.cpu().contiguous()
    if weight.biases:
        named[f"{key}.bias"] = torch.cat(weight.biases).cpu().contiguous()
    return Entry(key, tuple(value.shape), label, named)


def _stored(
    key: str, value: Tensor | PackedWeight, plugins: PluginManager
) -> tuple[Kind, dict[str, Tensor], str]:
    """Kind, parts by suffix, and label."""
    if isinstance(value, Tensor):
        plain = value if value.dtype in FLOATS else value.float()
        return Kind.UNQUANT, {"": plain}, "unquant"
    if isinstance(value, PackedStack):
        raise UnsupportedError(
            f"{key} is a stack of separately packed experts ({value.format}), which UQFF has no "
            f"form for: quantize the unquantized model"
        )
    kind, quantizer = _quantizer_of(key, value, plugins)
    if kind in FLAT and len(value.shape) != 2:
        raise UnsupportedError(
            f"{key} is a stack of experts, which UQFF does not store in {kind.name}; choose a "
            f"GGUF or AFQ type"
        )
    parts = quantizer.serialize(value)
    match kind:
        case Kind.GGUF:
            number = parts["dtype"]
            made = {"": parts["data"], "dtype": _u32(number), "shape": _sizes(parts["shape"])}
            label = _GGML_LABELS.get(number, value.format.removeprefix("gguf.").replace("_k", "k"))
        case Kind.FP8:
            if tuple(parts["scale"].shape) != (1, 1):
                raise UnsupportedError(
                    f"{key} is FP8 with several scales ({value.format}); UQFF stores one a matrix"
                )
            scale = parts["scale"].reshape(())
            made = {
                "": parts["weight"],
                "dequant_w_scale": scale,
                "dequant_x_scale": torch.tensor(1.0),
                "quant_scale": 1 / scale,
                "dtype": _u32(_DTYPE_CODE[torch.bfloat16]),
            }
            label = "fp8"
        case Kind.MXFP4:
            made = {"": parts["blocks"].flatten(-2), "scales": parts["scales"]}
            label = "mxfp4"
        case _:
            made = {"" if n == "weight" else n: _tensor(kind, n, p) for n, p in parts.items()}
            bits = parts.get("bits")
            label = kind.name.lower() if bits is None else f"{kind.name.lower()}{bits}"
    return kind, made, label


def _quantizer_of(key: str, value: PackedWeight, plugins: PluginManager) -> tuple[Kind, Quantizer]:
    """The quantizer that takes this weight apart."""
    family = value.format.partition(".")[0]
    family = {"affine": "afq"}.get(family, family)
    for kind, name in QUANTIZERS.items():
        if name == family:
            return kind, plugins.resolve(plugins.get("quantizers", name))()
    raise ConfigError(f"{key} is packed as {value.format}, which UQFF has no form for")


def _tensor(kind: Kind, name: str, part: Any) -> Tensor:
    """A part as the file stores it."""
    if isinstance(part, Tensor):
        return part
    if name == "shape":
        return _sizes(part)
    return torch.tensor(int(part or 0), dtype=SCALARS[kind][name])


def _u32(number: int) -> Tensor:
    return torch.tensor(number, dtype=torch.uint32)


def _sizes(shape: Sequence[int]) -> Tensor:
    return torch.tensor(list(shape), dtype=torch.uint32)

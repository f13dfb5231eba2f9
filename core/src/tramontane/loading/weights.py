"""Puts a checkpoint's tensors into a model that was built on the meta device.

Module by module, in the order of the model: its own parameters are bound, then the finished
module passes through the steps. At most one tensor exists twice at any time, and where file and
model agree on the dtype none does: the parameter is a view of the mapped file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from tramontane.errors import CheckpointError
from tramontane.loading.dtype import Narrow
from tramontane.loading.rules import Arrangement, Cut, Recipe, Stacked, Stored, Transposed
from tramontane.nn import (
    ExpertLinear,
    NarrowExpertLinear,
    NarrowLinear,
    PackedEmbedding,
    PackedExpertLinear,
    PackedLinear,
    PackedStack,
)
from tramontane.protocols import Checkpoint, InSituPlan, PackedWeight
from tramontane.protocols.pipeline import Progress

Step = Callable[[str, nn.Module], nn.Module]
"""What may still happen to a module whose weights are in place: ``step(name, module)`` gives the
module to use, the same one when the step leaves it alone: an adapter's ``wrap``. Quantizing in
place comes before; the plain weight is freed before the next module is bound."""

Value = Tensor | PackedWeight


class Binder:
    """One run over a model.

    Args:
        model: every parameter on the meta device.
        checkpoint: where the tensors are.
        arrangement: which tensors make which parameter.
        dtype: of every floating parameter that is neither packed nor named in the ``FLOAT32`` of
            its module, where rounding would change decisions.
        device: where the weights will be.
        device_of: name of a module → where its weights will be instead; None for ``device``.
        in_situ: packs weights once they are made; None keeps them as the file has them.
        exact: whether activations stay as wide as they are before weights that are not packed; see
            `tramontane.nn.NarrowLinear`.
        steps: applied to each module that has weights of its own, in order.
        on_progress: told after each tensor.
    """

    def __init__(
        self,
        model: nn.Module,
        checkpoint: Checkpoint,
        arrangement: Arrangement,
        *,
        dtype: torch.dtype,
        device: torch.device,
        device_of: Callable[[str], torch.device] | None = None,
        in_situ: InSituPlan | None = None,
        exact: bool = False,
        steps: Sequence[Step] = (),
        on_progress: Progress | None = None,
    ) -> None:
        self._model = model
        self._checkpoint = checkpoint
        self._arrangement = arrangement
        self._dtype = dtype
        self._narrow = Narrow(checkpoint, arrangement, dtype)
        self._device = device
        self._device_of = device_of
        self._in_situ = in_situ
        self._exact = exact
        # Whether the tensor being made is packed afterwards, for which no dtype is better.
        self._as_stored = False
        self._steps = steps
        self._on_progress = on_progress
        self._done = 0
        self._total = checkpoint.nbytes
        # A format that maps its files lets go of pages whose tensor has been copied.
        self._release: Callable[[str], None] | None = getattr(checkpoint, "release", None)
        self._shared: dict[str, Value] = {}
        # Tensors that are cut, with the number of parts still to be taken.
        self._wholes: dict[Recipe, tuple[Value, int]] = {}

    def run(self) -> nn.Module:
        """Bind everything.

        Returns:
            The model; another object only where a step replaced its root.

        Raises:
            CheckpointError: wrong shape or dtype, or data outside the file.
        """
        model = self._model
        for name, module in list(model.named_modules()):
            own = _own_tensors(module)
            if not own:
                continue
            if self._device_of is not None:
                self._device = self._device_of(name)
            prefix = f"{name}." if name else ""
            exact = getattr(module, "FLOAT32", ())
            values = {
                leaf: self._value(
                    prefix + leaf,
                    meta if leaf in exact else self._typed(prefix + leaf, meta, module),
                )
                for leaf, meta in own.items()
            }
            placed = self._place(name, module, values)
            for step in self._steps:
                placed = step(name, placed)
            if placed is module:
                continue
            if name:
                model.set_submodule(name, placed)
            else:
                model = placed
        _check_complete(model)
        return model

    def _typed(self, name: str, meta: Tensor, module: nn.Module) -> Tensor:
        """``meta`` in the dtype of the model, or in that of the file for the matrices of a linear
        or of experts whose kernel reads them so."""
        if not meta.dtype.is_floating_point:
            return meta
        return meta.to(self._narrow.dtype_of(name, meta, module, self._device) or self._dtype)

    def _value(self, name: str, meta: Tensor) -> Value:
        """The finished tensor of one parameter; the same object for all of its aliases."""
        origin = self._arrangement.aliases.get(name, name)
        if origin in self._shared:
            return self._shared[origin]
        recipe = self._arrangement.recipes[origin]
        self._as_stored = self._in_situ is not None and self._in_situ.packs(origin)
        value = self._laid_out(self._make(recipe, meta), recipe)
        if tuple(value.shape) != tuple(meta.shape):
            raise CheckpointError(
                f"{name} must have shape {tuple(meta.shape)} by the configuration; the checkpoint "
                f"gives {tuple(value.shape)} ({_describe(recipe)}). Configuration and weights do "
                f"not belong together, or the file is damaged."
            )
        if self._in_situ is not None:
            value = self._packed(origin, value, recipe)
        if origin != name or name in self._arrangement.aliases.values():
            self._shared[origin] = value
        return value

    def _packed(self, name: str, value: Value, recipe: Recipe) -> Value:
        """What in-situ quantization makes of a tensor, which need not stay in memory then."""
        assert self._in_situ is not None
        packed = self._in_situ.pack(name, value)
        if packed is value:
            return value
        self._let_go(recipe)
        return packed.to(self._device)

    # Making tensors -----------------------------------------------------------------------

    def _make(self, recipe: Recipe, meta: Tensor) -> Value:
        match recipe:
            case Stored():
                value = self._checkpoint.tensor(recipe.name)
                self._count(value, recipe.name)
                if isinstance(value, PackedWeight):
                    return value.to(self._device)
                return self._convert(value, meta, recipe.name)
            case Cut():
                return self._cut(recipe, meta)
            case Stacked():
                return self._stack(recipe, meta)
            case Transposed():
                value = self._make(recipe.source, meta)
                if isinstance(value, PackedWeight):
                    return value
                if value.dim() < 2:
                    raise CheckpointError(
                        f"{_describe(recipe)} has shape {tuple(value.shape)}; a matrix is needed"
                    )
                return value.transpose(-1, -2)

    def _laid_out(self, value: Value, recipe: Recipe) -> Value:
        """Plain rows one after the other; a copy where the file has them otherwise."""
        if isinstance(value, PackedWeight) or value.is_contiguous():
            return value
        value = value.contiguous()
        self._let_go(recipe)
        return value

    def _cut(self, recipe: Cut, meta: Tensor) -> Value:
        whole, left = self._wholes.pop(recipe.source, (None, len(recipe.sizes)))
        if whole is None:
            whole = self._make(recipe.source, meta)
        whole = whole.to(self._device)  # made for a layer that may be elsewhere
        if left > 1:
            self._wholes[recipe.source] = whole, left - 1
        axis = recipe.axis
        length = whole.shape[axis] if axis < len(whole.shape) else 0
        if length != sum(recipe.sizes):
            raise CheckpointError(
                f"{_describe(recipe.source)} has length {length} along axis {axis}; by the "
                f"configuration it is made of {' + '.join(map(str, recipe.sizes))}"
            )
        if isinstance(whole, Tensor):
            return whole[(slice(None),) * axis + (recipe.rows,)]
        try:
            return whole.part(recipe.rows, axis)
        except ValueError as cause:
            raise CheckpointError(
                f"{_describe(recipe.source)} is packed and cannot be parted along axis {axis}: "
                f"{cause}"
            ) from cause

    def _stack(self, recipe: Stacked, meta: Tensor) -> Value:
        """Packed parts stay as they are, side by side. Plain ones are copied into place one by
        one, so that they never exist twice as a whole."""
        dtype = meta.dtype
        if not meta.dim() or meta.shape[0] != len(recipe.parts):
            raise CheckpointError(
                f"{_describe(recipe)}: {len(recipe.parts)} tensors are stacked where the "
                f"configuration asks for shape {tuple(meta.shape)}"
            )
        packed: list[PackedWeight] = []
        whole: Tensor | None = None
        for index, part in enumerate(recipe.parts):
            value = self._make(part, meta[0])
            if tuple(value.shape) != tuple(meta.shape[1:]):
                raise CheckpointError(
                    f"{_describe(part)} has shape {tuple(value.shape)}; by the configuration it "
                    f"must be {tuple(meta.shape[1:])}"
                )
            if isinstance(value, PackedWeight) and [p.format for p in packed] == (
                [value.format] * index
            ):
                packed.append(value)
                continue
            if whole is None:
                whole = torch.empty(meta.shape, dtype=dtype, device=self._device)
                for row, earlier in zip(whole, packed, strict=False):
                    row.copy_(earlier.dequantize(dtype))
            whole[index].copy_(
                value.dequantize(dtype) if isinstance(value, PackedWeight) else value
            )
            self._let_go(part)
        return PackedStack(packed) if whole is None else whole

    def _convert(self, stored: Tensor, meta: Tensor, name: str) -> Tensor:
        """A stored tensor on the model's device, in the model's dtype."""
        floats = meta.dtype.is_floating_point
        if floats != stored.dtype.is_floating_point or (floats and stored.dtype.itemsize == 1):
            raise CheckpointError(
                f"{name} is stored as {_named(stored.dtype)}, and the model takes "
                f"{'BF16, F16 or F32' if floats else _named(meta.dtype)} there. Quantized weights "
                f"need the plug-in of their format."
            )
        dtype = stored.dtype if self._as_stored else meta.dtype
        value = stored.to(device=self._device, dtype=dtype).contiguous()
        if value.data_ptr() != stored.data_ptr() or value.device != stored.device:
            self._let_go(Stored(name))
        return value

    def _let_go(self, recipe: Recipe) -> None:
        while isinstance(recipe, Cut | Transposed):
            recipe = recipe.source
        if self._release is not None and isinstance(recipe, Stored):
            self._release(recipe.name)

    def _count(self, value: Value, name: str) -> None:
        self._done += value.nbytes
        if self._on_progress is not None:
            self._on_progress(self._done, self._total, name)

    # Placing them -------------------------------------------------------------------------

    def _place(self, name: str, module: nn.Module, values: dict[str, Value]) -> nn.Module:
        """The module with these tensors, or its packed twin when its weight is packed."""
        weight = values.get("weight")
        if isinstance(weight, PackedWeight):
            if isinstance(module, nn.Embedding):
                return PackedEmbedding(weight, self._dtype)
            if isinstance(module, nn.Linear | ExpertLinear):
                twin = PackedLinear if isinstance(module, nn.Linear) else PackedExpertLinear
                return twin(weight, self._plain(values["bias"]) if "bias" in values else None)
        for leaf, value in values.items():
            plain = self._plain(value)
            if leaf in module._parameters:
                plain = self._parameter(plain)
            setattr(module, leaf, plain)
        if type(module) in (nn.Linear, ExpertLinear) and module.weight.dtype != self._dtype:
            narrow = NarrowLinear if isinstance(module, nn.Linear) else NarrowExpertLinear
            weight, bias = cast(nn.Parameter, module.weight), cast(Any, module.bias)
            return narrow(weight, bias, self._exact or self._decides(name))
        return module

    def _decides(self, name: str) -> bool:
        """Whether rounding what enters a module would change decisions, as its parent says."""
        parent, _, leaf = name.rpartition(".")
        return leaf in getattr(self._model.get_submodule(parent), "EXACT", ())

    def _plain(self, value: Value) -> Tensor:
        """Norms and biases are too small to stay packed."""
        return value.dequantize(self._dtype) if isinstance(value, PackedWeight) else value

    def _parameter(self, value: Tensor) -> nn.Parameter:
        """One `Parameter` object for a tensor, however many modules share it."""
        if isinstance(value, nn.Parameter):
            return value
        parameter = nn.Parameter(value, requires_grad=False)
        for name, shared in self._shared.items():
            if shared is value:
                self._shared[name] = parameter
        return parameter


def wanted_names(model: nn.Module) -> list[str]:
    """Parameters and persistent buffers, which a checkpoint must hold."""
    return [
        f"{name}.{leaf}" if name else leaf
        for name, module in model.named_modules()
        for leaf in _own_tensors(module)
    ]


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all weights in place, shared ones once."""
    plain = {id(t): t.nbytes for t in (*model.parameters(), *model.buffers())}
    packed: dict[int, int] = {}
    for module in model.modules():
        weight: Any = getattr(module, "packed", None)
        if isinstance(weight, PackedWeight):
            packed[id(weight)] = weight.nbytes
    return sum(plain.values()) + sum(packed.values())


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers that lie directly in ``module``."""
    transient = module._non_persistent_buffers_set
    buffers = {k: b for k, b in module._buffers.items() if k not in transient}
    return {k: t for k, t in {**module._parameters, **buffers}.items() if t is not None}


def _check_complete(model: nn.Module) -> None:
    """Nothing is left on the meta device; only a buffer of an architecture's own could be."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise CheckpointError(
                f"{type(model).__name__} leaves {name} on the meta device: buffers that are not "
                f"stored must be computed when they are first used"
            )


def _describe(recipe: Recipe) -> str:
    match recipe:
        case Stored():
            return recipe.name
        case Cut():
            return f"part {recipe.index + 1} of {_describe(recipe.source)}"
        case Transposed():
            return _describe(recipe.source)
        case Stacked():
            return f"{_describe(recipe.parts[0])} and {len(recipe.parts) - 1} more"


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

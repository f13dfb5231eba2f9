"""Running a model's forwards in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from attrs import evolve
from torch import Tensor, nn

from tramontane.cache import PagedKV, PagedLatent
from tramontane.errors import EngineClosedError
from tramontane.protocols.batch import ForwardBatch
from tramontane.protocols.cache import CacheSpec, LayerCache


class LocalExecutor:
    """Holds a model and its caches.

    Args:
        model: an `tramontane.protocols.Architecture`, weights bound.
        config: its configuration.
        num_blocks: KV blocks; `tramontane.loading.plan` says how many.
        block_size: tokens a block.
        max_seqs: sequences that may run at once.
        dtype: of the cache.
        device: of weights and cache.
        layer_devices: of each layer and its cache, where they are not all on ``device``.
    """

    def __init__(
        self,
        model: nn.Module,
        config: Any,
        *,
        num_blocks: int,
        block_size: int,
        max_seqs: int,
        dtype: torch.dtype,
        device: torch.device | str,
        layer_devices: Sequence[torch.device] | None = None,
    ) -> None:
        self._device = torch.device(device)
        self._num_blocks = num_blocks
        specs: list[CacheSpec] = list(type(model).cache_specs(config))  # type: ignore[attr-defined]
        self._recurrent = any(spec.bytes_per_seq(dtype) for spec in specs)
        self._model: Any = model.eval()
        self._layer_devices = layer_devices or [self._device] * len(specs)
        self._caches: list[LayerCache] = [
            spec.allocate(
                num_blocks=num_blocks,
                block_size=block_size,
                num_seqs=max_seqs,
                dtype=dtype,
                device=place,
            )
            for spec, place in zip(specs, self._layer_devices, strict=True)
        ]

    @property
    def num_blocks(self) -> int:
        return self._num_blocks

    @property
    def recurrent(self) -> bool:
        return self._recurrent

    @property
    def cache_nbytes(self) -> int:
        """Bytes reserved for all layers."""
        return sum(cache.nbytes for cache in self._caches)

    def forward(self, batch: ForwardBatch) -> Tensor:
        """Logits [R, vocab] float32 of ``batch.logit_rows``; R may be 0.

        Raises:
            EngineClosedError: the executor has been closed.
        """
        if self._model is None:
            raise EngineClosedError("The model has been closed; load it again.")
        with torch.inference_mode():
            if self._device.type != "cpu":
                batch = _to_device(batch, self._device)
            hidden = self._model(batch, self._caches)  # [T, hidden]
            num_logits = batch.logit_rows.shape[0]
            if num_logits != batch.num_tokens:
                hidden = hidden[batch.logit_rows]
            logits: Tensor = self._model.logits(hidden)
            return logits.float()

    def copy_blocks(self, pairs: list[tuple[int, int]]) -> None:
        """Copy blocks ``source → destination`` in every layer that has blocks."""
        if not pairs:
            return
        moves = {d: torch.tensor(pairs, device=d).unbind(1) for d in {*self._layer_devices}}
        with torch.inference_mode():
            for place, cache in zip(self._layer_devices, self._caches, strict=True):
                if isinstance(cache, PagedKV | PagedLatent):
                    cache.copy_blocks(*moves[place])

    def close(self) -> None:
        """Let go of weights and cache."""
        self._model = None
        self._caches = []
        if any(place.type == "cuda" for place in (self._device, *self._layer_devices)):
            torch.cuda.empty_cache()


def _to_device(batch: ForwardBatch, device: torch.device) -> ForwardBatch:
    def move(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=True)

    return evolve(
        batch,
        token_ids=move(batch.token_ids),
        positions=move(batch.positions),
        query_starts=move(batch.query_starts),
        context_lens=move(batch.context_lens),
        slots=move(batch.slots),
        block_tables=move(batch.block_tables),
        logit_rows=move(batch.logit_rows),
        state_slots=None if batch.state_slots is None else move(batch.state_slots),
        embeddings=None if batch.embeddings is None else move(batch.embeddings),
    )

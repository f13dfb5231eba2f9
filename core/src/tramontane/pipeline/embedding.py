"""`EmbeddingPipeline`: texts to vectors.

No engine runs behind it: a text is read once and whole, nothing of it is kept, and nothing is
sampled. Texts of all lengths are packed one after another, without padding.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch

from tramontane.api import EmbeddingRequest
from tramontane.errors import EngineClosedError, ValidationError
from tramontane.hooks.specs import ModelKind
from tramontane.loading.embedding import LoadedEmbedder, load_embedding
from tramontane.loading.selection import load_request
from tramontane.protocols.batch import ForwardBatch
from tramontane.protocols.pipeline import PipelineOptions

if TYPE_CHECKING:
    from tramontane.protocols.cache import CacheSpec, LayerCache

BATCH_TOKENS = 2048
"""Tokens of one forward; a longer text has one to itself."""


class EmbeddingPipeline:
    """An embedding model with its tokenizer. Thread-safe: the forwards of all requests take turns,
    so that a short request waits for one forward of a long one at most, not for all.

    Args:
        model_id: shown in errors.
        loaded: weights, tokenizer and the modules after them.
        options: of these, the block size counts.
    """

    kind: ClassVar[ModelKind] = "embedding"

    def __init__(self, model_id: str, loaded: LoadedEmbedder, options: PipelineOptions) -> None:
        self.model_id = model_id
        self._loaded: LoadedEmbedder | None = loaded
        self._tokenizer = loaded.tokenizer
        self._vocab_size: int = loaded.config.vocab_size
        self._max_seq_len = loaded.max_seq_len
        self._block_size = options.block_size
        self._specs: Sequence[CacheSpec] = type(loaded.model).cache_specs(loaded.config)  # type: ignore[attr-defined]
        self._turn = threading.Lock()
        self._facts = {
            "architecture": loaded.architecture.name,
            "weight_bytes": loaded.weight_bytes,
            "cache_bytes": 0,
            "embedding_width": loaded.modules.width,
        }
        self._num_texts = self._num_tokens = self._num_steps = 0

    @classmethod
    def load(cls, which: Any, options: PipelineOptions) -> Self:
        """Bring up ``Which.Embedding``."""
        if not any(s.kind == cls.kind for s in options.plugins.specs("architectures")):
            raise options.plugins.missing("architectures", "EmbeddingGemma")
        request = load_request(which, options)
        return cls(request.model_id, load_embedding(request), options)

    # Requests -----------------------------------------------------------------------------

    def embed(self, request: EmbeddingRequest) -> list[list[float]]:
        """One vector for each input, in their order.

        Raises:
            ValidationError: an input is too long, or holds a token that does not exist.
            EngineClosedError: the model has been closed.
        """
        inputs: Sequence[str | list[int]] = request.inputs
        texts = [
            self._fitted(i, item, truncate=request.truncate_sequence)
            for i, item in enumerate(inputs)
        ]
        vectors: list[list[float]] = [[]] * len(texts)
        for members in _by_length([len(ids) for ids in texts]):
            found = self._forward([texts[i] for i in members])
            for i, vector in zip(members, found, strict=True):
                vectors[i] = vector
        return vectors

    def tokenize(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of ``text``."""
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def detokenize(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids.

        Raises:
            ValidationError: an id is not in the vocabulary.
        """
        self._check_tokens("tokens", tokens)
        return self._tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens)

    # The pipeline protocol ----------------------------------------------------------------

    @property
    def max_sequence_length(self) -> int | None:
        return self._max_seq_len

    def stats(self) -> dict[str, Any]:
        """``texts``, ``tokens`` and ``steps`` since the model was loaded."""
        counters = {"texts": self._num_texts, "tokens": self._num_tokens, "steps": self._num_steps}
        return self._facts | counters

    def close(self) -> None:
        with self._turn:
            on_accelerator = self._loaded is not None and self._loaded.device.type == "cuda"
            self._loaded = None
            if on_accelerator:
                torch.cuda.empty_cache()

    # Steps of `embed` ---------------------------------------------------------------------

    def _fitted(self, index: int, item: str | list[int], *, truncate: bool) -> list[int]:
        """Token ids of an input, or with ``truncate`` as much of its beginning as may be."""
        where = f"input {index}"
        if isinstance(item, str):
            ids = self._tokenizer.encode(item)
        else:
            self._check_tokens(where, item)
            ids = item
        if not ids:
            raise ValidationError(f"{where} has no tokens: give a text with something in it")
        limit = self._max_seq_len
        if len(ids) <= limit:
            return ids
        if not truncate:
            raise ValidationError(
                f"{where} has {len(ids)} tokens, and this model takes {limit}: shorten it, or set "
                f"truncate_sequence=True to keep its beginning"
            )
        if isinstance(item, str):
            return _cut(ids, self._tokenizer.encode(item, add_special_tokens=False), limit)
        return ids[:limit]

    def _check_tokens(self, where: str, tokens: Sequence[int]) -> None:
        unknown = next((t for t in tokens if not 0 <= t < self._vocab_size), None)
        if unknown is not None:
            raise ValidationError(
                f"{where} holds token id {unknown}, which does not exist; this model has 0 to "
                f"{self._vocab_size - 1}"
            )

    def _forward(self, texts: Sequence[list[int]]) -> list[list[float]]:
        """The vectors of some texts, in one forward."""
        with self._turn, torch.inference_mode():
            loaded = self._loaded
            if loaded is None:
                raise EngineClosedError(f"{self.model_id} has been closed; load it again")
            batch = pack(texts, self._block_size, loaded.device)
            # Layers run one after another and nothing is read later: those of a kind share one.
            places = list(zip(self._specs, loaded.device_map.layers, strict=True))
            stores: dict[tuple[CacheSpec, torch.device], LayerCache] = {
                (spec, device): spec.allocate(
                    num_blocks=sum(-(-len(ids) // self._block_size) for ids in texts),
                    block_size=self._block_size,
                    num_seqs=len(texts),
                    dtype=loaded.dtype,
                    device=device,
                )
                for spec, device in set(places)
            }
            hidden = loaded.model(batch, [stores[place] for place in places])
            vectors: list[list[float]] = loaded.modules(hidden, batch.query_lens).tolist()
            self._num_texts += len(texts)
            self._num_tokens += batch.num_tokens
            self._num_steps += 1
        return vectors


def pack(texts: Sequence[list[int]], block_size: int, device: torch.device) -> ForwardBatch:
    """Whole texts one after another, each in blocks of its own that follow one another."""
    lengths = [len(ids) for ids in texts]
    num_blocks = [-(-length // block_size) for length in lengths]
    first_blocks = [0, *accumulate(num_blocks)][:-1]
    positions = torch.cat([torch.arange(length) for length in lengths])
    bases = torch.tensor(first_blocks).repeat_interleave(torch.tensor(lengths)) * block_size
    columns = torch.arange(max(num_blocks))
    tables = torch.tensor(first_blocks)[:, None] + columns
    tables[columns >= torch.tensor(num_blocks)[:, None]] = -1
    starts = [0, *accumulate(lengths)]
    return ForwardBatch(
        token_ids=torch.tensor([token for ids in texts for token in ids]).to(device),
        positions=positions.to(device),
        query_starts=torch.tensor(starts, dtype=torch.int32).to(device),
        context_lens=torch.tensor(lengths, dtype=torch.int32).to(device),
        slots=(bases + positions).to(device),
        block_tables=tables.to(torch.int32).to(device),
        logit_rows=torch.empty(0, dtype=torch.int64, device=device),
        query_lens=lengths,
        kv_lens=lengths,
    )


def _by_length(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices of the texts of each forward: neighbours in length, `BATCH_TOKENS` together."""
    members: list[int] = []
    num_tokens = 0
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if members and num_tokens + lengths[i] > BATCH_TOKENS:
            yield members
            members, num_tokens = [], 0
        members.append(i)
        num_tokens += lengths[i]
    yield members


def _cut(ids: list[int], plain: list[int], limit: int) -> list[int]:
    """The beginning of a text between the special tokens that the tokenizer put around it; a
    model that goes by its last token was trained on that one.

    Args:
        ids: the text with special tokens.
        plain: the text alone.
    """
    around = len(ids) - len(plain)
    for before in range(around + 1):
        if ids[before : before + len(plain)] == plain and around < limit:
            after = ids[before + len(plain) :]
            return ids[: limit - len(after)] + after
    return ids[:limit]

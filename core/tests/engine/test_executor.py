"""`LocalExecutor` with a one-layer attention model."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from attrs import frozen
from torch import nn

from tramontane.cache import FullAttention
from tramontane.engine.engine import Engine
from tramontane.engine.executor import LocalExecutor
from tramontane.errors import EngineClosedError


@frozen
class Config:
    vocab_size: int = 31
    hidden_size: int = 16


class Attends(nn.Module):
    """Embedding, one attention head over the paged cache, tied output."""

    def __init__(self, config):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.places = nn.Embedding(256, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.num_logit_rows: list[int] = []

    @staticmethod
    def cache_specs(config):
        return [FullAttention(1, config.hidden_size)]

    def forward(self, batch, caches):
        (cache,) = caches
        x = self.embedding(batch.token_ids) + self.places(batch.positions)
        cache.write(self.k_proj(x)[:, None], x[:, None], batch.slots)
        out = []
        for i, (length, kv_len) in enumerate(zip(batch.query_lens, batch.kv_lens, strict=True)):
            start = int(batch.query_starts[i])
            table = batch.block_tables[i]
            table = table[table >= 0].long()
            k = cache.k[table].transpose(1, 2).flatten(0, 1)[:kv_len, 0].to(x.dtype)
            v = cache.v[table].transpose(1, 2).flatten(0, 1)[:kv_len, 0].to(x.dtype)
            q = x[start : start + length]
            visible = torch.arange(kv_len)[None] <= batch.positions[start : start + length, None]
            out.append((q @ k.T).masked_fill(~visible, -torch.inf).softmax(-1) @ v)
        return x + torch.cat(out)

    def logits(self, hidden):
        self.num_logit_rows.append(len(hidden))
        return (hidden @ self.embedding.weight.T).to(torch.bfloat16)


def build(toy, **options):
    config = Config()
    executor = LocalExecutor(
        Attends(config),
        config,
        num_blocks=40,
        block_size=4,
        max_seqs=16,
        dtype=torch.float32,
        device="cpu",
    )
    engine = Engine(
        executor,
        tokenizer=toy.tokenizer,
        eos_token_ids=[],
        max_seq_len=100,
        block_size=4,
        vocab_size=31,
        **options,
    )
    return engine, executor


def test_any_schedule_gives_the_same_tokens(toy):
    outputs = []
    for options in ({}, {"max_step_tokens": 5, "max_seqs": 3}, {"no_kv_cache": True}):
        engine, executor = build(toy, **options)
        seqs = [toy.seq(engine, "abcdefgh"[i:] * 2, 12) for i in range(5)]
        engine.submit(seqs)
        for seq in seqs:
            toy.read(seq)
        outputs.append([seq.output_ids for seq in seqs])
        assert max(executor._model.num_logit_rows) <= 5  # last tokens only
        engine.close()
    assert outputs[0] == outputs[1] == outputs[2]
    assert len({tuple(ids) for ids in outputs[0]}) > 1


def test_close_frees_weights_and_cache(toy):
    engine, executor = build(toy)
    engine.submit([seq := toy.seq(engine, "abc", 3)])
    toy.read(seq)
    model, cache = weakref.ref(executor._model), weakref.ref(executor._caches[0].k)
    gc.collect()
    gc.disable()
    try:
        engine.close()
        assert model() is None
        assert cache() is None
    finally:
        gc.enable()
    with pytest.raises(EngineClosedError):
        executor.forward(None)


def test_copy_blocks(toy):
    engine, executor = build(toy)
    engine.close()
    _, executor = build(toy)
    cache = executor._caches[0]
    cache.k.normal_()
    before = cache.k.clone()
    executor.copy_blocks([(1, 5), (2, 6)])
    executor.copy_blocks([])
    assert torch.equal(cache.k[[5, 6]], before[[1, 2]])
    assert torch.equal(cache.k[:5], before[:5])
    assert executor.cache_nbytes == 40 * 4 * 2 * 16 * 4

"""An engine over a model at hand, greedy and by token ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from attrs import frozen

from tramontane.engine.engine import Engine
from tramontane.engine.executor import LocalExecutor
from tramontane.nn.rope import rope_regime, rope_switch
from tramontane.sampling.params import SamplingParams
from tramontane.text.tokenizer import Tokenizer
from tramontane_testkit.models import byte_tokenizer

TIMEOUT_SECS = 60.0


@frozen(eq=False)
class Served:
    """A running engine.

    Attributes:
        engine: itself, for its counters.
        block_size: tokens of its blocks.
        recurrent: whether the model has a recurrent state.
    """

    engine: Engine
    block_size: int
    recurrent: bool

    def greedy(self, prompts: Sequence[list[int]], count: int) -> list[list[int]]:
        """The ``count`` likeliest tokens after each prompt, all submitted at once."""
        params = SamplingParams(max_tokens=count)
        seqs = [self.engine.sequence(ids, params, ignore_eos=True) for ids in prompts]
        self.engine.submit(seqs)
        for seq in seqs:
            while seq.output.get(TIMEOUT_SECS).finish_reason is None:
                pass
        return [list(seq.output_ids) for seq in seqs]


@contextmanager
def serving(
    model: Any, config: Any, *, num_tokens: int = 512, block_size: int = 4, **options: Any
) -> Iterator[Served]:
    """Serve a model while the block lasts; the model outlives it.

    Args:
        num_tokens: of the cache.
        options: of `Engine`.
    """
    weight = next(model.parameters())
    executor = LocalExecutor(
        model,
        config,
        num_blocks=-(-num_tokens // block_size),
        block_size=block_size,
        max_seqs=4,
        dtype=weight.dtype,
        device=weight.device,
    )
    engine = Engine(
        executor,
        tokenizer=Tokenizer(byte_tokenizer()),
        eos_token_ids=(),
        max_seq_len=config.max_position_embeddings,
        max_seqs=4,
        block_size=block_size,
        regime=partial(_regime, config),
        switch_len=rope_switch(config),
        **options,
    )
    try:
        yield Served(engine, block_size, executor.recurrent)
    finally:
        engine.close()


def _regime(config: Any, num_tokens: int) -> bytes:
    return repr(rope_regime(config, num_tokens)).encode()

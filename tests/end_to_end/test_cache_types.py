"""Types of the KV cache on the demo model: how far answers move, and what they take."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import tramontane_demo_model
from tramontane import CompletionRequest, CompletionResponse, PagedCacheType, Runner, Which
from tramontane.engine.executor import LocalExecutor
from tramontane.errors import ValidationError
from tramontane.loading.loader import LoadRequest, load_text
from tramontane.protocols import ForwardBatch

DEMO = Path(tramontane_demo_model.__file__).parent / "model"
OPENING = "Once upon a time, there was a little girl named Lily. She loved to play outside."
STRANGERS = ("Tom had a red ball.", OPENING + " One day,", "The cat")
MOST_KL = {
    torch.bfloat16: 1e-4,
    torch.float16: 1e-5,
    torch.int8: 1e-3,
    torch.float8_e4m3fn: 1e-2,
}
"""Nats a token: about three times what they measure on the model's own stories."""


def step(start: int, count: int, ids: list[int]) -> ForwardBatch:
    places = torch.arange(start, start + count)
    return ForwardBatch(
        token_ids=torch.tensor(ids[start : start + count]),
        positions=places,
        query_starts=torch.tensor([0, count], dtype=torch.int32),
        context_lens=torch.tensor([start + count], dtype=torch.int32),
        slots=places,
        block_tables=torch.arange(len(ids) // 32 + 1, dtype=torch.int32)[None],
        logit_rows=torch.arange(count),
        query_lens=[count],
        kv_lens=[start + count],
        seq_lens=[len(ids)],
    )


def test_how_far_predictions_move() -> None:
    loaded = load_text(LoadRequest(model_id=str(DEMO), dtype="f32"))
    ids = loaded.tokenizer.encode(OPENING * 6)

    def predicted(dtype: torch.dtype, size: int) -> torch.Tensor:
        executor = LocalExecutor(
            loaded.model,
            loaded.config,
            num_blocks=len(ids) // 32 + 1,
            block_size=32,
            max_seqs=1,
            dtype=dtype,
            device="cpu",
        )
        parts = [
            executor.forward(step(start, min(size, len(ids) - start), ids))
            for start in range(0, len(ids), size)
        ]
        return torch.cat(parts).double().log_softmax(-1)

    expected = predicted(torch.float32, len(ids))
    for dtype, most in MOST_KL.items():
        for size in (len(ids), 33):
            found = predicted(dtype, size)
            divergence = (expected.exp() * (expected - found)).sum(-1).mean()
            assert 0 < divergence < most, (dtype, size, divergence)


def greedy(runner: Runner, prompt: str, max_tokens: int = 40) -> str:
    request = CompletionRequest(
        prompt=prompt, max_tokens=max_tokens, temperature=0.0, ignore_eos=True
    )
    response = runner.send_completion_request(request)
    assert isinstance(response, CompletionResponse)
    return response.choices[0].text


@pytest.fixture(scope="module")
def plain() -> str:
    with Runner(Which.Plain(str(DEMO)), pa_cache_type="BF16") as runner:
        return greedy(runner, OPENING)


@pytest.mark.parametrize("kind", list(PagedCacheType), ids=str)
def test_the_same_text_alone_in_company_and_with_a_cached_prefix(
    kind: PagedCacheType, plain: str
) -> None:
    with Runner(Which.Plain(str(DEMO)), pa_cache_type=kind) as runner:
        alone = greedy(runner, OPENING)
        with ThreadPoolExecutor(4) as pool:
            others = [pool.submit(greedy, runner, stranger) for stranger in STRANGERS]
            assert pool.submit(greedy, runner, OPENING).result() == alone
            assert all(other.result() for other in others)
        hits = runner.stats()["prefix_hit_tokens"]
        assert greedy(runner, OPENING) == alone
    assert hits > 0
    if kind is not PagedCacheType.F8E4M3:  # which may take another word where two are as likely
        assert alone == plain


def test_smaller_types_hold_more_tokens() -> None:
    blocks = {}
    for kind in ("F32", "F16", "F8E4M3"):
        with Runner(Which.Plain(str(DEMO)), pa_gpu_mem=8, pa_cache_type=kind) as runner:
            stats = runner.stats()
            blocks[kind] = stats["blocks_total"]
            assert stats["cache_bytes"] <= 8 << 20
    page = (Path(__file__).parents[2] / "docs" / "kv_cache.md").read_text("utf-8")
    assert [name for name in stats if f"`{name}`" not in page] == []
    assert stats["cache_dtype"] == "float8_e4m3fn"
    assert blocks["F16"] == 2 * blocks["F32"]
    # 64 numbers and a scale of 4 bytes for each head of a token.
    assert blocks["F8E4M3"] == pytest.approx(blocks["F32"] * 256 / 68, abs=4)


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"PagedCacheType has no 'q4'; there are: auto, "):
        Runner(Which.Plain(str(DEMO)), pa_cache_type="q4")

"""Real trained models, token for token: a Llama as GGUF, and one as safetensors with its quirks."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tramontane import CompletionRequest, CompletionResponse, Runner, Which
from tramontane_testkit.data import data_path

BEGIN = "<|start_story|>"
STORY = f"{BEGIN}Once upon a time, "
STORY_IDS = [1, 147, 201, 282, 215]
FIRST_IDS = [286, 598, 1662, 356, 499, 826, 1363, 1145, 1652, 615]
STRANGERS = [f"{BEGIN}Tom had a red ball.", BEGIN, f"{STORY}in a big house, a cat"]


def greedy(runner: Runner, prompt: str, max_tokens: int) -> str:
    request = CompletionRequest(
        prompt=prompt, max_tokens=max_tokens, temperature=0.0, ignore_eos=True
    )
    response = runner.send_completion_request(request)
    assert isinstance(response, CompletionResponse)
    return response.choices[0].text


def with_strangers(runner: Runner, prompt: str, max_tokens: int) -> str:
    """`greedy` while other prompts run in the same batches."""
    with ThreadPoolExecutor(len(STRANGERS) + 1) as pool:
        others = [pool.submit(greedy, runner, s, max_tokens // 2) for s in STRANGERS]
        ours = pool.submit(greedy, runner, prompt, max_tokens)
        for other in others:
            other.result()
        return ours.result()


@pytest.fixture(scope="module")
def tinystories() -> Iterator[tuple[Runner, Path]]:
    folder = data_path("models", "tinystories-656k")
    with Runner(which=Which.Plain(model_id=str(folder))) as runner:
        yield runner, folder


def test_gguf_gives_the_golden_text() -> None:
    folder = data_path("models", "stories260k")
    golden = (folder / "golden.txt").read_text("utf-8").rstrip("\n")
    with Runner(which=Which.GGUF(str(folder), "stories260K.gguf")) as runner:
        assert greedy(runner, "", 256).rstrip("\n") == golden
        assert with_strangers_of_gguf(runner, 256).rstrip("\n") == golden


def with_strangers_of_gguf(runner: Runner, max_tokens: int) -> str:
    with ThreadPoolExecutor(3) as pool:
        others = [pool.submit(greedy, runner, p, 100) for p in ("One day", "The cat saw")]
        ours = pool.submit(greedy, runner, "", max_tokens)
        for other in others:
            other.result()
        return ours.result()


def test_safetensors_begin_as_recorded(tinystories: tuple[Runner, Path]) -> None:
    runner, _ = tinystories
    assert runner.tokenize_text(STORY) == STORY_IDS
    expected = runner.detokenize_text(STORY_IDS + FIRST_IDS)
    start = runner.detokenize_text(STORY_IDS)
    assert start + greedy(runner, STORY, len(FIRST_IDS)) == expected


def test_safetensors_equal_transformers_for_200_tokens(tinystories: tuple[Runner, Path]) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    runner, folder = tinystories
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        ids = reference.generate(
            torch.tensor([STORY_IDS]),
            attention_mask=torch.ones(1, len(STORY_IDS), dtype=torch.long),
            max_new_tokens=200,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )[0].tolist()
    expected = runner.detokenize_text(ids)
    start = runner.detokenize_text(STORY_IDS)
    assert len(ids) == len(STORY_IDS) + 200
    assert start + greedy(runner, STORY, 200) == expected
    assert start + with_strangers(runner, STORY, 200) == expected

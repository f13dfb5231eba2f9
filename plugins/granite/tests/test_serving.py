"""Granite 4 in the engine: states of many sequences, whoever runs beside them."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tramontane import ChatCompletionRequest, CompletionRequest, Runner, Which
from tramontane.protocols import ForwardBatch
from tramontane_granite.granite_moe_hybrid import GraniteDecoder
from tramontane_testkit.models import hf_model, save_hf

from .test_granite_moe_hybrid import MAMBA, MULTIPLIERS  # noqa: TID252

PROMPTS = ["a", "once upon a time ", "0123456789" * 9, "the same words again", "xyz" * 20]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = hf_model("GraniteMoeHybridForCausalLM", **MAMBA, **MULTIPLIERS, num_local_experts=4)
    return save_hf(model, tmp_path_factory.mktemp("granite"))


def answer(runner: Runner, prompt: str) -> str:
    request = CompletionRequest(prompt=prompt, max_tokens=24, temperature=0.0, ignore_eos=True)
    return runner.send_completion_request(request).choices[0].text


def test_concurrent_answers_equal_those_alone(directory: Path) -> None:
    with Runner(which=Which.Plain(model_id=str(directory)), max_seqs=1) as runner:
        expected = [answer(runner, prompt) for prompt in PROMPTS]
    assert len(set(expected)) == len(PROMPTS)
    with Runner(which=Which.Plain(model_id=str(directory)), max_seqs=3) as runner:
        answers: dict[int, str] = {}

        def ask(i: int) -> None:
            answers[i] = answer(runner, PROMPTS[i % len(PROMPTS)])

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(2 * len(PROMPTS))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [answers[i] for i in range(2 * len(PROMPTS))] == expected * 2


def test_states_survive_a_step_that_is_run_again(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of several sequences fail when all layers have written, so each is run once more."""
    forward, failed = GraniteDecoder.forward, []

    def fails_together(self: GraniteDecoder, batch: ForwardBatch, caches: Any) -> Tensor:
        h = forward(self, batch, caches)
        if batch.num_seqs > 1:
            failed.append(batch.num_seqs)
            raise RuntimeError("too many at once")
        return h

    with Runner(which=Which.Plain(model_id=str(directory))) as runner:
        expected = answer(runner, PROMPTS[1])
        monkeypatch.setattr(GraniteDecoder, "forward", fails_together)
        request = CompletionRequest(
            prompt=PROMPTS[1], max_tokens=24, temperature=0.0, ignore_eos=True, n_choices=3
        )
        choices = runner.send_completion_request(request).choices
    assert failed
    assert [choice.text for choice in choices] == [expected] * 3


def test_it_chats(directory: Path) -> None:
    with Runner(which=Which.Plain(model_id=str(directory))) as runner:
        request = ChatCompletionRequest(messages="Hi", max_tokens=8, temperature=0.0)
        usage = runner.send_chat_completion_request(request).usage
        assert usage.completion_tokens <= 8

"""Chat and completion through the runner: whole, streamed, from threads and from an event loop."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tramontane import (
    ChatCompletionRequest,
    ChatCompletionResponse,
    CompletionRequest,
    CompletionResponse,
    Runner,
    Which,
)
from tramontane_testkit.models import tiny_llama


def chat(text: str = "Hello", **fields: Any) -> ChatCompletionRequest:
    return ChatCompletionRequest(
        messages=text, **{"max_tokens": 12, "temperature": 0.0, "ignore_eos": True} | fields
    )


def answer(runner: Runner, request: ChatCompletionRequest) -> str:
    response = runner.send_chat_completion_request(request)
    assert isinstance(response, ChatCompletionResponse)
    content = response.choices[0].message.content
    assert content is not None
    return content


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def test_a_chat_response_is_complete(runner: Runner) -> None:
    response = runner.send_chat_completion_request(chat())
    assert isinstance(response, ChatCompletionResponse)
    assert response.object == "chat.completion"
    assert response.choices[0].finish_reason == "length"
    assert response.choices[0].message.role == "assistant"
    usage = response.usage
    prompt = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert usage.prompt_tokens == len(runner.tokenize_text(prompt, add_special_tokens=False))
    assert usage.completion_tokens == 12
    assert usage.total_tokens == usage.prompt_tokens + 12
    assert usage.total_time_sec >= usage.total_completion_time_sec > 0


def test_a_stream_adds_up_to_the_response(runner: Runner) -> None:
    whole = answer(runner, chat())
    chunks = list(runner.send_chat_completion_request(chat(stream=True)))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole
    assert [c.usage is not None for c in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].choices[0].finish_reason == "length"
    assert len({c.id for c in chunks}) == 1


def test_messages_may_be_dicts_and_requests_too(runner: Runner) -> None:
    given = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 12}
    given |= {"temperature": 0.0, "ignore_eos": True}
    response = runner.send_chat_completion_request(given)
    assert isinstance(response, ChatCompletionResponse)
    assert response.choices[0].message.content == answer(runner, chat())


def test_answers_do_not_depend_on_who_else_is_served(runner: Runner) -> None:
    prompts = [f"Question number {i}: " + "why? " * i for i in range(8)]
    alone = [answer(runner, chat(p)) for p in prompts]
    with ThreadPoolExecutor(len(prompts)) as pool:
        together = list(pool.map(lambda p: answer(runner, chat(p)), prompts))
    assert together == alone


def test_sixty_four_requests_at_once(runner: Runner) -> None:
    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(lambda i: answer(runner, chat(f"{i % 4}")), range(64)))
    assert len(set(answers)) <= 4
    assert runner.stats()["running"] == runner.stats()["waiting"] == 0


def test_completions_echo_suffix_and_choices(runner: Runner) -> None:
    fields = {"max_tokens": 6, "temperature": 0.0, "ignore_eos": True}
    plain = runner.send_completion_request(CompletionRequest(prompt="one two", **fields))
    assert isinstance(plain, CompletionResponse)
    text = plain.choices[0].text
    dressed = CompletionRequest(prompt="one two", echo_prompt=True, suffix=" END", **fields)
    response = runner.send_completion_request(dressed)
    assert isinstance(response, CompletionResponse)
    assert response.choices[0].text == f"one two{text} END"
    dressed.stream = True
    chunks = list(runner.send_completion_request(dressed))
    assert "".join(c.choices[0].text for c in chunks) == f"one two{text} END"


def test_choices_differ_and_a_seed_repeats_them(runner: Runner) -> None:
    def texts(**fields: Any) -> list[str | None]:
        request = chat(n_choices=3, temperature=1.0, **fields)
        response = runner.send_chat_completion_request(request)
        assert isinstance(response, ChatCompletionResponse)
        assert [c.index for c in response.choices] == [0, 1, 2]
        assert response.usage.completion_tokens == 36
        return [c.message.content for c in response.choices]

    first = texts(seed=3)
    assert len(set(first)) == 3
    assert texts(seed=3) == first
    assert texts(seed=4) != first


def test_a_runner_seed_repeats_every_answer(model_dir: Path) -> None:
    def texts() -> list[str]:
        with Runner(which=Which.Plain(model_id=str(model_dir)), seed=11) as runner:
            return [answer(runner, chat(temperature=1.0)) for _ in range(3)]

    first = texts()
    assert len(set(first)) == 3
    assert texts() == first


def test_best_of_returns_the_likeliest(runner: Runner) -> None:
    request = CompletionRequest(
        prompt="x", best_of=6, temperature=1.0, seed=5, max_tokens=4, logprobs=True, ignore_eos=True
    )
    best = runner.send_completion_request(request)
    request.n_choices = 6
    every = runner.send_completion_request(request)
    assert isinstance(best, CompletionResponse)
    assert isinstance(every, CompletionResponse)

    def mean(choice: Any) -> float:
        return sum(e.logprob for e in choice.logprobs.content) / len(choice.logprobs.content)

    assert best.choices[0].text == max(every.choices, key=mean).text
    assert best.usage.completion_tokens == 24


def test_logprobs_go_with_the_tokens(runner: Runner) -> None:
    request = chat(logprobs=True, top_logprobs=3)
    response = runner.send_chat_completion_request(request)
    assert isinstance(response, ChatCompletionResponse)
    logprobs = response.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 12
    for entry in logprobs.content:
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].logprob == entry.logprob <= 0  # greedy takes the likeliest
    request.stream = True
    chunks = list(runner.send_chat_completion_request(request))
    streamed = [c.choices[0].logprobs for c in chunks if c.choices[0].logprobs]
    assert [s.token for s in streamed] == [e.token for e in logprobs.content]


def test_stop_strings_are_never_shown(runner: Runner) -> None:
    whole = answer(runner, chat(max_tokens=20))
    stop = whole[8:11]
    request = chat(max_tokens=20, stop_seqs=[stop, "never comes"], stream=True)
    chunks = list(runner.send_chat_completion_request(request))
    text = "".join(c.choices[0].delta.content or "" for c in chunks)
    assert text == whole[: whole.index(stop)]
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_an_event_loop_gets_the_same(runner: Runner) -> None:
    whole = answer(runner, chat())

    async def several() -> list[Any]:
        async def streamed() -> str:
            chunks = await runner.send_chat_completion_request_async(chat(stream=True))
            return "".join([c.choices[0].delta.content or "" async for c in chunks])

        async def completed() -> Any:
            request = CompletionRequest(prompt="a", max_tokens=3, temperature=0.0)
            return await runner.send_completion_request_async(request)

        plain = runner.send_chat_completion_request_async(chat())
        return list(await asyncio.gather(plain, streamed(), completed()))

    plain, streamed, completed = asyncio.run(several())
    assert plain.choices[0].message.content == streamed == whole
    assert isinstance(completed, CompletionResponse)


def test_cancelling_a_task_cancels_the_request(runner: Runner) -> None:
    async def cancelled() -> None:
        request = chat(max_tokens=200)
        task = asyncio.create_task(runner.send_chat_completion_request_async(request))
        while not runner.stats()["running"]:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    wait_until(lambda: runner.stats()["running"] == 0)


@pytest.mark.parametrize("how", ["close", "drop", "break", "with"])
def test_leaving_a_stream_cancels_it(runner: Runner, how: str) -> None:
    before = runner.stats()["generated_tokens"]
    stream = runner.send_chat_completion_request(chat(max_tokens=200, stream=True))
    next(stream)
    if how == "close":
        stream.close()
        stream.close()
        assert list(stream) == []
    elif how == "drop":
        del stream
        gc.collect()
    elif how == "break":
        for _ in stream:
            break
        del stream
    else:
        with stream:
            next(stream)
    wait_until(lambda: runner.stats()["running"] == 0)
    assert runner.stats()["generated_tokens"] - before < 200


def test_a_reader_that_stops_keeps_nobody_waiting(runner: Runner) -> None:
    idle = runner.send_chat_completion_request(chat(max_tokens=150, stream=True))
    assert answer(runner, chat()) == answer(runner, chat())
    wait_until(lambda: runner.stats()["running"] == 0)
    assert sum(1 for _ in idle) > 50


def test_text_and_tokens(runner: Runner) -> None:
    ids = runner.tokenize_text("Grüße, 世界", add_special_tokens=False)
    assert runner.detokenize_text(ids) == "Grüße, 世界"
    assert runner.max_sequence_length() == 256


def test_no_kv_cache_and_no_prefix_cache_change_nothing(runner: Runner, model_dir: Path) -> None:
    whole = answer(runner, chat())
    which = Which.Plain(model_id=str(model_dir))
    for settings in ({"no_kv_cache": True}, {"prefix_cache_n": 0}, {"max_seqs": 1}):
        with Runner(which=which, **settings) as other:
            assert answer(other, chat()) == whole


def test_a_prefix_is_computed_once(runner: Runner) -> None:
    long = "The same beginning every time. " * 4
    first = answer(runner, chat(long + "A"))
    hits = runner.stats()["prefix_hit_tokens"]
    assert answer(runner, chat(long + "A")) == first
    assert runner.stats()["prefix_hit_tokens"] - hits >= 96


def test_keys_of_other_frequencies_are_not_reused(tmp_path: Path) -> None:
    """With longrope, a prompt beyond the original context rotates even its first keys otherwise."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
        "original_max_position_embeddings": 64,
    }
    which = Which.Plain(str(tiny_llama(tmp_path / "long", rope_parameters=rope)))
    fields = {"max_tokens": 8, "temperature": 0.0, "ignore_eos": True}
    short, long = "abcdefgh" * 5, "abcdefgh" * 12
    with Runner(which=which) as runner:
        runner.send_completion_request(CompletionRequest(prompt=short, **fields))
        after = runner.send_completion_request(CompletionRequest(prompt=long, **fields))
        assert runner.stats()["prefix_hit_tokens"] == 0
    with Runner(which=which) as runner:
        alone = runner.send_completion_request(CompletionRequest(prompt=long, **fields))
    assert isinstance(after, CompletionResponse)
    assert isinstance(alone, CompletionResponse)
    assert after.choices[0].text == alone.choices[0].text

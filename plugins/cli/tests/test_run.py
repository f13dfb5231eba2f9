from __future__ import annotations

import json

import pytest

from tramontane.errors import ModelLoadError, ValidationError


def test_one_answer_for_a_prompt(cli, fake):
    fake.answers = [["Par", "is."]]
    result = cli("run", "-m", "a/b", "What", "is", "it?")
    assert (result.exit_code, result.stdout) == (0, "Paris.\n")
    (request,) = fake.requests
    assert [dict(m) for m in request.messages] == [{"role": "user", "content": "What is it?"}]
    assert request.stream
    assert fake.made[0]["which"].model_id == "a/b"
    assert fake.closed
    assert fake.streams_closed == 1


def test_the_prompt_may_come_from_standard_input(cli, fake):
    fake.answers = [["1"], ["2"]]
    assert cli("run", "-m", "a/b", stdin="line one\nline two\n").exit_code == 0
    assert cli("run", "-m", "a/b", "Sum up:", "-", stdin="a\nb\n").exit_code == 0
    contents = [request.messages[-1]["content"] for request in fake.requests]
    assert contents == ["line one\nline two", "Sum up:\n\na\nb"]


@pytest.mark.parametrize("stdin", ["", " \n"])
def test_an_empty_prompt_is_wrong_usage(cli, fake, stdin):
    result = cli("run", "-m", "a/b", stdin=stdin)
    assert result.exit_code == 2
    assert "empty" in result.stderr
    assert not fake.made


def test_options_reach_request_and_runner(cli, fake):
    fake.answers = [["x"]]
    options = (
        "--temperature 0.5 --top-p 0.9 --top-k 7 --min-p 0.1 --repetition-penalty 1.2 "
        "--max-tokens 9 --stop A --stop B --seed 3 --max-seq-len 64 --isq Q4K --cache-type i8 "
        "--chat-template t.jinja --topology layers.yml --imatrix m.dat "
        "--num-device-layers 0:16 --num-device-layers 1:8"
    )
    assert cli("run", "-m", "a/b", "--system", "Be brief.", *options.split(), "hi").exit_code == 0
    (request,) = fake.requests
    assert request.messages[0]["content"] == "Be brief."
    sampling = (request.temperature, request.top_p, request.top_k, request.min_p)
    assert sampling == (0.5, 0.9, 7, 0.1)
    assert (request.repetition_penalty, request.max_tokens) == (1.2, 9)
    assert request.stop_seqs == ["A", "B"]
    made = fake.made[0]
    assert (made["seed"], made["pa_ctxt_len"], made["chat_template"]) == (3, 64, "t.jinja")
    assert made["in_situ_quant"] == "Q4K"
    assert made["pa_cache_type"] == "i8"
    assert made["num_device_layers"] == ["0:16", "1:8"]
    assert (made["which"].topology, made["which"].imatrix) == ("layers.yml", "m.dat")


def test_what_is_not_given_is_left_to_the_model(cli, fake):
    from tramontane import ChatCompletionRequest

    fake.answers = [["x"]]
    cli("run", "-m", "a/b", "hi")
    (request,) = fake.requests
    assert request == ChatCompletionRequest(
        messages=[{"role": "user", "content": "hi"}], stream=True
    )
    assert set(fake.made[0]) == {"which", "on_progress"}


def test_raw_continues_the_prompt(cli, fake):
    fake.answers = [["x"]]
    assert cli("run", "-m", "a/b", "--raw", "Once upon").exit_code == 0
    assert fake.requests[0].prompt == "Once upon"
    assert cli("run", "-m", "a/b", "--raw", "--system", "s", "hi").exit_code == 2


def test_json_holds_the_whole_answer(cli, fake, chunk):
    fake.answers = [[chunk(thought="hm"), "Grüße", chunk(finish="length")]]
    result = cli("run", "-m", "a/b", "--json", "hi")
    data = json.loads(result.stdout)
    assert data["content"] == "Grüße"
    assert data["reasoning_content"] == "hm"
    assert data["model"] == "a/b"
    assert data["usage"]["completion_tokens"] == 3
    assert data["first_token_secs"] >= 0


def test_stats_go_to_stderr(cli, fake):
    fake.answers = [["x"]]
    result = cli("run", "-m", "a/b", "--stats", "hi")
    assert result.stdout == "x\n"
    assert "12 prompt tokens at 340.1/s" in result.stderr
    assert "3 tokens at 51.0/s" in result.stderr


def test_an_error_is_one_message(cli, fake):
    fake.answers = [["half", ValidationError("the prompt is too long; shorten it")]]
    result = cli("run", "-m", "a/b", "hi")
    assert result.exit_code == 1
    assert "error: the prompt is too long; shorten it\n" in result.stderr
    assert "Traceback" not in result.stderr
    assert fake.closed


def test_debug_keeps_the_traceback(cli, fake):
    error = ValidationError("the prompt is too long")
    fake.answers = [[error]]
    assert cli("--debug", "run", "-m", "a/b", "hi").exception is error


def test_a_defect_is_told_from_an_error(cli, fake):
    fake.answers = [[KeyError("inner")]]
    result = cli("run", "-m", "a/b", "hi")
    assert result.exit_code == 70
    assert "unexpected KeyError" in result.stderr
    assert "--debug" in result.stderr


def test_a_model_that_does_not_load(cli, monkeypatch):
    def refuse(**settings):
        raise ModelLoadError("config.json is missing; name another directory")

    monkeypatch.setattr("tramontane.Runner", refuse, raising=False)
    result = cli("run", "-m", "a/b", "hi")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "config.json is missing" in result.stderr


def test_an_interrupted_answer_keeps_what_came(cli, fake):
    fake.answers = [["Par", KeyboardInterrupt()]]
    result = cli("run", "-m", "a/b", "hi")
    assert (result.exit_code, result.stdout) == (130, "Par\n")
    assert fake.streams_closed == 1
    assert fake.closed


def test_options_are_checked_before_a_model_is_loaded(cli, fake):
    for option in (["--top-p", "3"], ["--max-tokens", "0"], ["--temperature", "warm"], ["--nope"]):
        assert cli("run", "-m", "a/b", *option, "hi").exit_code == 2
    assert cli("run", "-m", "a/b", "--dtype", "int3", "hi").exit_code == 1
    assert not fake.made

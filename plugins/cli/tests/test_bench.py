"""``tramontane bench`` with the model that travels in tramontane-demo-model."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from tramontane import plugin_manager
from tramontane_cli.bench import measure

needs_model = pytest.mark.skipif(
    plugin_manager().default_model() is None, reason="no installed plug-in brings a default model"
)
SHORT = ("--prompt", "20", "--prompt", "40", "--decode", "4", "--rounds", "2")


@needs_model
def test_json_tells_speed_load_and_memory(cli):
    result = cli("bench", *SHORT, "--json")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert data["load_secs"] > 0
    assert 0 < data["imports_mb"] <= data["peak_mb"]
    lengths = [speed["prompt_tokens"] for speed in data["speeds"]]
    assert lengths == pytest.approx([20, 40], abs=2)
    for speed in data["speeds"]:
        assert min(speed.values()) > 0


@needs_model
def test_the_table_has_a_row_for_each_figure(cli):
    result = cli("bench", *SHORT)
    assert result.exit_code == 0, result.output
    rows = dict(line.split("\t") for line in result.stdout.splitlines())
    assert {"load", "peak memory", "threads"} <= rows.keys()
    assert sum(row.startswith("prefill of") for row in rows) == 2
    assert all(rows[row].endswith("tok/s") for row in rows if row.startswith("decode of"))


@needs_model
def test_more_than_the_context_is_refused(cli):
    result = cli("bench", "--prompt", "100000")
    assert result.exit_code == 1
    assert "--prompt" in result.stderr


@needs_model
def test_layers_are_placed_and_packed_as_asked(cli, tmp_path):
    file = tmp_path / "layers.yml"
    file.write_text("0-99: {isq: Q8_0}")
    result = cli("bench", *SHORT, "--topology", str(file))
    assert result.exit_code == 1
    assert "the model has 4 layers" in result.stderr
    result = cli("bench", *SHORT, "--num-device-layers", "7:1")
    assert result.exit_code == 1
    assert "num_device_layers puts 1 layers on accelerator 7" in result.stderr


def test_medians_over_the_rounds():
    times = iter([(1.0, 4.0), (2.0, 2.0), (8.0, 1.0)])

    class Runner:
        def tokenize_text(self, text, add_special_tokens):
            return text.split()

        def detokenize_text(self, ids):
            return " ".join(ids)

        def send_completion_request(self, request):
            prompt, answer = next(times)
            count = len(request.prompt.split())
            assert (request.max_tokens, request.ignore_eos) == (5, True)
            return SimpleNamespace(
                usage=SimpleNamespace(
                    prompt_tokens=count,
                    completion_tokens=5,
                    avg_prompt_tok_per_sec=count / prompt,
                    total_prompt_time_sec=prompt,
                    total_completion_time_sec=answer,
                )
            )

    speed = measure(Runner(), 30, 5, 3)
    assert speed.prompt_tokens == 30
    assert speed.prefill_tok_per_sec == 15.0
    assert speed.first_token_secs == 2.0
    assert speed.decode_tok_per_sec == 2.0

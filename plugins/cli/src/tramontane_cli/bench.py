"""``tramontane bench``: how fast a model runs on this machine."""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import attrs
import typer
from attrs import frozen

from tramontane.errors import ValidationError
from tramontane_cli.options import (
    Arch,
    CacheType,
    DeviceLayers,
    Dtype,
    Isq,
    Model,
    TokModel,
    Topology,
)
from tramontane_cli.run import load
from tramontane_cli.terminal import table

WORDS = "The north wind and the sun disputed which of them was the stronger. "


@frozen
class Speed:
    """Medians of one prompt length.

    Attributes:
        prompt_tokens: as the tokenizer counts them.
        prefill_tok_per_sec: prompt tokens over the time until the first token.
        decode_tok_per_sec: tokens after it, over the time from then on.
        first_token_secs: until the prompt was in the cache.
    """

    prompt_tokens: int
    prefill_tok_per_sec: float
    decode_tok_per_sec: float
    first_token_secs: float


def bench(
    model: Model = None,
    prompt: Annotated[
        list[int] | None,
        typer.Option(
            help="Tokens of prompt, about; may be repeated. 128 and 512 otherwise.", min=1
        ),
    ] = None,
    decode: Annotated[int, typer.Option(help="Tokens to decode.", min=2)] = 64,
    rounds: Annotated[int, typer.Option(help="Medians are taken over as many.", min=1)] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    dtype: Dtype = "auto",
    isq: Isq = None,
    topology: Topology = None,
    num_device_layers: DeviceLayers = None,
    cache_type: CacheType = None,
    arch: Arch = None,
    tok_model: TokModel = None,
) -> None:
    """Measure loading, prefill, decoding and memory of a model."""
    import torch

    from tramontane_cli.selection import default_model_id, select

    imports_mb = peak_mb()
    if model is None:
        from tramontane.hooks import plugin_manager

        model = default_model_id(plugin_manager())
    which = select(model, arch=arch, dtype=dtype, tok_model=tok_model, topology=topology)
    longest = max(prompt or (128, 512)) + decode
    settings: dict[str, Any] = {"prefix_cache_n": 0}  # every prompt is computed whole
    if isq is not None:
        settings["in_situ_quant"] = isq
    if num_device_layers:
        settings["num_device_layers"] = num_device_layers
    if cache_type is not None:
        settings["pa_cache_type"] = cache_type
    begin = time.perf_counter()
    with load(which, settings) as runner:
        complete(runner, "Hi", 2)
        load_secs = time.perf_counter() - begin
        context = runner.max_sequence_length()
        if context is not None and longest > context:
            raise ValidationError(
                f"{longest} tokens, prompt and answer together, are more than the {context} of "
                f"{model}; ask for less with --prompt and --decode"
            )
        speeds = [measure(runner, n, decode, rounds) for n in prompt or (128, 512)]
    figures = {
        "model": model,
        "threads": torch.get_num_threads(),
        "load_secs": load_secs,
        "peak_mb": peak_mb(),
        "imports_mb": imports_mb,
        "rounds": rounds,
        "speeds": [attrs.asdict(speed) for speed in speeds],
    }
    if as_json:
        typer.echo(json.dumps(figures, indent=2))
        return
    table(("what", "figure"), _rows(figures, speeds, decode))


def measure(runner: Any, tokens: int, decode: int, rounds: int) -> Speed:
    """Medians over ``rounds`` of a prompt of about ``tokens`` tokens, then ``decode`` more."""
    ids = runner.tokenize_text(WORDS, add_special_tokens=False)
    text = WORDS * (tokens // len(ids) + 1)
    cut = runner.tokenize_text(text, add_special_tokens=False)[:tokens]
    usages = [complete(runner, runner.detokenize_text(cut), decode) for _ in range(rounds)]
    return Speed(
        prompt_tokens=usages[0].prompt_tokens,
        prefill_tok_per_sec=statistics.median(u.avg_prompt_tok_per_sec for u in usages),
        decode_tok_per_sec=statistics.median(
            (u.completion_tokens - 1) / u.total_completion_time_sec for u in usages
        ),
        first_token_secs=statistics.median(u.total_prompt_time_sec for u in usages),
    )


def complete(runner: Any, text: str, tokens: int) -> Any:
    """Usage of a greedy answer of exactly ``tokens`` tokens."""
    from tramontane import CompletionRequest

    request = CompletionRequest(prompt=text, max_tokens=tokens, temperature=0.0, ignore_eos=True)
    return runner.send_completion_request(request).usage


def peak_mb() -> float:
    """Most memory this process has held, mapped files included."""
    if sys.platform == "win32":
        import psutil

        return float(psutil.Process().memory_info().peak_wset) / (1 << 20)
    import resource

    status = Path("/proc/self/status")
    if status.exists():  # Linux counts what the parent held into ru_maxrss
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def _rows(figures: dict[str, Any], speeds: list[Speed], decode: int) -> list[tuple[str, str]]:
    rows = [("threads", str(figures["threads"])), ("load", f"{figures['load_secs']:.2f} s")]
    for speed in speeds:
        n = speed.prompt_tokens
        rows += [
            (f"prefill of {n} tokens", f"{speed.prefill_tok_per_sec:.1f} tok/s"),
            (f"first token after {n}", f"{speed.first_token_secs:.2f} s"),
            (f"decode of {decode} after {n}", f"{speed.decode_tok_per_sec:.1f} tok/s"),
        ]
    rows.append(("peak memory", f"{figures['peak_mb']:.0f} MB"))
    rows.append(("of which torch and imports", f"{figures['imports_mb']:.0f} MB"))
    return rows

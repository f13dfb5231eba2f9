"""OpenVINO GenAI on a folder of `openvino_model.py`, as an engine of `run.py`; needs an interpreter
with openvino-genai.

Usage: open_vino.py FOLDER THREADS, then one JSON command a line on standard input.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import openvino
import openvino_genai
from worker import Prompts, serve

UNLIMITED = 1 << 30


class Engine:
    """One model behind its continuous batching, set up as `LLMPipeline` sets it up for itself."""

    def __init__(self, folder: str, threads: int) -> None:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.max_num_batched_tokens = UNLIMITED
        scheduler.enable_prefix_caching = True
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            folder, scheduler, "CPU", {"INFERENCE_NUM_THREADS": threads}
        )
        self._prompts = Prompts()

    def run(self, *, prompt: int, decode: int, sequences: int, cached: int = 0) -> dict:
        """As `ours.py` does; a token is a byte of the prompt."""
        seconds, metrics = self._together(prompt, decode, sequences, cached)
        figures = {"seconds": seconds, "total": sequences * decode / seconds}
        if sequences == 1:
            figures["prefill"] = prompt / metrics.get_ttft().mean * 1e3
            figures["decode"] = 1e3 / metrics.get_tpot().mean if decode > 1 else 0.0
        else:
            prompts, _ = self._together(prompt, 1, sequences, cached)
            figures["decode"] = sequences * (decode - 1) / (seconds - prompts)
        return figures

    def _together(
        self, prompt: int, decode: int, sequences: int, cached: int
    ) -> tuple[float, openvino_genai.PerfMetrics]:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.do_sample, config.ignore_eos = decode, False, True
        config.eos_token_id, config.stop_token_ids = 0, {0}  # it wants one, though not heeded
        texts = [self._prompts.next(prompt, cached) for _ in range(sequences)]
        ids = [openvino.Tensor(np.array([list(text.encode())], np.int64)) for text in texts]
        begin = time.perf_counter()
        answers = self._pipeline.generate(ids, [config] * sequences)
        seconds = time.perf_counter() - begin
        assert all(len(answer.m_generation_ids[0]) == decode for answer in answers)
        return seconds, answers[0].perf_metrics


def token_bytes(folder: Path) -> int:
    """Bytes of weights that a decoded token reads: all but the embedding, 8 bits and a scale and a
    zero point a row."""
    shape = json.loads((folder / "config.json").read_text("utf-8"))
    embedding = shape["vocab_size"] * (shape["hidden_size"] + 3)
    return (folder / "openvino_model.bin").stat().st_size - embedding


serve(
    lambda folder, threads: Engine(folder, threads).run,
    version=openvino_genai.__version__.split("-")[0],
    token_bytes=token_bytes(Path(sys.argv[1])),
    finds_prefixes=True,
)

"""tramontane on a GGUF file or a directory, as an engine of `run.py`.

Usage: ours.py PATH THREADS, then one JSON command a line on standard input.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from tramontane import CompletionRequest, Runner, Which
from tramontane.api.responses import CompletionResponse


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Engine:
    """One model in a runner."""

    def __init__(self, path: Path) -> None:
        which = Which.Plain(str(path)) if path.is_dir() else Which.GGUF(str(path.parent), path.name)
        self._runner = Runner(which=which, pa_ctxt_len=16384)
        self._salt = 0

    def run(self, *, prompt: int, decode: int, sequences: int, cached: bool = False) -> Any:
        """``sequences`` greedy requests at once; prompts share no prefix unless ``cached``."""
        seconds, usages = self._together(prompt, decode, sequences, cached)
        figures = {"seconds": seconds, "total": sequences * decode / seconds, "peak_mb": peak_mb()}
        if sequences == 1:
            figures["prefill"] = usages[0].avg_prompt_tok_per_sec
            figures["decode"] = (decode - 1) / (usages[0].total_completion_time_sec or 1.0)
        else:
            # Prompts are computed beside the decoding of others; what they take is measured apart.
            prompts, _ = self._together(prompt, 1, sequences, cached)
            figures["decode"] = sequences * (decode - 1) / (seconds - prompts)
        return figures

    def _together(
        self, prompt: int, decode: int, sequences: int, cached: bool
    ) -> tuple[float, list[Any]]:
        texts = []
        for _ in range(sequences):
            self._salt += not cached
            words = "the quick brown fox jumps over the lazy dog " * (prompt // 40 + 1)
            texts.append(f"{self._salt:08d} {words}"[:prompt])  # a byte is a token
        begin = time.perf_counter()
        with ThreadPoolExecutor(sequences) as pool:
            usages = list(pool.map(lambda text: self._complete(text, decode), texts))
        return time.perf_counter() - begin, usages

    def _complete(self, text: str, tokens: int) -> Any:
        request = CompletionRequest(
            prompt=text, max_tokens=tokens, temperature=0.0, ignore_eos=True
        )
        response = self._runner.send_completion_request(request)
        assert isinstance(response, CompletionResponse)
        return response.usage


def main() -> None:
    torch.set_num_threads(int(sys.argv[2]))
    alone = peak_mb()
    begin = time.perf_counter()
    engine = Engine(Path(sys.argv[1]))
    engine.run(prompt=8, decode=1, sequences=1)
    ready = {"load_secs": time.perf_counter() - begin, "imports_mb": alone}
    print(json.dumps(ready), flush=True)
    for line in sys.stdin:
        print(json.dumps(engine.run(**json.loads(line))), flush=True)


main()

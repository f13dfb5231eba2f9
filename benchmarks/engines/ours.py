"""tramontane on a GGUF file or a directory, as an engine of `run.py`.

Usage: ours.py PATH THREADS, then one JSON command a line on standard input.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from worker import Prompts, peak_mb, serve, timed_together

BARE_MB = peak_mb()
import torch  # noqa: E402  its memory is told apart

TORCH_MB = peak_mb() - BARE_MB

from tramontane import CompletionRequest, Runner, Which  # noqa: E402
from tramontane.api.responses import CompletionResponse, Usage  # noqa: E402


class Engine:
    """One model in a runner."""

    def __init__(self, model: str, threads: int) -> None:
        torch.set_num_threads(threads)
        path = Path(model)
        which = Which.Plain(model) if path.is_dir() else Which.GGUF(str(path.parent), path.name)
        self._runner = Runner(which=which, pa_ctxt_len=16384)
        self._prompts = Prompts()

    def run(self, *, prompt: int, decode: int, sequences: int, cached: int = 0) -> dict[str, float]:
        """``sequences`` greedy requests at once; the first ``cached`` tokens are known already."""
        seconds, usages = self._together(prompt, decode, sequences, cached)
        figures = {"seconds": seconds, "total": sequences * decode / seconds}
        if sequences == 1:
            figures["prefill"] = usages[0].avg_prompt_tok_per_sec
            figures["decode"] = (decode - 1) / (usages[0].total_completion_time_sec or 1.0)
        else:
            # Prompts are computed beside the decoding of others; what they take is measured apart.
            prompts, _ = self._together(prompt, 1, sequences, cached)
            figures["decode"] = sequences * (decode - 1) / (seconds - prompts)
        return figures

    def _together(
        self, prompt: int, decode: int, sequences: int, cached: int
    ) -> tuple[float, list[Usage]]:
        texts = [self._prompts.next(prompt, cached) for _ in range(sequences)]
        return timed_together(lambda text: self._complete(text, decode), texts)

    def _complete(self, text: str, tokens: int) -> Usage:
        request = CompletionRequest(
            prompt=text, max_tokens=tokens, temperature=0.0, ignore_eos=True
        )
        response = self._runner.send_completion_request(request)
        assert isinstance(response, CompletionResponse)
        return response.usage


serve(
    lambda model, threads: Engine(model, threads).run,
    version=f"{version('tramontane')}, torch {torch.__version__}",
    torch_mb=TORCH_MB,
    finds_prefixes=True,
)

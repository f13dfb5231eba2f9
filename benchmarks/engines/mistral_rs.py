"""mistral.rs on a GGUF file, as an engine of `run.py`; needs an interpreter with mistralrs.

Usage: mistral_rs.py FILE THREADS, then one JSON command a line on standard input.
"""

import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

os.environ["RAYON_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = sys.argv[2]

from worker import Prompts, serve

from mistralrs import CompletionRequest, Runner, Usage, Which


class Engine:
    """One model in a runner of theirs."""

    def __init__(self, model: str) -> None:
        path = Path(model)
        which = Which.GGUF(quantized_model_id=str(path.parent), quantized_filename=path.name)
        self._runner = Runner(which=which, max_seqs=16)
        self._prompts = Prompts()

    def run(self, *, prompt: int, decode: int, sequences: int, cached: int = 0) -> dict:
        """As `ours.py` does, through the same interface, one request at a time."""
        assert sequences == 1
        text = self._prompts.next(prompt, cached)
        begin = time.perf_counter()
        usage = self._complete(text, decode)
        seconds = time.perf_counter() - begin
        return {
            "seconds": seconds,
            "total": decode / seconds,
            "prefill": usage.avg_prompt_tok_per_sec,
            "decode": usage.avg_compl_tok_per_sec,
        }

    def _complete(self, text: str, tokens: int) -> Usage:
        request = CompletionRequest(
            prompt=text, model="default", max_tokens=tokens, temperature=0.0, ignore_eos=True
        )
        return self._runner.send_completion_request(request).usage


# Their runner refuses a request while another one is answered ("Already borrowed").
serve(
    lambda model, threads: Engine(model).run,
    version=version("mistralrs"),
    finds_prefixes=True,
    most_sequences=1,
)

"""What a grammar costs: tokens a second of eight sequences, free and in a JSON schema.

    python benchmarks/grammars.py [MODEL] [--tokens N] [--runs N]

Runs alternate, so that whatever else the machine does falls on both alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
from typing import Any

from tramontane import ChatCompletionRequest, ChatCompletionResponse, Runner, Which

BATCH = 8
ITEM = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 5, "maxLength": 12},
        "number": {"type": "integer"},
        "sure": {"type": "boolean"},
    },
    "required": ["name", "number", "sure"],
    "additionalProperties": False,
}
SCHEMA = {"type": "array", "minItems": 1000, "items": ITEM}


def tokens_per_sec(runner: Runner, tokens: int, **fields: Any) -> float:
    """Decoding speed of one request with `BATCH` choices."""
    request = ChatCompletionRequest(
        "Write a list.",
        n_choices=BATCH,
        temperature=1.0,
        max_tokens=tokens,
        ignore_eos=True,
        **fields,
    )
    response = runner.send_chat_completion_request(request)
    assert isinstance(response, ChatCompletionResponse)
    return response.usage.avg_compl_tok_per_sec


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="tramontane/demo")
    parser.add_argument("--tokens", type=int, default=200, help="of each sequence")
    parser.add_argument("--runs", type=int, default=9, help="of each kind")
    given = parser.parse_args()
    grammar = {"grammar": json.dumps(SCHEMA), "grammar_type": "json_schema"}
    with Runner(which=Which.Plain(model_id=given.model), max_seqs=BATCH) as runner:
        for fields in ({}, grammar):
            tokens_per_sec(runner, given.tokens, **fields)  # compiles, and warms up
        pairs = [
            (
                tokens_per_sec(runner, given.tokens),
                tokens_per_sec(runner, given.tokens, **grammar),
            )
            for _ in range(given.runs)
        ]
    free, bound = (statistics.median(each) for each in zip(*pairs, strict=True))
    step = BATCH / free * 1000
    cost = free / bound - 1
    print(
        f"free {free:.0f} tokens/s, in the grammar {bound:.0f}: {cost:+.1%} time, "
        f"{cost * step:+.2f} ms on a step of {step:.1f} ms"
    )


if __name__ == "__main__":
    main()

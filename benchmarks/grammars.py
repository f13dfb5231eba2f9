"""What a grammar costs: tokens a second of eight sequences, free and in a JSON schema.

    python benchmarks/grammars.py [MODEL]

Runs alternate, so that whatever else the machine does falls on both alike.
"""

from __future__ import annotations

import json
import statistics
import sys
from typing import Any

from tramontane import ChatCompletionRequest, ChatCompletionResponse, Runner, Which

BATCH, TOKENS, RUNS = 8, 200, 9
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
SCHEMA = {"type": "array", "minItems": TOKENS, "items": ITEM}


def tokens_per_sec(runner: Runner, **fields: Any) -> float:
    """Decoding speed of one request with `BATCH` choices."""
    request = ChatCompletionRequest(
        "Write a list.",
        n_choices=BATCH,
        temperature=1.0,
        max_tokens=TOKENS,
        ignore_eos=True,
        **fields,
    )
    response = runner.send_chat_completion_request(request)
    assert isinstance(response, ChatCompletionResponse)
    return response.usage.avg_compl_tok_per_sec


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else "tramontane/demo"
    grammar = {"grammar": json.dumps(SCHEMA), "grammar_type": "json_schema"}
    with Runner(which=Which.Plain(model_id=model), max_seqs=BATCH) as runner:
        for fields in ({}, grammar):
            tokens_per_sec(runner, **fields)  # compiles, and warms up
        pairs = [(tokens_per_sec(runner), tokens_per_sec(runner, **grammar)) for _ in range(RUNS)]
    free, bound = (statistics.median(each) for each in zip(*pairs, strict=True))
    print(f"free {free:.0f} tokens/s, in the grammar {bound:.0f}: {free / bound - 1:+.1%} time")


if __name__ == "__main__":
    main()

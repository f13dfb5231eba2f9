"""The official JSON Schema test suite: what its schemas forbid is refused token by token, and what
a model that knows nothing writes under them is valid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from tramontane.api import ChatCompletionRequest
from tramontane.errors import ValidationError
from tramontane.sampling.constraint import Constraint
from tramontane.text.grammar import GrammarCompiler, answer_grammar
from tramontane.text.tokenizer import Tokenizer
from tramontane_testkit.data import data_folder
from tramontane_testkit.models import EOS, VOCAB_SIZE, byte_tokenizer

TOKENIZER = Tokenizer(byte_tokenizer(), bos_token="<s>", eos_token="</s>")
COMPILER = GrammarCompiler(TOKENIZER, VOCAB_SIZE, frozenset([EOS]))
SUITE = (data_folder() or Path("none")) / "json-schema" / "JSON-Schema-Test-Suite" / "tests"
VALIDATORS: dict[str, Any] = {
    "draft2020-12": jsonschema.Draft202012Validator,
    "draft7": jsonschema.Draft7Validator,
}
LONGEST = 400
"""Tokens of an answer."""

LET_THROUGH = {
    # llguidance resolves the reference by the id beside it.
    ("ref", "$ref prevents a sibling $id from changing the base uri"),
}
FORMATS = {
    "date": "days that a year or month does not have",
    "date-time": "leap seconds at other times than 23:59:60 UTC",
    "time": "leap seconds at other times than 23:59:60 UTC",
    "hostname": "lengths of the whole, and what international labels spell",
}
"""Formats of which llguidance knows the shape, and what it lets through."""


def files() -> list[Any]:
    return [
        pytest.param(
            path,
            id=f"{draft}-{path.stem}",
            marks=[] if draft == "draft2020-12" else pytest.mark.slow,
        )
        for draft in VALIDATORS
        for part in ("", "optional/format")
        for path in sorted((SUITE / draft / part).glob("*.json"))
    ]


def compiled(schema: Any) -> str | None:
    """A schema's grammar; None where llguidance cannot express it, and says so."""
    request = ChatCompletionRequest("", grammar=json.dumps(schema), grammar_type="json_schema")
    try:
        source = answer_grammar(request)
        assert source is not None
        COMPILER.matcher(source)
    except ValidationError:
        return None
    return source


def passes(source: str, instance: Any) -> bool:
    text = json.dumps(instance, ensure_ascii=False)
    tokens = TOKENIZER.encode(text, add_special_tokens=False)
    matcher = COMPILER.matcher(source)
    return bool(matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting())


def written(source: str, random: torch.Generator) -> str | None:
    """What a model of random logits writes; None when it comes to no end."""
    rules = Constraint(
        COMPILER.matcher(source),
        vocab_size=VOCAB_SIZE,
        token_bytes=TOKENIZER.token_bytes,
        encode=lambda text: TOKENIZER.encode(text, add_special_tokens=False),
        eos_token_ids=frozenset([EOS]),
    )
    said: list[int] = []
    while len(said) < LONGEST:
        logits = torch.randn(VOCAB_SIZE, generator=random)
        logits[[*b'"]}', EOS]] += 4.0  # that it may come to an end
        logits[[*b" \n\t\r\\"]] -= 4.0
        mask = rules.allowed()
        assert mask is not None
        logits[~mask] = -torch.inf
        token = int(torch.multinomial(logits.softmax(0), 1, generator=random))
        if token == EOS:
            return TOKENIZER.decode(said)
        said.append(token)
        rules.advance(token)
        if rules.finished:
            return TOKENIZER.decode(said)
    return None


@pytest.mark.parametrize("path", files())
def test_suite(path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    for case in json.loads(path.read_text(encoding="utf-8")):
        source = compiled(case["schema"])
        if source is None or (path.stem, case["description"]) in LET_THROUGH:
            continue
        for test in case["tests"]:
            if not test["valid"] and path.stem not in FORMATS:
                assert not passes(source, test["data"]), (case["description"], test["description"])
        text = written(source, random)
        # Python's regular expressions, which jsonschema uses, know no properties of characters.
        if text is not None and r"\\p" not in json.dumps(case["schema"]):
            VALIDATORS[path.relative_to(SUITE).parts[0]](case["schema"]).validate(json.loads(text))

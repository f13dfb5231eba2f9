"""The byte-level BPE tokenizer of the demo model and its files."""

import json
import re
from itertools import islice
from pathlib import Path

from text import BOS, END, EOS, PAD, TEMPLATE, dialogues, render
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB_SIZE = 1024
SPECIAL = [PAD, BOS, EOS, END, "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"]
# Kept in decoded text, since the parser of tool calls looks for them.
VISIBLE = ["<tool_call>", "</tool_call>"]
_MARKERS = re.compile("|".join(re.escape(marker) for marker in SPECIAL + VISIBLE))


def train_tokenizer(seed: int, num_dialogues: int = 10_000) -> Tokenizer:
    """Return a tokenizer of `VOCAB_SIZE` entries in which every digit is a token of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(VISIBLE),
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (render(dialogue) for dialogue in islice(dialogues(seed), num_dialogues))
    pieces = (piece for text in texts for piece in _MARKERS.split(text) if piece)
    tokenizer.train_from_iterator(pieces, trainer)
    tokenizer.add_tokens([AddedToken(marker, normalized=False) for marker in VISIBLE])
    if tokenizer.get_vocab_size() != VOCAB_SIZE:
        raise ValueError(f"{tokenizer.get_vocab_size()} tokens instead of {VOCAB_SIZE}")
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, context: int) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja`."""
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": END,
        "pad_token": PAD,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")

"""Tiny random models on disk, made on the spot: Hugging Face directories.

All of them share one tokenizer, 256 byte tokens, `MERGED` and `SPECIALS`, and a ChatML template.
Any text round-trips, a token for each byte, and every id of the vocabulary means something.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

MERGED = "ÿÿ"
"""The one merge: bytes that no UTF-8 text has. GGUF files cannot be without merges."""
SPECIALS = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
BOS, EOS, IM_START, IM_END = range(257, 257 + len(SPECIALS))
VOCAB_SIZE = 257 + len(SPECIALS)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DEEPSEEK_V3: Mapping[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 12,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 12,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "n_group": 4,
    "topk_group": 2,
}
"""Config keys that make a tiny DeepSeek V3: latent attention, experts chosen by groups."""

TINY: Mapping[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": None,
}
"""Config keys that most decoders share, with sizes at which a test takes milliseconds."""


def byte_alphabet() -> list[str]:
    """The character that stands for each byte in byte-level BPE vocabularies (GPT-2)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (b for b in range(256) if b not in printable)
    shifted = {byte: 256 + i for i, byte in enumerate(others)}
    return [chr(shifted.get(byte, byte)) for byte in range(256)]


def byte_tokenizer() -> Tokenizer:
    """A tokenizer whose token N is byte N, followed by `MERGED` and `SPECIALS`."""
    vocab = {token: token_id for token_id, token in enumerate((*byte_alphabet(), MERGED))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[(MERGED[0], MERGED[1])]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIALS])
    return tokenizer


def save_tokenizer(directory: Path) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``, template included."""
    directory.mkdir(parents=True, exist_ok=True)
    byte_tokenizer().save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "add_bos_token": False,
        "chat_template": CHAT_TEMPLATE,
    }
    text = json.dumps(settings, indent=2)
    (directory / "tokenizer_config.json").write_text(text, encoding="utf-8")


def randomize(model: torch.nn.Module, seed: int = 0) -> None:
    """Fill every parameter, and every buffer that is stored, so that no part of the arithmetic can
    hide: biases are not zero, norm weights not one, and logits lie well apart."""
    generator = torch.Generator().manual_seed(seed)
    stored = model.state_dict().keys()
    buffers = ((name, buffer) for name, buffer in model.named_buffers() if name in stored)
    with torch.no_grad():
        for name, parameter in (*model.named_parameters(), *buffers):
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1 and "norm" in name:
                parameter.copy_(1 + 0.2 * noise)
            elif parameter.dim() == 1:
                parameter.copy_(0.2 * noise)
            else:
                parameter.copy_(noise * parameter.shape[-1] ** -0.5)


def hf_model(model_class: str, seed: int = 0, **overrides: Any) -> Any:
    """A tiny random transformers model in float32, ready to infer.

    Args:
        model_class: name of a class of transformers, ``"LlamaForCausalLM"``.
        seed: of its weights.
        overrides: config keys that differ from `TINY`.
    """
    import transformers  # takes seconds, and not every user of this module makes a model

    cls = getattr(transformers, model_class)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = cls.config_class(**{**TINY, **overrides})
        config._attn_implementation = "eager"
        model = cls(config).to(torch.float32).eval()
    randomize(model, seed)
    return model


def save_hf(model: Any, directory: Path, **options: Any) -> Path:
    """Write a transformers model with the byte tokenizer; the directory."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(directory, **options)
    save_tokenizer(directory)
    return directory


def tiny_llama(directory: Path, seed: int = 0, **overrides: Any) -> Path:
    """A directory with a tiny random Llama, as `Runner` takes it; the directory."""
    return save_hf(hf_model("LlamaForCausalLM", seed, **overrides), directory)

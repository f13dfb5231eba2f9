"""Reading the tokenizer of a model directory.

What is used, in order: ``tokenizer.json``; ``tokenizer.model`` (SentencePiece); ``vocab.json`` with
``merges.txt`` (byte-level BPE). Beside them lie ``tokenizer_config.json``,
``special_tokens_map.json`` and ``added_tokens.json``, which name special tokens and say whether a
text begins with one.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from tramontane.errors import ConfigError, SourceError
from tramontane.text.json_files import read_json, token_text
from tramontane.text.tokenizer import Tokenizer
from tramontane.text.vocabulary import pre_tokenizer, read_sentencepiece

log = logging.getLogger(__name__)

_NAMED = (
    "bos_token",
    "eos_token",
    "unk_token",
    "pad_token",
    "sep_token",
    "cls_token",
    "mask_token",
)
_LISTED = ("additional_special_tokens", "extra_special_tokens")
_SPIECE = "▁"


def read_tokenizer(directory: Path, tokenizer_json: Path | None = None) -> Tokenizer:
    """Build the tokenizer that a directory describes.

    Args:
        directory: holds the files that travel with a model.
        tokenizer_json: taken, as it is, instead of the directory's own vocabulary.

    Raises:
        SourceError: there is no tokenizer, or a file of it is corrupt.
        ConfigError: the files describe a tokenizer that is not covered.
    """
    config = special_tokens_config(directory)
    add_bos, add_eos = _flag(config, "add_bos_token"), _flag(config, "add_eos_token")
    if tokenizer_json is not None or (directory / "tokenizer.json").is_file():
        add_bos = add_eos = None  # the file's post-processor says; the flags are for slow readers
    if tokenizer_json is not None:
        if not tokenizer_json.is_file():
            raise SourceError(f"tokenizer_json: there is no file {tokenizer_json}")
        backend = _from_json(tokenizer_json)
    elif (directory / "tokenizer.json").is_file():
        backend = _from_json(directory / "tokenizer.json", _llama_rules(directory, config))
    elif (directory / "tokenizer.model").is_file():
        backend = _from_sentencepiece(directory / "tokenizer.model", config)
        if add_bos is None and add_eos is None:
            add_bos = True  # models with a file of this name are trained so
    elif (directory / "vocab.json").is_file() and (directory / "merges.txt").is_file():
        backend = _from_vocab_and_merges(directory, config)
    else:
        present = sorted(path.name for path in directory.glob("*")) if directory.is_dir() else []
        raise SourceError(
            f"no tokenizer in {directory}: it needs tokenizer.json, tokenizer.model, or vocab.json "
            f"with merges.txt, and holds {', '.join(present[:12]) or 'nothing'}. "
            "Fetch the missing file or name one with tokenizer_json."
        )
    _register(backend, _declared(directory, config))
    return Tokenizer(
        backend,
        bos_token=token_text(config.get("bos_token")),
        eos_token=token_text(config.get("eos_token")),
        unk_token=token_text(config.get("unk_token")),
        add_bos=add_bos,
        add_eos=add_eos,
    )


def special_tokens_config(directory: Path) -> dict[str, Any]:
    """``tokenizer_config.json``, completed by ``special_tokens_map.json``.

    Raises:
        SourceError: a file is corrupt.
    """
    config = read_json(directory / "tokenizer_config.json") or {}
    for key, value in (read_json(directory / "special_tokens_map.json") or {}).items():
        if config.get(key) is None:
            config[key] = value
    return config


def _flag(config: Mapping[str, Any], key: str) -> bool | None:
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise ConfigError(f"{key} of tokenizer_config.json must be true or false, not {value!r}")
    return value


# -- vocabularies ------------------------------------------------------------------------------


def _guarded(path: Path, build: Callable[[], tokenizers.Tokenizer]) -> tokenizers.Tokenizer:
    """Run a builder of the tokenizers library, whose errors are bare or even panics."""
    try:
        return build()
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as cause:  # a panic of the library derives from BaseException
        if not isinstance(cause, Exception) and type(cause).__name__ != "PanicException":
            raise
        raise SourceError(
            f"{path} is not a tokenizer that the tokenizers library {tokenizers.__version__} "
            f"can read: {cause}. Fetch the file again."
        ) from cause


def _from_json(
    path: Path, adapt: Callable[[dict[str, Any]], None] | None = None
) -> tokenizers.Tokenizer:
    if adapt is None:
        return _guarded(path, lambda: tokenizers.Tokenizer.from_file(str(path)))
    data = read_json(path) or {}
    adapt(data)
    return _guarded(path, lambda: tokenizers.Tokenizer.from_str(json.dumps(data)))


def _llama_rules(
    directory: Path, config: Mapping[str, Any]
) -> Callable[[dict[str, Any]], None] | None:
    """How transformers reads the ``tokenizer.json`` of a Llama model with a SentencePiece
    vocabulary, or None for all other tokenizers.

    Files written by older versions put ``▁`` before every stretch of text between special tokens,
    and look for special tokens only in text so changed, which misses most of them. The
    configuration's ``legacy`` flag says what is meant: a single ``▁`` at the very beginning, unless
    it is true. Characters that have neither a token nor byte tokens are dropped there, not
    replaced by the unknown token.
    """
    if str(config.get("tokenizer_class", "")).removesuffix("Fast") != "LlamaTokenizer":
        return None
    model_type = (read_json(directory / "config.json") or {}).get("model_type", "llama")
    if model_type != "llama":
        return None
    prefix = config.get("add_prefix_space")
    prefix = True if prefix is None else bool(prefix)
    scheme = "always" if config.get("legacy") else "first"

    def adapt(data: dict[str, Any]) -> None:
        model = data.get("model")
        if not isinstance(model, dict) or model.get("type", "BPE") != "BPE" or _is_byte_level(data):
            return
        model.update(unk_token=None, fuse_unk=True, byte_fallback=True, dropout=None)
        data["normalizer"] = None
        data["pre_tokenizer"] = {
            "type": "Metaspace",
            "replacement": _SPIECE,
            "prepend_scheme": scheme if prefix else "never",
            "split": False,
        }
        strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
        data["decoder"] = {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": _SPIECE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *strip,
            ],
        }

    return adapt


def _is_byte_level(data: Mapping[str, Any]) -> bool:
    parts = json.dumps([data.get("pre_tokenizer"), data.get("decoder")])
    return '"ByteLevel"' in parts


def _from_sentencepiece(path: Path, config: dict[str, Any]) -> tokenizers.Tokenizer:
    """SentencePiece knows its special pieces; a configuration may name others."""
    model = read_sentencepiece(path)
    for key, index in (
        ("bos_token", model.bos_id),
        ("eos_token", model.eos_id),
        ("unk_token", model.unk_id),
    ):
        config.setdefault(key, model.text_of(index))
    return model.build()


_GPT2_CLASSES = ("", "GPT2Tokenizer", "CodeGenTokenizer", "PreTrainedTokenizer")


def _from_vocab_and_merges(directory: Path, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Byte-level BPE; how text is cut into words is known by the tokenizer class only."""
    family = str(config.get("tokenizer_class") or "").removesuffix("Fast")
    if family != "Qwen2Tokenizer" and family not in _GPT2_CLASSES:
        raise ConfigError(
            f"{directory} has vocab.json and merges.txt of a {family}, whose rules for cutting "
            "text into words are not known here (known: GPT2Tokenizer, CodeGenTokenizer, "
            "Qwen2Tokenizer). Save the tokenizer as tokenizer.json and pass it as tokenizer_json."
        )
    vocab_file, merges_file = directory / "vocab.json", directory / "merges.txt"
    read_json(vocab_file)  # a clearer error than the library's own

    def build() -> tokenizers.Tokenizer:
        model = models.BPE.from_file(str(vocab_file), str(merges_file))
        tokenizer = tokenizers.Tokenizer(model)
        if family == "Qwen2Tokenizer":
            kind = pre_tokenizer("qwen2")
            tokenizer.normalizer = kind.normalizer()
            tokenizer.pre_tokenizer = kind.build()
        else:
            prefix = bool(config.get("add_prefix_space"))
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer

    return _guarded(merges_file, build)


# -- added tokens ------------------------------------------------------------------------------


def _declared(
    directory: Path, config: Mapping[str, Any]
) -> dict[str, tuple[int | None, AddedToken]]:
    """Added tokens that the files beside the vocabulary declare: text → (id, token), by id."""
    special = set(_special_texts(config))
    declared: dict[str, tuple[int | None, AddedToken]] = {}
    listed = config.get("added_tokens_decoder") or {}
    legacy = read_json(directory / "added_tokens.json") or {}
    try:
        for key, value in sorted(listed.items(), key=lambda item: int(item[0])):
            flags = {
                name: bool(value[name])
                for name in ("single_word", "lstrip", "rstrip", "normalized", "special")
                if name in value
            }
            declared[value["content"]] = (int(key), AddedToken(value["content"], **flags))
        for text, token_id in sorted(legacy.items(), key=lambda item: int(item[1])):
            token = AddedToken(text, special=text in special, normalized=text not in special)
            declared.setdefault(text, (int(token_id), token))
    except (AttributeError, KeyError, TypeError, ValueError) as cause:
        raise SourceError(
            f"the added tokens that tokenizer_config.json or added_tokens.json of {directory} "
            f"declare cannot be read: {cause!r}"
        ) from cause
    for text in special:
        token = AddedToken(text, special=True, normalized=False)
        declared.setdefault(text, (None, token))
    return declared


def _special_texts(config: Mapping[str, Any]) -> Iterator[str]:
    for key in _NAMED:
        text = token_text(config.get(key))
        if text is not None:
            yield text
    for key in _LISTED:
        values = config.get(key) or []
        for value in values.values() if isinstance(values, dict) else values:
            text = token_text(value)
            if text is not None:
                yield text


def _register(
    backend: tokenizers.Tokenizer, declared: Mapping[str, tuple[int | None, AddedToken]]
) -> None:
    """Add what the vocabulary file does not have as it is declared."""
    present = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    fresh: list[AddedToken] = []
    for text, (token_id, token) in declared.items():
        if token_id is None:
            # Known by name only: worth recognizing in text, but no reason for a new row.
            if text not in present and backend.token_to_id(text) is not None:
                fresh.append(token)
        elif repr(present.get(text)) != repr(token):
            fresh.append(token)
    if fresh:
        backend.add_tokens(fresh)
    for text, (token_id, _) in declared.items():
        actual = backend.token_to_id(text)
        if token_id is not None and actual != token_id:
            log.warning("token %r is declared as %d but has id %s", text, token_id, actual)

"""How each byte-level vocabulary cuts text into words before merging: the ``pre`` kinds of GGUF.

A kind is a list of regular expressions; each in turn isolates its matches within the pieces that
the ones before it left. Expressions are those of the models' own ``tokenizer.json``.
"""

from __future__ import annotations

from difflib import get_close_matches

from attrs import frozen
from tokenizers import Regex, normalizers, pre_tokenizers

from tramontane.errors import ConfigError


@frozen(kw_only=True)
class PreTokenizer:
    """One kind.

    Attributes:
        splits: regular expressions (Oniguruma), applied one after another.
        ignore_merges: a word that is in the vocabulary is taken whole, merges or not.
        add_bos: whether these models begin raw text with BOS when the file does not say.
        nfc: whether text is normalized to Unicode's composed form first.
    """

    splits: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    nfc: bool = False

    def normalizer(self) -> normalizers.Normalizer | None:
        return normalizers.NFC() if self.nfc else None

    def build(self) -> pre_tokenizers.PreTokenizer:
        """The splits, then bytes to the printable alphabet of GPT-2."""
        steps = [pre_tokenizers.Split(Regex(split), behavior="isolated") for split in self.splits]
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([*steps, byte_level])


# Building blocks of the tiktoken family.
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_ONE, _THREE = r"\p{N}", r"\p{N}{1,3}"


def _cl100k(
    digits: str, *, letters: str = r"\p{L}", not_symbol: str = r"\s\p{L}\p{N}", tail: str = r"\r\n"
) -> str:
    """The expression of cl100k and its descendants, with its variable parts."""
    return (
        rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?{letters}+|{digits}"
        rf"| ?[^{not_symbol}]+[{tail}]*|{_SPACES}"
    )


def _o200k(digits: str, *, contraction: str = "") -> str:
    """The expression of o200k: words split at the change from lower to upper case."""
    upper, lower = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    head = r"[^\r\n\p{L}\p{N}]?"
    return (
        rf"{head}{upper}*{lower}+{contraction}|{head}{upper}+{lower}*{contraction}"
        rf"|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
    )


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CASED_HEX = (
    "41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D 37F 386 "
    "388-38A 38C 38E-3A1 3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA "
    "1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A 1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 "
    "1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 1FC6-1FCC 1FD0-1FD3 1FD6-1FDB "
    "1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128 212A-212D "
    "212F-2134 2139 213C-213F 2145-2149 214E 2183 2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 "
    "A640-A66D A680-A69B A722-A76F A771-A787 A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A "
    "FF41-FF5A 10400-1044F 104B0-104D3 104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943"
)
"""Cased letters as DeepSeek's first tokenizer lists them."""


def _ranges(hexadecimal: str) -> str:
    """``"41-5A B5"`` → the inside of a character class, ``A-Zµ``."""

    def character(code: str) -> str:
        text = chr(int(code, 16))
        return f"\\{text}" if text.isascii() and not text.isalnum() else text

    return "".join("-".join(map(character, part.split("-"))) for part in hexadecimal.split())


_DEEPSEEK_LLM = (
    r"[\r\n]",
    rf"\s?[{_ranges(_CASED_HEX)}]+",
    rf"\s?[{_ranges('21-2F 3A-7E FF01-FF0F FF1A-FF5E 2018-201F 3000-3002')}]+",
    r"\s+$",
    rf"[{_ranges('4E00-9FA5 800-4E00 AC00-D7FF')}]+",
    r"\p{N}",
)
_DEEPSEEK_CODER = (
    r"[\r\n]",
    r"\s?\p{L}+",
    r"\s?\p{P}+",
    rf"[{_ranges('4E00-9FA5 800-4E00 AC00-D7FF')}]+",
    r"\p{N}",
)
_DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    rf"[{_ranges('4E00-9FA5 3040-309F 30A0-30FF')}]+",
    rf"[{_ranges('21-2F 3A-40 5B-60 7B-7E')}][A-Za-z]+"
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"
_BAILING = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
_SEED_CODER = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"
)
_SYMBOLS = r"\p{P}\$\+<=>\^~\|"
_DIGITS = r"[0-9][0-9][0-9]"

_LLAMA3 = PreTokenizer(splits=(_cl100k(_THREE),), ignore_merges=True, add_bos=True)
_QWEN2 = PreTokenizer(splits=(_cl100k(_ONE),))
_QWEN2_NFC = PreTokenizer(splits=(_cl100k(_ONE),), nfc=True)
_QWEN35 = PreTokenizer(
    splits=(_cl100k(_ONE, letters=r"[\p{L}\p{M}]", not_symbol=r"\s\p{L}\p{M}\p{N}"),), nfc=True
)
_DBRX = PreTokenizer(splits=(_cl100k(_THREE),))
_GPT_2 = PreTokenizer(splits=(_GPT2,))
_STARCODER = PreTokenizer(splits=(r"\p{N}", _GPT2))
_GPT_4O = PreTokenizer(splits=(_o200k(_THREE, contraction=f"{_CONTRACTION}?"),))
_TEKKEN = PreTokenizer(splits=(_o200k(_ONE),), ignore_merges=True, add_bos=True)
_KINDS: tuple[tuple[PreTokenizer, str], ...] = (
    (_LLAMA3, "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano"),
    (_DBRX, "dbrx smaug-bpe glm4 chatglm-bpe"),
    (_QWEN2, "deepseek-r1-qwen stablelm2 hunyuan megrez kormo f2llmv2 solar-open grok-2"),
    (_QWEN2_NFC, "qwen2"),
    (_QWEN35, "qwen35"),
    (
        _GPT_2,
        "gpt-2 phi-2 mpt olmo jais trillion granite-docling exaone4 gigachat a.x-4.0 mellum "
        "modern-bert jina-es jina-de jina-v1-en jina-v2-es jina-v2-de jina-v2-code roberta-bpe",
    ),
    (_STARCODER, "starcoder smollm refact command-r codeshell exaone minerva-7b"),
    (_GPT_4O, "gpt-4o llama4 kanana2 minimax-m2"),
    (_TEKKEN, "tekken"),
    (PreTokenizer(splits=_DEEPSEEK_LLM), "deepseek-llm"),
    (PreTokenizer(splits=_DEEPSEEK_CODER), "deepseek-coder"),
    (PreTokenizer(splits=_DEEPSEEK_V3), "deepseek-v3 hunyuan-dense joyai-llm"),
    (PreTokenizer(splits=(rf"[{_SYMBOLS}`]+", _GPT2, _DIGITS)), "falcon"),
    (PreTokenizer(splits=(_BLOOM,)), "bloom poro-chat gpt3-finnish"),
    (PreTokenizer(splits=(_BLOOM, r"\p{N}")), "viking"),
    (PreTokenizer(splits=(_BAILING,)), "bailingmoe bailingmoe2 llada-moe"),
    (PreTokenizer(splits=(_SEED_CODER,)), "seed-coder"),
    (PreTokenizer(splits=(rf"[{_SYMBOLS}]+", _GPT2, r"\p{N}+", _DIGITS)), "default"),
)

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    name: kind for kind, names in _KINDS for name in names.split()
}
"""``tokenizer.ggml.pre`` → how text is cut."""


def pre_tokenizer(name: str) -> PreTokenizer:
    """The kind called ``name``.

    Raises:
        ConfigError: no such kind; the message lists what is known.
    """
    kind = PRE_TOKENIZERS.get(name)
    if kind is None:
        near = get_close_matches(name, PRE_TOKENIZERS, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ConfigError(
            f"unknown pre-tokenizer {name!r}{hint}; known are "
            f"{', '.join(sorted(PRE_TOKENIZERS))}. Give a tok_model_id whose tokenizer.json to use"
        )
    return kind

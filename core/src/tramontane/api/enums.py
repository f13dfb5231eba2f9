"""The closed lists of the public interface.

A member is given as itself, or as its name or value in any case and with any punctuation:
``Architecture.Phi3_5MoE``, ``"phi3.5moe"``, ``"Phi3_5MoE"``. Every member is a ``str``.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum, nonmember
from typing import Any

from tramontane.errors import ValidationError


def _key(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


class _Names(StrEnum):
    """An enum looked up leniently."""

    @classmethod
    def aliases(cls) -> Mapping[str, str]:
        """Further spellings → member name."""
        return {}

    @classmethod
    def _missing_(cls, value: object) -> _Names:
        if isinstance(value, str):
            wanted = _key(value)
            for name, found in cls.__members__.items():
                if wanted in (_key(name), _key(found.value)):
                    return found
            for alias, name in cls.aliases().items():
                if wanted == _key(alias):
                    return cls[name]
        known = ", ".join(found.value for found in cls)
        raise ValidationError(f"{cls.__name__} has no {value!r}; there are: {known}")


class Architecture(_Names):
    """Text models. `Which` variants also take the name of any architecture a plug-in registers."""

    Mistral = "mistral"
    Gemma = "gemma"
    Mixtral = "mixtral"
    Llama = "llama"
    Phi2 = "phi2"
    Phi3 = "phi3"
    Qwen2 = "qwen2"
    Gemma2 = "gemma2"
    GLM4 = "glm4"
    Starcoder2 = "starcoder2"
    Phi3_5MoE = "phi3.5moe"
    DeepseekV2 = "deepseekv2"
    DeepseekV3 = "deepseekv3"
    Qwen3 = "qwen3"
    Qwen3Moe = "qwen3moe"
    SmolLm3 = "smollm3"
    GraniteMoeHybrid = "granitemoehybrid"
    GptOss = "gpt_oss"


class VisionArchitecture(_Names):
    """Models that read images (and, some of them, audio) beside text."""

    Phi3V = "phi3v"
    Idefics2 = "idefics2"
    LLaVaNext = "llava_next"
    LLaVANext = LLaVaNext
    LLaVa = "llava"
    LLaVA = LLaVa
    VLlama = "vllama"
    Qwen2VL = "qwen2vl"
    Idefics3 = "idefics3"
    MiniCpmO = "minicpmo"
    Phi4MM = "phi4mm"
    Qwen2_5VL = "qwen2_5vl"
    Gemma3 = "gemma3"
    Mistral3 = "mistral3"
    Llama4 = "llama4"
    Gemma3n = "gemma3n"
    Qwen3VL = "qwen3vl"


MultimodalArchitecture = VisionArchitecture


class SpeechArchitecture(_Names):
    """Models that speak."""

    Dia = "dia"


SpeechLoaderType = SpeechArchitecture


class DiffusionArchitecture(_Names):
    """Models that draw. ``Dia`` is here as well, the same object as in `SpeechArchitecture`,
    because ``Which.Speech`` is documented as taking this class."""

    Flux = "flux"
    FluxOffloaded = "flux-offloaded"
    Dia = nonmember(SpeechArchitecture.Dia)


class EmbeddingArchitecture(_Names):
    """Models that turn a text into one vector."""

    EmbeddingGemma = "embeddinggemma"
    Qwen3Embedding = "qwen3embedding"


class ModelDType(_Names):
    """What a model computes in. ``Auto`` takes the checkpoint's own dtype where the device
    multiplies it well."""

    Auto = "auto"
    BF16 = "bf16"
    F16 = "f16"
    F32 = "f32"

    @classmethod
    def aliases(cls) -> Mapping[str, str]:
        names = {"bfloat16": "BF16", "float16": "F16", "half": "F16", "float32": "F32"}
        return names | {f"torch.{alias}": name for alias, name in names.items()} | {"float": "F32"}


class IsqOrganization(_Names):
    """Which layers in-situ quantization touches: all linears, or only the experts (MoQE,
    https://arxiv.org/abs/2310.02410)."""

    Default = "default"
    MoQE = "moqe"


class PagedCacheType(_Names):
    """How KV cache blocks are stored: in the dtype of the model's activations, in another, or in 8
    bits with a scale for each head of each token."""

    Auto = "auto"
    BF16 = "bf16"
    F16 = "f16"
    F32 = "f32"
    F8E4M3 = "f8e4m3"
    I8 = "i8"

    @classmethod
    def aliases(cls) -> Mapping[str, str]:
        return {"fp8": "F8E4M3", "float8_e4m3fn": "F8E4M3", "int8": "I8"} | {
            alias: name for alias, name in ModelDType.aliases().items() if "torch" not in alias
        }


class ToolChoice(_Names):
    """Whether the model may call tools: not at all, as it likes, or it must."""

    NoTools = "none"
    Auto = "auto"
    Required = "required"


class ToolCallType(_Names):
    """The kind of a tool call."""

    Function = "function"


class GrammarType(_Names):
    """The language of a request's ``grammar``."""

    Regex = "regex"
    Lark = "lark"
    JsonSchema = "json_schema"
    Llguidance = "llguidance"


class ReasoningEffort(_Names):
    """How much a model thinks before it answers, where its template has a notion of it."""

    Off = "off"
    Low = "low"
    Medium = "medium"
    High = "high"
    XHigh = "xhigh"

    @classmethod
    def aliases(cls) -> Mapping[str, str]:
        return {"none": "Off"}


class SearchContextSize(_Names):
    """Room for web search results in the prompt: 4,096, 8,192 or 16,384 tokens."""

    Low = "low"
    Medium = "medium"
    High = "high"


class SearchEmbeddingModel(_Names):
    """Model that ranks web search results."""

    EmbeddingGemma = "embedding_gemma"


class ImageGenerationResponseFormat(_Names):
    """Where a generated image goes: to a PNG file, or into the response as base64."""

    Url = "url"
    B64Json = "b64_json"


ENUMS: tuple[type[Any], ...] = (
    Architecture,
    DiffusionArchitecture,
    EmbeddingArchitecture,
    GrammarType,
    ImageGenerationResponseFormat,
    IsqOrganization,
    ModelDType,
    PagedCacheType,
    ReasoningEffort,
    SearchContextSize,
    SearchEmbeddingModel,
    SpeechArchitecture,
    ToolCallType,
    ToolChoice,
    VisionArchitecture,
)
"""Every enum here."""

from __future__ import annotations

import pytest

from tramontane import api
from tramontane.api.enums import ENUMS, ToolChoice
from tramontane.errors import ValidationError

SEED_NAMES = {
    "Architecture": "Mistral Gemma Mixtral Llama Phi2 Phi3 Qwen2 Gemma2 GLM4 Starcoder2 Phi3_5MoE "
    "DeepseekV2 DeepseekV3 Qwen3 Qwen3Moe SmolLm3 GraniteMoeHybrid GptOss",
    "IsqOrganization": "Default MoQE",
    "VisionArchitecture": "Phi3V Idefics2 LLaVaNext LLaVa LLaVANext LLaVA VLlama Qwen2VL Idefics3 "
    "MiniCpmO Phi4MM Qwen2_5VL Gemma3 Mistral3 Llama4 Gemma3n Qwen3VL",
    "DiffusionArchitecture": "Flux FluxOffloaded Dia",
    "SpeechArchitecture": "Dia",
    "EmbeddingArchitecture": "EmbeddingGemma Qwen3Embedding",
    "ModelDType": "Auto BF16 F16 F32",
}


@pytest.mark.parametrize("name", SEED_NAMES)
def test_documented_members_exist(name: str) -> None:
    for member in SEED_NAMES[name].split():
        assert isinstance(getattr(getattr(api, name), member), str)


@pytest.mark.parametrize("cls", ENUMS, ids=lambda cls: cls.__name__)
def test_members_are_found_by_name_value_and_case(cls: type) -> None:
    for name, member in cls.__members__.items():
        for spelling in (member, name, member.value, name.upper(), member.value.replace("_", "-")):
            assert cls(spelling) is member
        assert str(member) == member.value == member


@pytest.mark.parametrize(
    ("cls", "spelling", "member"),
    [
        (api.Architecture, "gpt-oss", "GptOss"),
        (api.Architecture, "phi3_5_moe", "Phi3_5MoE"),
        (api.VisionArchitecture, "llava-next", "LLaVANext"),
        (api.ModelDType, "bfloat16", "BF16"),
        (api.ModelDType, "torch.float32", "F32"),
        (api.ReasoningEffort, "none", "Off"),
        (api.ToolChoice, "none", "NoTools"),
        (api.ImageGenerationResponseFormat, "b64_json", "B64Json"),
    ],
)
def test_common_spellings(cls: type, spelling: str, member: str) -> None:
    assert cls(spelling) is getattr(cls, member)


@pytest.mark.parametrize("value", ["no such thing", "", 3, None])
def test_wrong_values_list_the_known_ones(value: object) -> None:
    with pytest.raises(ValidationError, match=r"ToolChoice has no .*none, auto, required"):
        ToolChoice(value)


def test_dia_stands_in_both_lists_but_is_no_diffusion_model() -> None:
    assert api.DiffusionArchitecture.Dia is api.SpeechArchitecture.Dia
    assert "dia" not in [member.value for member in api.DiffusionArchitecture]

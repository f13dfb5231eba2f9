from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

import pytest

from tramontane.api import (
    AnyMoeExpertType,
    Architecture,
    DiffusionArchitecture,
    EmbeddingArchitecture,
    IsqOrganization,
    LoraAdapter,
    ModelDType,
    SpeechArchitecture,
    TextAutoMapParams,
    VisionArchitecture,
    VisionAutoMapParams,
)
from tramontane.errors import SourceError, ValidationError
from tramontane.selector_file import read_selector_file
from tramontane.which import VARIANTS, Which

POSITIONS = {
    "Plain": "model_id arch tokenizer_json topology organization from_uqff write_uqff dtype "
    "auto_map_params calibration_file imatrix hf_cache_path",
    "XLora": "xlora_model_id order arch model_id tokenizer_json tgt_non_granular_index topology "
    "from_uqff write_uqff dtype auto_map_params hf_cache_path",
    "Lora": "adapter_model_id arch model_id tokenizer_json topology from_uqff write_uqff dtype "
    "auto_map_params hf_cache_path",
    "GGUF": "quantized_model_id quantized_filename tok_model_id topology dtype auto_map_params",
    "XLoraGGUF": "quantized_model_id quantized_filename xlora_model_id order tok_model_id "
    "tgt_non_granular_index topology dtype auto_map_params",
    "LoraGGUF": "quantized_model_id quantized_filename adapters_model_id order tok_model_id "
    "topology dtype auto_map_params",
    "GGML": "quantized_model_id quantized_filename tok_model_id tokenizer_json gqa topology dtype "
    "auto_map_params",
    "XLoraGGML": "quantized_model_id quantized_filename xlora_model_id order tok_model_id "
    "tgt_non_granular_index tokenizer_json gqa topology dtype auto_map_params",
    "LoraGGML": "quantized_model_id quantized_filename adapters_model_id order tok_model_id "
    "tokenizer_json topology dtype auto_map_params",
    "Embedding": "model_id arch tokenizer_json topology from_uqff write_uqff dtype hf_cache_path",
    "VisionPlain": "model_id arch tokenizer_json topology from_uqff write_uqff dtype max_edge "
    "auto_map_params calibration_file imatrix hf_cache_path",
    "DiffusionPlain": "model_id arch dtype",
    "Speech": "model_id arch dac_model_id dtype",
}
REQUIRED = "model_id quantized_model_id quantized_filename xlora_model_id adapters_model_id order"


@pytest.mark.parametrize("variant", POSITIONS)
def test_positions_and_defaults_are_the_documented_ones(variant: str) -> None:
    parameters = inspect.signature(getattr(Which, variant)).parameters.values()
    named = [p for p in parameters if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    assert [p.name for p in named] == POSITIONS[variant].split()
    for parameter in named:
        if parameter.name == "dtype":
            assert parameter.default is ModelDType.Auto
        elif parameter.default is not None:
            assert parameter.name in [*REQUIRED.split(), "arch"]


def test_variants_are_told_apart() -> None:
    which = Which.Plain("m")
    assert isinstance(which, Which.Plain)
    assert not isinstance(which, Which.GGUF)
    assert Which.MultimodalPlain is Which.VisionPlain
    assert set(VARIANTS) == {*POSITIONS, "MultimodalPlain"}
    assert Which.Plain("m") == Which.Plain("m")
    with pytest.raises(AttributeError):
        which.model_id = "other"  # type: ignore[misc]


@pytest.mark.parametrize("arch", [Architecture.Llama, "llama", "LLAMA"])
def test_architectures_by_member_or_name(arch: Any) -> None:
    assert Which.Plain("m", arch).arch is Architecture.Llama


def test_unknown_architectures_are_left_to_the_registry() -> None:
    assert Which.Plain("m", "FancyForCausalLM").arch == "FancyForCausalLM"
    assert Which.VisionPlain("m", " fancy ").arch == "fancy"
    for wrong in (3, "", VisionArchitecture.Gemma3):
        with pytest.raises(ValidationError, match="Architecture has no"):
            Which.Plain("m", wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("arch", [DiffusionArchitecture.Dia, SpeechArchitecture.Dia, "Dia"])
def test_speech_takes_dia_from_either_list(arch: Any) -> None:
    assert Which.Speech("m", arch).arch is SpeechArchitecture.Dia


def test_speech_and_drawing_are_not_mixed_up() -> None:
    with pytest.raises(ValidationError, match=r"Which\.DiffusionPlain"):
        Which.Speech("m", DiffusionArchitecture.Flux)  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match=r"Which\.Speech"):
        Which.DiffusionPlain("m", DiffusionArchitecture.Dia)


def test_the_printed_default_of_auto_map_params_is_none() -> None:
    assert Which.Plain("m", auto_map_params=(None,)).auto_map_params is None  # type: ignore[arg-type]
    given = TextAutoMapParams(max_batch_size=2)
    assert Which.Plain("m", auto_map_params=given).auto_map_params is given
    promoted = Which.VisionPlain("m", auto_map_params=given).auto_map_params  # type: ignore[arg-type]
    assert promoted == VisionAutoMapParams(4096, 2, 1, 1024)


def test_lists_and_delimiters() -> None:
    assert Which.GGUF("m", ["a.gguf", "b.gguf"]).filenames == ["a.gguf", "b.gguf"]
    assert Which.GGUF("m", "a.gguf").filenames == ["a.gguf"]
    assert Which.Plain("m", from_uqff="a.uqff; b.uqff").uqff_files == ["a.uqff", "b.uqff"]
    assert Which.Plain("m").uqff_files == []
    assert Which.Lora("a;b").adapter_model_ids == ["a", "b"]
    assert Which.Lora(["a", "b"]).adapter_model_ids == ["a", "b"]


def test_paths_are_taken_as_strings(tmp_path: Path) -> None:
    assert Which.Plain(tmp_path).model_id == os.fspath(tmp_path)  # type: ignore[arg-type]
    which = Which.GGUF(tmp_path, [Path("a.gguf")])  # type: ignore[arg-type, list-item]
    assert which.quantized_filename == ["a.gguf"]


@pytest.mark.parametrize(
    ("which", "name"),
    [
        (Which.Plain("a/b"), "a/b"),
        (Which.GGUF("q", "f", tok_model_id="t"), "q"),
        (Which.XLora("x", "o"), "x"),
        (Which.XLora("x", "o", model_id="base"), "base"),
        (Which.Lora("l"), "l"),
        (Which.Speech("s", "dia"), "s"),
    ],
)
def test_canonical_id(which: Any, name: str) -> None:
    assert which.canonical_id == name


def test_kinds() -> None:
    kinds = {name: cls.kind for name, cls in VARIANTS.items() if cls.kind != "text"}
    assert kinds == {
        "Embedding": "embedding",
        "VisionPlain": "vision",
        "MultimodalPlain": "vision",
        "DiffusionPlain": "diffusion",
        "Speech": "speech",
    }


@pytest.mark.parametrize(
    ("variant", "fields"),
    [
        ("Plain", {"model_id": ""}),
        ("Plain", {"model_id": None}),
        ("Plain", {"model_id": "m", "dtype": "int3"}),
        ("Plain", {"model_id": "m", "organization": "both"}),
        ("Plain", {"model_id": "m", "topology": 3}),
        ("Plain", {"model_id": "m", "from_uqff": []}),
        ("Plain", {"model_id": "m", "auto_map_params": 4}),
        ("Plain", {"model_id": "m", "imatrix": "a", "calibration_file": "b"}),
        ("GGUF", {"quantized_model_id": "m", "quantized_filename": []}),
        ("GGUF", {"quantized_model_id": "m", "quantized_filename": [3]}),
        ("GGML", {"quantized_model_id": "m", "quantized_filename": "f", "gqa": 0}),
        ("XLora", {"xlora_model_id": "m", "order": "o", "tgt_non_granular_index": -1}),
        ("VisionPlain", {"model_id": "m", "max_edge": 0}),
        ("Lora", {}),
        ("Lora", {"adapter_model_id": "a", "adapters": [LoraAdapter("x", "y")]}),
        ("Lora", {"adapters": "x"}),
        ("Lora", {"model_id": "m", "adapters": [], "max_rank": 0}),
    ],
)
def test_bad_fields_are_refused(variant: str, fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        getattr(Which, variant)(**fields)


def test_from_dict() -> None:
    assert Which.from_dict({"Plain": {"model_id": "m", "dtype": "BF16"}}) == Which.Plain(
        "m", dtype=ModelDType.BF16
    )
    assert Which.from_dict({"kind": "multimodal_plain", "model_id": "m"}) == Which.VisionPlain("m")
    roomy = Which.from_dict({"kind": "plain", "model_id": "m", "max_seq_len": 99})
    assert roomy == Which.Plain("m", auto_map_params=TextAutoMapParams(99))
    which = Which.from_dict({"Plain": {"model_id": "m", "organization": "MOQE"}})
    assert isinstance(which, Which.Plain)
    assert which.organization is IsqOrganization.MoQE


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"Plain": {"model": "m"}}, r"Which\.Plain: unknown key 'model'; did you mean 'model_id'"),
        ({"Plane": {"model_id": "m"}}, r"no variant 'Plane'; did you mean 'Plain'"),
        ({"GGUF": {"quantized_model_id": "m"}}, r"Which\.GGUF: 'quantized_filename' missing"),
        ({"model_id": "m"}, "a selector must read"),
        ("m", "a selector must read"),
        ({"kind": 3}, "no variant 3"),
    ],
)
def test_bad_dicts(data: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Which.from_dict(data)


BASE = "mistralai/Mistral-7B-Instruct-v0.1"
GGUF = Which.GGUF(
    "TheBloke/Mistral-7B-Instruct-v0.1-GGUF", "mistral-7b-instruct-v0.1.Q2_K.gguf", BASE
)


def selectors() -> Path:
    named = os.environ.get("TRAMONTANE_TEST_DATA")
    root = Path(named) if named else Path(__file__).parents[4] / "shared" / "data"
    folder = root / "mistralrs" / "toml-selectors"
    if not folder.is_dir():
        pytest.skip("no mistralrs/toml-selectors; set TRAMONTANE_TEST_DATA")
    return folder


def test_selector_files_of_mistralrs() -> None:
    folder = selectors()
    plain = Which.Plain(BASE, Architecture.Mistral)
    assert read_selector_file(folder / "plain.toml") == {"which": plain}
    assert read_selector_file(folder / "xlora.toml") == {
        "which": Which.XLora("lamm-mit/x-lora", "ordering-file.json", "mistral")
    }
    assert read_selector_file(folder / "lora.toml") == {
        "which": Which.Lora(
            model_id=BASE,
            arch="mistral",
            adapters=[LoraAdapter("zephyr", "typeof/zephyr-7b-beta-lora")],
            max_adapters=4,
            max_rank=128,
            max_bytes=2**31,
        )
    }
    assert read_selector_file(folder / "speculative-gguf.toml") == {
        "which": plain,
        "which_draft": GGUF,
        "speculative_gamma": 32,
    }
    anymoe = read_selector_file(folder / "anymoe.toml")["anymoe_config"]
    assert anymoe.expert_type == AnyMoeExpertType.FineTuned()
    assert (anymoe.hidden_size, anymoe.epochs, anymoe.layers) == (4096, 25, list(range(16)))
    lora = read_selector_file(folder / "anymoe_lora.toml")["anymoe_config"]
    assert lora.expert_type == AnyMoeExpertType.LoraAdapter(64, 16, ["gate_proj"])


def test_every_selector_file_is_readable() -> None:
    for path in sorted(selectors().glob("*.toml")):
        assert "which" in read_selector_file(path)


def test_bad_selector_files(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    with pytest.raises(SourceError, match=r"s\.toml"):
        read_selector_file(path)
    path.write_text("[model\n")
    with pytest.raises(ValidationError, match="not valid TOML"):
        read_selector_file(path)
    path.write_text('[model]\nkind = "plain"\nmodel_name = "x"\n')
    with pytest.raises(ValidationError, match=r"s\.toml.*model_name"):
        read_selector_file(path)
    path.write_text('[modell]\nkind = "plain"\n')
    with pytest.raises(ValidationError, match="did you mean 'model'"):
        read_selector_file(path)


def test_embedding_example() -> None:
    which = Which.Embedding(
        model_id="google/embeddinggemma-300m", arch=EmbeddingArchitecture.EmbeddingGemma
    )
    assert which.arch == "embeddinggemma"

"""In-situ quantization from a user's seat: models that load packed and answer."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from tramontane import CompletionRequest, MissingPluginError, Runner, ValidationError, Which
from tramontane.loading.loader import LoadRequest, load_text
from tramontane.nn import PackedEmbedding, PackedExpertLinear, PackedLinear
from tramontane.protocols import InSituSettings
from tramontane_testkit.models import hf_model, save_hf, tiny_llama

WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("wide") / "model", **WIDE)


def load(directory: Path, **settings: Any) -> Any:
    return load_text(LoadRequest(model_id=str(directory), in_situ=InSituSettings(**settings)))


def text(runner: Runner, count: int = 8) -> str:
    request = CompletionRequest(prompt="ab", max_tokens=count, temperature=0.0, ignore_eos=True)
    return runner.send_completion_request(request).choices[0].text


def test_weights_are_packed_while_loading(wide: Path) -> None:
    loaded = load(wide, type_name="Q4K")
    layer = loaded.model.model.layers[0]
    plain = load_text(LoadRequest(model_id=str(wide)))
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        module = getattr(layer.self_attn, name)
        assert isinstance(module, PackedLinear)
        assert module.packed.format == "gguf.q4_k"
        weight = getattr(plain.model.model.layers[0].self_attn, name).weight
        error = (module.packed.dequantize() - weight).norm() / weight.norm()
        assert 0.01 < error < 0.1
    assert loaded.model.lm_head.packed.format == "gguf.q6_k"
    assert loaded.model.model.embed_tokens.weight.dtype is torch.float32
    assert loaded.weight_bytes == loaded.plan.weight_bytes < 0.3 * plain.weight_bytes
    assert loaded.dtype is torch.float32


@pytest.mark.parametrize(
    "kind",
    ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q8_1", "Q2K", "Q3K", "Q4K", "Q5K", "Q6K", "Q8K",
     "IQ4_NL", "IQ4_XS", "HQQ4", "HQQ8", "FP8", "AFQ2", "AFQ3", "AFQ4", "AFQ6", "AFQ8", "F8Q8",
     "MXFP4"],
)  # fmt: skip
def test_a_model_of_every_type_answers(kind: str, wide: Path) -> None:
    with Runner(Which.Plain(str(wide)), in_situ_quant=kind) as runner:
        layer = runner._models.peek(None).live_weights._model.model.layers[0]
        found = layer.mlp.down_proj.packed.format.replace("_", "").replace(".", "")
        named = kind.lower().replace("_", "").replace("afq", "affine")
        assert found.removeprefix("gguf").startswith(named)
        assert text(runner)


def test_a_tied_embedding_and_its_head_share_one_packed_weight(tmp_path: Path) -> None:
    directory = tiny_llama(tmp_path / "tied", tie_word_embeddings=True, **WIDE)
    model = load(directory, type_name="Q8_0").model
    assert isinstance(model.model.embed_tokens, PackedEmbedding)
    assert model.model.embed_tokens.packed is model.lm_head.packed


def test_stacks_of_experts_are_packed_and_routers_are_not(tmp_path: Path) -> None:
    hf = hf_model("MixtralForCausalLM", num_local_experts=4, num_experts_per_tok=2, **WIDE)
    directory = save_hf(hf, tmp_path / "moe")
    mlp = load(directory, type_name="Q4K").model.model.layers[0].mlp
    assert isinstance(mlp.experts.gate_proj, PackedExpertLinear)
    assert isinstance(mlp.gate, torch.nn.Linear)
    with Runner(Which.Plain(str(directory), organization="moqe"), in_situ_quant="Q4K") as runner:
        assert runner.send_completion_request({"prompt": "a", "max_tokens": 2}).choices
    attention = load(directory, type_name="Q4K", organization="moqe").model.model.layers[0]
    assert isinstance(attention.self_attn.q_proj, torch.nn.Linear)
    assert isinstance(attention.mlp.experts.down_proj, PackedExpertLinear)


def test_fine_types_hardly_change_answers(wide: Path) -> None:
    with Runner(Which.Plain(str(wide))) as runner:
        expected = text(runner, 4)
    with Runner(Which.Plain(str(wide)), in_situ_quant="8") as runner:
        assert text(runner, 4) == expected


def test_a_running_model_is_packed_anew(wide: Path) -> None:
    model = str(wide)
    with Runner(Which.Plain(model)) as runner:
        before = text(runner, 40)
        request = CompletionRequest(
            prompt="ab", max_tokens=40, temperature=0.0, ignore_eos=True, stream=True
        )
        stream = iter(runner.send_completion_request(request))
        first = next(stream)
        done = threading.Event()

        def change() -> None:
            runner.send_re_isq("Q2K")
            done.set()

        worker = threading.Thread(target=change)
        worker.start()
        rest = "".join(c.choices[0].text for c in stream)
        # What was under way ended with the weights it began with.
        worker.join(60)
        assert first.choices[0].text + rest == before
        assert done.is_set()
        assert text(runner, 40) != before
        runner.send_re_isq("8")
        with pytest.raises(ValidationError, match="choose one of"):
            runner.send_re_isq("Q1K")
        assert text(runner)


def test_what_is_refused(wide: Path) -> None:
    with pytest.raises(ValidationError, match="'Q9' is no type"):
        Runner(Which.Plain("nowhere/at-all"), in_situ_quant="Q9")
    with pytest.raises(ValidationError, match="no routed experts"):
        Runner(Which.Plain(str(wide), organization="moqe"), in_situ_quant="Q4K")
    with pytest.raises((MissingPluginError, ValidationError)):
        Runner(Which.Plain(str(wide)), in_situ_quant="HQQ3")


def test_weights_of_a_gguf_file_are_packed_anew(wide: Path, tmp_path: Path) -> None:
    from tramontane_isq.command import quantize

    quantize(str(wide), tmp_path / "q8.gguf", "Q8_0")
    which = Which.GGUF(str(tmp_path), "q8.gguf")
    with Runner(which) as runner:
        before = runner._models.peek(None).live_weights._model.lm_head.packed.format
    with Runner(which, in_situ_quant="Q4K") as runner:
        model = runner._models.peek(None).live_weights._model
        layer = model.model.layers[0]
        assert layer.mlp.down_proj.packed.format == "gguf.q4_k"
        assert (before, model.lm_head.packed.format) == ("gguf.q8_0", "gguf.q6_k")
        assert text(runner)

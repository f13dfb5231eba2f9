"""A contract that cannot fail proves nothing: each must catch a small mistake."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tramontane.kernels.reference import paged_attention
from tramontane.nn import bind_kernels
from tramontane_testkit.kernels import ATTENTION_SHAPES, attention_case, naive_attention


def off_by_one_window(*args: Any, window: int | None, **options: Any) -> Tensor:
    return paged_attention(*args, window=None if window is None else window + 1, **options)


def without_sinks(*args: Any, sinks: Any, **options: Any) -> Tensor:
    return paged_attention(*args, **options)


def without_softcap(*args: Any, softcap: Any, **options: Any) -> Tensor:
    return paged_attention(*args, **options)


def sees_the_future(q: Tensor, cache: Any, batch: Any, **options: Any) -> Tensor:
    batch.kv_lens = [n + 1 if n % cache.block_size else n for n in batch.kv_lens]
    return paged_attention(q, cache, batch, **options)


@pytest.mark.parametrize(
    ("kernel", "shape"),
    [
        (off_by_one_window, "window"),
        (off_by_one_window, "decode in a window"),
        (without_sinks, "sinks"),
        (without_softcap, "softcap"),
        (sees_the_future, "decode"),
        (sees_the_future, "one decode step"),
    ],
)
def test_kernel_contract_catches(kernel: Any, shape: str) -> None:
    device = torch.device("cpu")
    q, cache, batch, options = attention_case(ATTENTION_SHAPES[shape], device, torch.float32)
    expected = naive_attention(q, cache, batch, **options)
    actual = kernel(q, cache, batch, **options)
    assert not torch.allclose(actual, expected, rtol=1e-3, atol=1e-3)


class TestArchitectureContractCatches:
    """Wrong arithmetic in a Llama must show in the comparison with transformers."""

    @pytest.fixture
    def pair(self, tmp_path_factory: pytest.TempPathFactory) -> Any:
        from tramontane.loading.loader import LoadRequest, load_text
        from tramontane_testkit.architecture import Pair
        from tramontane_testkit.models import hf_model, save_hf

        reference = hf_model("LlamaForCausalLM", attention_bias=True)
        directory = save_hf(reference, tmp_path_factory.mktemp("model"))
        loaded = load_text(LoadRequest(model_id=str(directory), dtype="f32"))
        return Pair(reference, directory, loaded.model, loaded.config)

    @pytest.mark.parametrize("fault", ["eps", "bias", "theta", "scale", "activation", "norm"])
    def test_small_faults(self, pair: Any, fault: str) -> None:
        from tramontane_testkit import ArchitectureContract

        layer = pair.model.model.layers[1]
        match fault:
            case "eps":
                layer.input_layernorm.eps = 1e-3
            case "bias":
                layer.self_attn.v_proj.bias.data[0] += 0.01
            case "theta":
                pair.model.model.rotary._tables.clear()
                rope = pair.model.model.rotary.parameters_of_rope
                object.__setattr__(rope, "rope_theta", rope.rope_theta * 1.05)
            case "scale":
                layer.self_attn.scale *= 1.01
            case "activation":
                layer.mlp.act = torch.nn.functional.gelu
            case "norm":
                layer.post_attention_layernorm.weight.data[3] *= 1.01
        bind_kernels(pair.model, torch.device("cpu"), torch.float32)
        with pytest.raises(AssertionError):
            ArchitectureContract().test_logits_equal_the_reference(pair)

"""Compared with the bitsandbytes package, on the CPU."""

from __future__ import annotations

import warnings

import pytest
import torch

from tramontane.loading.loader import LoadRequest, load_text
from tramontane.nn import PackedLinear
from tramontane_bitsandbytes.reader import BitsAndBytesReader
from tramontane_testkit.models import tiny_llama


class Tensors(dict):
    def names(self):
        return list(self)

    def tensor(self, name):
        return self[name]


def package():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")


@pytest.mark.peer
@pytest.mark.parametrize("shape", [(64, 64), (40, 48), (300, 1024)])
@pytest.mark.parametrize("storage", [torch.uint8, torch.bfloat16], ids=["bytes", "bf16"])
@pytest.mark.parametrize("nested", [False, True], ids=["plain", "nested"])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_4_bits_decode_as_the_package(kind, nested, storage, shape):
    functional = package().functional
    torch.manual_seed(0)
    weight = torch.randn(shape)
    codes, state = functional.quantize_4bit(
        weight,
        blocksize=64,
        compress_statistics=nested,
        quant_type=kind,
        quant_storage=storage,
    )
    theirs = functional.dequantize_4bit(codes, state)
    parts = {f"m.weight.{name}": part for name, part in state.as_dict(packed=True).items()}
    settings = {"load_in_4bit": True, "bnb_4bit_quant_type": kind}
    view = BitsAndBytesReader().read_checkpoint(Tensors(parts | {"m.weight": codes}), settings)
    ours = view.tensor("m.weight")
    assert torch.equal(ours.dequantize(), theirs)
    assert ours.nbytes < weight.nbytes / 3
    assert float((theirs - weight).abs().mean()) < 0.12


@pytest.mark.peer
def test_8_bits_decode_as_the_package():
    bitsandbytes = package()
    torch.manual_seed(0)
    weight = torch.randn(40, 96)
    codes, largest, _ = bitsandbytes.functional.int8_vectorwise_quant(weight.half())
    theirs = bitsandbytes.functional.int8_vectorwise_dequant(codes, largest)
    parts = {"m.weight": codes, "m.SCB": largest, "m.weight_format": torch.tensor(0).byte()}
    view = BitsAndBytesReader().read_checkpoint(Tensors(parts), {"load_in_8bit": True})
    ours = view.tensor("m.weight").dequantize()
    # Codes are kept from zero up: what is lost is a part in 2 ** 24 of the largest number.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=4 * float(largest.max()) * 2**-24)
    torch.testing.assert_close(ours, weight, rtol=0, atol=float(largest.max()) / 127)


@pytest.mark.peer
def test_a_saved_module_multiplies_alike():
    bitsandbytes = package()
    torch.manual_seed(0)
    module = bitsandbytes.nn.Linear4bit(
        128, 48, bias=False, compute_dtype=torch.float32, quant_type="nf4"
    )
    module.weight = bitsandbytes.nn.Params4bit(
        torch.randn(48, 128), requires_grad=False, quant_type="nf4"
    )
    module = module.to("cpu")
    x = torch.randn(3, 128)
    theirs = module(x)
    stored = {f"m.{name}": part for name, part in module.state_dict().items()}
    view = BitsAndBytesReader().read_checkpoint(Tensors(stored), {"load_in_4bit": True})
    ours = x @ view.tensor("m.weight").dequantize().T
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


@pytest.mark.peer
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "asked",
    [
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
        {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
        {"load_in_8bit": True},
    ],
    ids=["nf4", "fp4", "int8"],
)
def test_a_model_that_transformers_saved(tmp_path, asked):
    bitsandbytes = package()
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    plain, path = tiny_llama(tmp_path / "plain", hidden_size=64), tmp_path / "packed"
    config = BitsAndBytesConfig(**asked)
    theirs = AutoModelForCausalLM.from_pretrained(
        plain, quantization_config=config, device_map="cpu", dtype=torch.float32
    )
    theirs.save_pretrained(path)
    for file in plain.glob("tokenizer*"):
        (path / file.name).write_bytes(file.read_bytes())
    ours = load_text(LoadRequest(model_id=str(path), dtype="f32")).model
    packed = {n: m.packed for n, m in ours.named_modules() if isinstance(m, PackedLinear)}
    assert len(packed) == 14
    functional = bitsandbytes.functional
    for name, weight in packed.items():
        stored = theirs.get_submodule(name).weight
        if "load_in_8bit" in asked:
            expected = functional.int8_vectorwise_dequant(stored.data, stored.SCB)
        else:
            expected = functional.dequantize_4bit(stored.data, stored.quant_state).float()
        torch.testing.assert_close(weight.dequantize(), expected, rtol=0, atol=1e-6)

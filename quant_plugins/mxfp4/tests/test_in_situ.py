"""A model packed while it is loaded."""

from pathlib import Path

import pytest

from tramontane.loading.loader import LoadRequest, load_text
from tramontane.nn import PackedLinear
from tramontane.protocols import InSituSettings
from tramontane_testkit.models import tiny_llama


def test_every_layer_of_a_model(tmp_path: Path) -> None:
    pytest.importorskip("tramontane_isq", reason="tramontane-isq is not installed")
    path = str(tiny_llama(tmp_path, hidden_size=64, intermediate_size=96))
    plain = load_text(LoadRequest(model_id=path, dtype="f32"))
    settings = InSituSettings(type_name="MXFP4")
    packed = load_text(LoadRequest(model_id=path, dtype="f32", in_situ=settings))
    linear = packed.model.model.layers[1].mlp.down_proj
    assert isinstance(linear, PackedLinear)
    assert linear.packed.format == "mxfp4.e2m1"
    exact = plain.model.model.layers[1].mlp.down_proj.weight
    error = (linear.packed.dequantize() - exact).norm() / exact.norm()
    assert 0.01 < float(error) < 0.15
    assert packed.weight_bytes < plain.weight_bytes / 3  # the embedding stays as it is

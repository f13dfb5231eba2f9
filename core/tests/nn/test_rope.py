"""RoPE frequencies against transformers, from old and new configuration keys."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tramontane.errors import ConfigError
from tramontane.nn import AdjacentRope, Rotary, read_rope_parameters
from tramontane.nn.rope import inverse_frequencies
from tramontane.protocols import ForwardBatch

HEAD_DIM = 16
SHORT = [1.0 + 0.1 * i for i in range(8)]
LONG = [1.0 + 0.9 * i for i in range(8)]
SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
    "yarn truncate": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 512,
        "truncate": False,
    },
    "yarn mscale": {
        "rope_type": "yarn",
        "factor": 40.0,
        "original_max_position_embeddings": 512,
        "mscale": 0.707,
        "mscale_all_dim": 1.0,
        "beta_fast": 20,
        "beta_slow": 2,
    },
    "yarn attention factor": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 512,
        "attention_factor": 0.5,
    },
    "yarn without extension": {
        "rope_type": "yarn",
        "factor": 1.0,
        "original_max_position_embeddings": 2048,
    },
    "longrope": {
        "rope_type": "longrope",
        "short_factor": SHORT,
        "long_factor": LONG,
        "original_max_position_embeddings": 512,
    },
    "longrope factor": {
        "rope_type": "longrope",
        "short_factor": SHORT,
        "long_factor": LONG,
        "factor": 16.0,
        "original_max_position_embeddings": 512,
    },
}


def config_of(scaling: dict[str, Any], **keys: Any) -> dict[str, Any]:
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 2048}
    return {**sizes, **keys, "rope_parameters": {"rope_theta": 5000.0, **scaling}}


@pytest.mark.parametrize("seq_len", [1, 512, 513, 2048, 3000, 9000])
@pytest.mark.parametrize("name", SCALINGS)
def test_frequencies_equal_those_of_transformers(name: str, seq_len: int) -> None:
    scaling = SCALINGS[name]
    data = config_of(scaling)
    reference = LlamaConfig(**config_of(dict(scaling)))
    compute = ROPE_INIT_FUNCTIONS[scaling["rope_type"]]
    expected, expected_factor = compute(reference, torch.device("cpu"), seq_len=seq_len)
    actual, factor = inverse_frequencies(read_rope_parameters(data), HEAD_DIM, seq_len)
    assert factor == pytest.approx(expected_factor, rel=1e-12)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", SCALINGS)
def test_old_keys_mean_the_same(name: str) -> None:
    scaling = dict(SCALINGS[name])
    new = read_rope_parameters(config_of(scaling))
    old = config_of({})
    del old["rope_parameters"]
    old |= {"rope_theta": 5000.0, "rope_scaling": {"type": scaling.pop("rope_type"), **scaling}}
    assert read_rope_parameters(old) == new


def test_old_name_of_longrope() -> None:
    scaling = {**SCALINGS["longrope"], "rope_type": "su"}
    assert read_rope_parameters(config_of(scaling)).rope_type == "longrope"


def test_original_length_beside_the_parameters_wins() -> None:
    data = config_of(SCALINGS["longrope"], original_max_position_embeddings=1024)
    assert read_rope_parameters(data).original_max_position_embeddings == 1024


def test_parameters_of_one_layer_type() -> None:
    data = {
        "max_position_embeddings": 2048,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    }
    full = read_rope_parameters(data, layer_type="full_attention")
    sliding = read_rope_parameters(data, layer_type="sliding_attention")
    assert (full.rope_type, full.factor, full.rope_theta) == ("linear", 8.0, 1e6)
    assert (sliding.rope_type, sliding.rope_theta) == ("default", 1e4)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"rope_type": "spiral"}, "'spiral'; supported are default, linear"),
        ({"rope_type": "linear"}, "lack factor"),
        ({"rope_type": "longrope", "short_factor": SHORT}, "lack long_factor"),
        ({"rope_type": "linear", "factor": 0}, "factor is 0"),
        ({"rope_type": "linear", "factor": "4"}, "factor is '4'"),
        ({"rope_type": "yarn", "factor": float("nan")}, "factor is nan"),
        ({"rope_theta": 1.0}, "rope_theta is 1.0"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor is 1.5"),
        (
            {**SCALINGS["llama3"], "high_freq_factor": 1.0},
            "low_freq_factor and high_freq_factor are equal",
        ),
    ],
)
def test_parameters_without_meaning_are_refused(scaling: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_rope_parameters(config_of(scaling))


def test_longrope_factors_must_fit_the_head() -> None:
    rope = read_rope_parameters(config_of(SCALINGS["longrope"]))
    with pytest.raises(ConfigError, match="short_factor has 8 numbers; this head size needs 16"):
        inverse_frequencies(rope, 32, 1)


def batch_of(lengths: list[int], known: list[int] | None = None) -> ForwardBatch:
    """Whole prompts of these lengths; `Rotary` looks at nothing else."""
    positions = torch.cat([torch.arange(n) for n in lengths])
    nothing = torch.zeros(0, dtype=torch.int64)
    return ForwardBatch(
        token_ids=torch.zeros_like(positions),
        positions=positions,
        query_starts=nothing,
        context_lens=nothing,
        slots=nothing,
        block_tables=nothing,
        logit_rows=nothing,
        query_lens=lengths,
        kv_lens=lengths,
        seq_lens=known,
    )


@pytest.mark.parametrize("name", ["dynamic", "longrope"])
def test_each_sequence_has_the_frequencies_of_its_own_length(name: str) -> None:
    rope = read_rope_parameters(config_of(SCALINGS[name], max_position_embeddings=600))
    rotary = Rotary(rope, HEAD_DIM)
    together = rotary(batch_of([700, 10, 513]), torch.float32)
    start = 0
    for length in (700, 10, 513):
        alone = rotary(batch_of([length]), torch.float32)
        torch.testing.assert_close(together.cos[start : start + length], alone.cos)
        torch.testing.assert_close(together.sin[start : start + length], alone.sin)
        start += length


def test_first_chunk_has_the_frequencies_of_the_whole_prompt() -> None:
    rotary = Rotary(read_rope_parameters(config_of(SCALINGS["longrope"])), HEAD_DIM)
    whole = rotary(batch_of([600]), torch.float32)
    chunk = rotary(batch_of([100], known=[600]), torch.float32)
    torch.testing.assert_close(chunk.cos, whole.cos[:100])


def test_partial_rotation_leaves_the_rest_alone() -> None:
    data = config_of({"partial_rotary_factor": 0.25})
    rope = Rotary(read_rope_parameters(data), HEAD_DIM)(batch_of([5]), torch.float32)
    x = torch.randn(5, 3, HEAD_DIM)
    turned = rope.rotate(x)
    assert rope.cos.shape == (5, 1, 4)
    torch.testing.assert_close(turned[..., 4:], x[..., 4:])
    torch.testing.assert_close(turned[..., :4].norm(dim=-1), x[..., :4].norm(dim=-1))
    assert not torch.equal(turned[1:, :, :4], x[1:, :, :4])


def test_adjacent_pairs_give_the_scores_of_transformers() -> None:
    """Pairs side by side are rotated as GLM-4 does; the order within a head differs, and scores do
    not depend on it."""
    from transformers.models.glm4.modeling_glm4 import apply_rotary_pos_emb

    data = config_of({"partial_rotary_factor": 0.5})
    rotary = Rotary(read_rope_parameters(data), HEAD_DIM, layout=AdjacentRope)
    rope = rotary(batch_of([9]), torch.float32)
    torch.manual_seed(0)
    q, k = torch.randn(9, 3, HEAD_DIM), torch.randn(9, 3, HEAD_DIM)
    half = rope.cos.shape[-1] // 2
    sin = torch.cat((rope.sin[..., half:], rope.sin[..., half:]), -1)
    expected_q, expected_k = apply_rotary_pos_emb(q, k, rope.cos[:, 0], sin[:, 0])
    scores = torch.einsum("qhd,khd->hqk", rope.rotate(q), rope.rotate(k))
    expected = torch.einsum("qhd,khd->hqk", expected_q, expected_k)
    torch.testing.assert_close(scores, expected)
    torch.testing.assert_close(rope.rotate(q)[..., 2 * half :], q[..., 2 * half :])


def test_factors_of_cos_and_sin_on_both_sides_of_the_switch() -> None:
    scaling = {**SCALINGS["longrope"], "short_mscale": 1.1, "long_mscale": 1.4}
    rope = read_rope_parameters(config_of(scaling))
    limit = rope.original_max_position_embeddings
    assert inverse_frequencies(rope, HEAD_DIM, limit)[1] == 1.1
    assert inverse_frequencies(rope, HEAD_DIM, limit + 1)[1] == 1.4
    together = Rotary(rope, HEAD_DIM)(batch_of([limit + 1, 2]), torch.float32)
    norms = torch.sqrt(together.cos**2 + together.sin**2)[:, 0, 0]
    torch.testing.assert_close(norms, torch.tensor([1.4] * (limit + 1) + [1.1] * 2))


def test_built_on_the_meta_device() -> None:
    with torch.device("meta"):
        rotary = Rotary(read_rope_parameters(config_of(SCALINGS["yarn"])), HEAD_DIM)
    assert rotary(batch_of([4]), torch.float32).cos.device.type == "cpu"
    assert not list(rotary.parameters())
    assert not list(rotary.buffers())

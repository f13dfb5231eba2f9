"""Mamba-2 operators against their definition, token by token."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tramontane.cache import StateSlots
from tramontane.nn import Mamba2
from tramontane.nn.ssm import causal_conv, ssm_chunk, ssm_scan, ssm_step
from tramontane_testkit.stepping import Stepper


def inputs(b, n, *, heads=6, groups=2, head_dim=5, size=7, strength=1.0):
    generator = torch.Generator().manual_seed(n)

    def rand(*shape):
        return torch.randn(*shape, generator=generator)

    return (
        rand(b, n, heads, head_dim),
        -strength * rand(b, n, heads).abs(),
        rand(b, n, groups, size),
        rand(b, n, groups, size),
        rand(b, heads, head_dim, size),
    )


def by_definition(x, decay, b, c, state):
    """The recurrence as the paper states it, in float64."""
    x, decay, b, c, state = (t.double() for t in (x, decay, b, c, state))
    shared = x.shape[2] // b.shape[2]
    b, c = b.repeat_interleave(shared, 2), c.repeat_interleave(shared, 2)
    y = []
    for t in range(x.shape[1]):
        state = state * decay[:, t].exp()[..., None, None] + torch.einsum(
            "bhp,bhn->bhpn", x[:, t], b[:, t]
        )
        y.append(torch.einsum("bhpn,bhn->bhp", state, c[:, t]))
    return torch.stack(y, 1).float(), state.float()


@pytest.mark.parametrize("length", [1, 2, 33, 128])
def test_chunk_equals_the_recurrence(length):
    *given, state = inputs(3, length)
    expected, after = by_definition(*given, state)
    actual = ssm_chunk(*given, state)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state, after, rtol=1e-4, atol=1e-5)


def test_step_equals_the_recurrence():
    x, decay, b, c, state = inputs(3, 1)
    expected, after = by_definition(x, decay, b, c, state)
    for target in (torch.empty_like(state), state):  # elsewhere, then in place
        actual = ssm_step(x[:, 0], decay[:, 0], b[:, 0], c[:, 0], state, target)
        torch.testing.assert_close(actual, expected[:, 0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(target, after, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("length", [1, 7, 8, 21])
def test_scan_equals_the_recurrence(length):
    *given, state = inputs(2, length)
    kept = state.clone()
    expected, after = by_definition(*given, state)
    target = torch.full_like(state, torch.nan)
    actual = ssm_scan(*given, state, target, chunk_size=8)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(target, after, rtol=1e-4, atol=1e-5)
    assert torch.equal(state, kept)


def test_quickly_forgotten_tokens_cost_no_digits():
    """The decays of a chunk sum to thousands, those between neighbours are small."""
    *given, state = inputs(1, 200, strength=30.0)
    given[1][:, 100:] *= 1e-3
    expected, _ = by_definition(*given, state)
    torch.testing.assert_close(ssm_chunk(*given, state), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("pieces", [(11,), (1,) * 11, (2, 1, 8)])
def test_convolution_looks_back_across_pieces(pieces):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 11, 3), torch.randn(3, 4), torch.randn(3)
    padded = F.pad(x.transpose(1, 2), (3, 0))
    expected = F.conv1d(padded, weight[:, None], bias, groups=3).transpose(1, 2)
    state = torch.zeros(2, 3, 3)
    parts = [causal_conv(part, state, weight, bias) for part in x.split(pieces, 1)]
    torch.testing.assert_close(torch.cat(parts, 1), expected)
    torch.testing.assert_close(state, x[:, -3:])


SIZES = {"num_heads": 4, "head_dim": 8, "state_size": 6, "num_groups": 2, "conv_width": 4}


class Layer(torch.nn.Module):
    """A mixer that reads its own embedding, for `Stepper`."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(40, 16)
        self.mamba = Mamba2(16, **SIZES)
        with torch.no_grad():
            for parameter in self.mamba.parameters():
                parameter.normal_(std=0.3)

    @staticmethod
    def cache_specs(config):
        return [Mamba2.cache_spec(**SIZES)]

    def forward(self, batch, caches):
        return self.mamba(self.embedding(batch.token_ids), batch, caches[0])

    def logits(self, hidden):
        return hidden


def test_rubbish_in_unused_slots_is_never_read():
    model = Layer()
    clean, soiled = Stepper(model, None), Stepper(model, None)
    for cache in soiled._caches:
        assert isinstance(cache, StateSlots)
        cache.conv.fill_(torch.nan)
        cache.ssm.fill_(torch.nan)
    tokens = {"a": [1, 2, 3], "b": [4] * 90, "c": [5], "d": [6, 7, 8]}
    results = []
    for stepper in (clean, soiled):
        for name, ids in tokens.items():
            stepper.add(name, ids)
        first = stepper.step({"a": 1, "b": 70, "c": 1, "d": 1})
        second = stepper.step({"b": 2, "a": 2, "d": 2})
        results.append([*first.values(), *second.values()])
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("singly", [True, False], ids=["as on a CPU", "as on a GPU"])
def test_a_forward_may_be_run_again(singly):
    model = Layer()
    stepper = Stepper(model, None)
    stepper._caches[0]._singly = singly
    stepper.add("a", list(range(12)))
    stepper.add("b", list(range(20, 25)))
    first = stepper.step({"a": 3, "b": 2})
    assert torch.isfinite(torch.cat([*first.values()])).all()
    batch = stepper._batch({"a": 9, "b": 1})
    with torch.inference_mode():
        once = model(batch, stepper._caches)
        again = model(batch, stepper._caches)
    assert torch.equal(once, again)


def test_sequences_at_once_equal_one_after_the_other():
    model = Layer()
    results = []
    for singly in (True, False):
        stepper = Stepper(model, None)
        stepper._caches[0]._singly = singly
        for i in range(4):
            stepper.add(str(i), [i, i + 1, i + 2, i + 3])
        stepper.step({"0": 2, "1": 2, "3": 1})
        results.append([*stepper.step({"3": 1, "0": 1, "2": 1, "1": 1}).values()])
    torch.testing.assert_close(*results)

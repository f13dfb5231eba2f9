"""Streams of bits, and weights made of them."""

from __future__ import annotations

import pytest
import torch

from tramontane.nn import GroupAffineWeight, pack_bits, unpack_bits


@pytest.mark.parametrize("bits", range(1, 9))
def test_streams_come_back(bits):
    torch.manual_seed(bits)
    codes = torch.randint(0, 1 << bits, (3, 2, 24), dtype=torch.uint8)
    packed = pack_bits(codes, bits)
    assert packed.shape == (3, 2, 3 * bits)
    assert torch.equal(unpack_bits(packed, bits), codes)
    # The stream is one little-endian number a row.
    number = int.from_bytes(bytes(packed[0, 0].tolist()), "little")
    assert [(number >> j * bits) & (1 << bits) - 1 for j in range(24)] == codes[0, 0].tolist()


def test_a_stream_ends_with_a_byte():
    codes = torch.arange(20, dtype=torch.uint8) % 8
    assert torch.equal(unpack_bits(pack_bits(torch.cat([codes, codes[:4]]), 3), 3)[:20], codes)
    with pytest.raises(ValueError, match="do not fill whole bytes"):
        pack_bits(codes[:9], 3)
    with pytest.raises(ValueError, match="1 to 8 bits"):
        unpack_bits(codes, 9)


def weight(*lead, columns=32, groups=2, bits=4, order=None):
    torch.manual_seed(0)
    codes = torch.randint(0, 1 << bits, (*lead, columns), dtype=torch.uint8)
    scales, biases = torch.rand(*lead, groups), torch.randn(*lead, groups)
    made = GroupAffineWeight(pack_bits(codes, bits), scales, biases, bits=bits, order=order)
    spread = (t.repeat_interleave(columns // groups, -1) for t in (scales, biases))
    plain = torch.addcmul(*reversed((codes.float(), *spread)))
    return made, plain


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_what_codes_mean(bits):
    packed, plain = weight(5, bits=bits)
    assert packed.shape == (5, 32)
    assert packed.group_size == 16
    assert packed.nbytes == 5 * 32 * bits // 8 + 2 * 5 * 2 * 4
    torch.testing.assert_close(packed.dequantize(), plain)
    index = torch.tensor([4, 0, 4])
    torch.testing.assert_close(packed.gather(index), plain[index])
    torch.testing.assert_close(packed.rows(1, 3).dequantize(torch.bfloat16), plain[1:3].bfloat16())
    joined = GroupAffineWeight.concat([packed.rows(0, 2), packed.rows(2, 5)])
    assert torch.equal(joined.dequantize(), packed.dequantize())
    with pytest.raises(ValueError, match="cannot follow"):
        GroupAffineWeight.concat([packed, weight(5, bits=bits, groups=4)[0]])


def test_columns_out_of_order_and_stacks():
    order = torch.randperm(32)
    packed, plain = weight(2, 3, order=order)
    expected = torch.empty_like(plain)
    expected[..., order] = plain
    torch.testing.assert_close(packed.dequantize(), expected)
    torch.testing.assert_close(packed.expert(1).dequantize(), expected[1:])
    torch.testing.assert_close(packed.gather(torch.tensor([1])), expected[1:])


def test_parts_that_do_not_fit():
    codes, scales = torch.zeros(4, 16, dtype=torch.uint8), torch.ones(4, 2)
    with pytest.raises(ValueError, match="3 equal groups"):
        GroupAffineWeight(codes, torch.ones(4, 3), torch.ones(4, 3), bits=4)
    with pytest.raises(ValueError, match="do not belong together"):
        GroupAffineWeight(codes, scales, torch.ones(3, 2), bits=4)
    with pytest.raises(ValueError, match="order of 32 columns"):
        GroupAffineWeight(codes, scales, scales, bits=4, order=torch.arange(31))
    with pytest.raises(ValueError, match=r"torch\.int8"):
        GroupAffineWeight(codes.char(), scales, scales, bits=4)

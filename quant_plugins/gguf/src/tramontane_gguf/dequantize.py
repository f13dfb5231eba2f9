"""The arithmetic of each ggml block type: bytes to float32, vectorized over blocks.

Layouts are those of ``ggml-common.h``; results equal ``gguf.dequantize`` bit for bit, so the order
of the float operations is part of the contract. Every function takes blocks [N, type_size] uint8
and gives [N, block_size] float32, on whatever device the blocks lie.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tramontane_gguf.tables import FP4_VALUES, IQ4_VALUES, e8m0_half, grid, sign_masks, ue4m3_half

Decoder = Callable[[Tensor], Tensor]
DECODERS: dict[str, Decoder] = {}


def _decodes(name: str) -> Callable[[Decoder], Decoder]:
    def register(function: Decoder) -> Decoder:
        DECODERS[name] = function
        return function

    return register


# Pieces -----------------------------------------------------------------------------------


def _half(part: Tensor) -> Tensor:
    """Little-endian f16 fields: [N, 2·k] bytes → [N, k] float32."""
    return part.contiguous().view(torch.float16).float()


def _word16(part: Tensor) -> Tensor:
    """[N, 2·k] bytes → [N, k] int32 of unsigned 16-bit words."""
    return part[:, 0::2].int() | (part[:, 1::2].int() << 8)


def _word32(part: Tensor) -> Tensor:
    """[N, 4·k] bytes → [N, k] int64 of unsigned 32-bit words."""
    quads = part.reshape(part.shape[0], -1, 4).long()
    return quads[..., 0] | (quads[..., 1] << 8) | (quads[..., 2] << 16) | (quads[..., 3] << 24)


def _fields(packed: Tensor, shifts: range, mask: int, group: int) -> Tensor:
    """Bit fields of each byte: groups of ``group`` bytes, all their first fields, then all their
    second ones, and so on: [N, bytes] → [N, bytes · len(shifts)]."""
    n = packed.shape[0]
    grouped = packed.reshape(n, -1, 1, group)
    steps = torch.tensor(shifts, dtype=packed.dtype, device=packed.device).view(1, 1, -1, 1)
    return ((grouped >> steps) & mask).reshape(n, -1)


def _nibbles(packed: Tensor, group: int) -> Tensor:
    return _fields(packed, range(0, 8, 4), 0x0F, group)


def _pairs(packed: Tensor) -> Tensor:
    """Low and high nibble of each byte side by side: [N, k] → [N, 2·k]."""
    return torch.stack((packed & 0x0F, packed >> 4), dim=-1).reshape(packed.shape[0], -1)


def _bits(packed: Tensor) -> Tensor:
    """Bits of each byte, lowest first: [N, k] → [N, 8·k]."""
    return _fields(packed, range(8), 1, 1)


def _signs(masks: Tensor) -> Tensor:
    """Bytes whose set bits mean minus: [N, k] uint8 → [N, 8·k] of 1.0 and -1.0."""
    return 1.0 - 2.0 * _bits(masks).float()


def _scaled(scales: Tensor, values: Tensor) -> Tensor:
    """Each of a row's scales times its share of the values: [N, k], [N, k·m] → [N, k·m]."""
    n, k = scales.shape
    return (scales.unsqueeze(-1) * values.view(n, k, -1)).view(n, -1)


# 32 elements to a block, Q1_0 excepted --------------------------------------------------------


@_decodes("q1_0")
def _q1_0(b: Tensor) -> Tensor:
    return _half(b[:, :2]) * (2.0 * _bits(b[:, 2:]).float() - 1)


@_decodes("q4_0")
def _q4_0(b: Tensor) -> Tensor:
    return _half(b[:, :2]) * (_nibbles(b[:, 2:], 16).float() - 8)


@_decodes("q4_1")
def _q4_1(b: Tensor) -> Tensor:
    return _half(b[:, :2]) * _nibbles(b[:, 4:], 16).float() + _half(b[:, 2:4])


@_decodes("q5_0")
def _q5_0(b: Tensor) -> Tensor:
    q = _nibbles(b[:, 6:], 16) | (_bits(b[:, 2:6]) << 4)
    return _half(b[:, :2]) * (q.float() - 16)


@_decodes("q5_1")
def _q5_1(b: Tensor) -> Tensor:
    q = _nibbles(b[:, 8:], 16) | (_bits(b[:, 4:8]) << 4)
    return _half(b[:, :2]) * q.float() + _half(b[:, 2:4])


@_decodes("q8_0")
def _q8_0(b: Tensor) -> Tensor:
    return _half(b[:, :2]) * b[:, 2:].view(torch.int8).float()


@_decodes("q8_1")
def _q8_1(b: Tensor) -> Tensor:
    # Bytes 2:4 hold the scaled sum of the block, which only dot products use.
    return _half(b[:, :2]) * b[:, 4:].view(torch.int8).float()


# K-quants: 256 elements to a block -----------------------------------------------------------


@_decodes("q2_k")
def _q2_k(b: Tensor) -> Tensor:
    scales = b[:, :16]
    q = _fields(b[:, 16:80], range(0, 8, 2), 3, 32).float()
    scale = _half(b[:, 80:82]) * (scales & 0x0F).float()
    low = _half(b[:, 82:84]) * (scales >> 4).float()
    return (_scaled(scale, q).view(-1, 16, 16) - low.unsqueeze(-1)).view(-1, 256)


@_decodes("q3_k")
def _q3_k(b: Tensor) -> Tensor:
    low = _fields(b[:, 32:96], range(0, 8, 2), 3, 32)
    high = _fields(b[:, :32], range(8), 1, 32)
    # The high bit is stored inverted: where it is clear, 4 is taken away.
    q = low.float() - 4.0 * (high ^ 1).float()
    packed = b[:, 96:108]
    scales = _nibbles(packed[:, :8], 8) | (_fields(packed[:, 8:], range(0, 8, 2), 3, 4) << 4)
    return _scaled(_half(b[:, 108:110]) * (scales.float() - 32), q)


def _scales_and_mins(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Eight 6-bit scales and eight 6-bit minima from 12 bytes (Q4_K, Q5_K), [N, 8] float32."""
    scale, low, mixed = packed[:, :4], packed[:, 4:8], packed[:, 8:12]
    scales = torch.cat((scale & 0x3F, (mixed & 0x0F) | ((scale >> 2) & 0x30)), dim=1)
    mins = torch.cat((low & 0x3F, (mixed >> 4) | ((low >> 2) & 0x30)), dim=1)
    return scales.float(), mins.float()


def _affine_k(b: Tensor, q: Tensor) -> Tensor:
    """Q4_K and Q5_K: ``d·scale·q - dmin·min`` over eight groups of 32."""
    scales, mins = _scales_and_mins(b[:, 4:16])
    low = _half(b[:, 2:4]) * mins
    scaled = _scaled(_half(b[:, :2]) * scales, q.float())
    return (scaled.view(-1, 8, 32) - low.unsqueeze(-1)).view(-1, 256)


@_decodes("q4_k")
def _q4_k(b: Tensor) -> Tensor:
    return _affine_k(b, _nibbles(b[:, 16:], 32))


@_decodes("q5_k")
def _q5_k(b: Tensor) -> Tensor:
    return _affine_k(b, _nibbles(b[:, 48:], 32) | (_fields(b[:, 16:48], range(8), 1, 32) << 4))


@_decodes("q6_k")
def _q6_k(b: Tensor) -> Tensor:
    q = _nibbles(b[:, :128], 64) | (_fields(b[:, 128:192], range(0, 8, 2), 3, 32) << 4)
    scales = b[:, 192:208].view(torch.int8).float()
    return _scaled(_half(b[:, 208:210]) * scales, q.float() - 32)


@_decodes("q8_k")
def _q8_k(b: Tensor) -> Tensor:
    # Bytes 260: hold sums of 16, which only dot products use.
    return b[:, :4].contiguous().view(torch.float32) * b[:, 4:260].view(torch.int8).float()


# Ternary -------------------------------------------------------------------------------------


@_decodes("tq1_0")
def _tq1_0(b: Tensor) -> Tensor:
    def trits(packed: Tensor, powers: tuple[int, ...]) -> Tensor:
        factors = torch.tensor(powers, dtype=torch.uint8, device=b.device).view(1, -1, 1)
        # Multiplication modulo 256 moves the wanted base-3 digit to the top.
        return (packed.unsqueeze(1) * factors).reshape(packed.shape[0], -1)

    five = (1, 3, 9, 27, 81)
    q = torch.cat(
        (trits(b[:, :32], five), trits(b[:, 32:48], five), trits(b[:, 48:52], five[:4])), dim=1
    )
    return _half(b[:, 52:54]) * (((q.int() * 3) >> 8).float() - 1)


@_decodes("tq2_0")
def _tq2_0(b: Tensor) -> Tensor:
    return _half(b[:, 64:66]) * (_fields(b[:, :64], range(0, 8, 2), 3, 32).float() - 1)


# 4-bit floats --------------------------------------------------------------------------------


@_decodes("mxfp4")
def _mxfp4(b: Tensor) -> Tensor:
    values = FP4_VALUES.on(b.device)[_nibbles(b[:, 1:], 16).long()]
    return e8m0_half().on(b.device)[b[:, :1].long()] * values


@_decodes("nvfp4")
def _nvfp4(b: Tensor) -> Tensor:
    scales = ue4m3_half().on(b.device)[b[:, :4].long()]
    return _scaled(scales, FP4_VALUES.on(b.device)[_nibbles(b[:, 4:], 8).long()])


# IQ: look-up tables ----------------------------------------------------------------------------


@_decodes("iq4_nl")
def _iq4_nl(b: Tensor) -> Tensor:
    return _half(b[:, :2]) * IQ4_VALUES.on(b.device)[_nibbles(b[:, 2:], 16).long()]


@_decodes("iq4_xs")
def _iq4_xs(b: Tensor) -> Tensor:
    high = torch.cat([(_word16(b[:, 2:4]) >> shift) & 3 for shift in range(0, 16, 2)], dim=1)
    scales = (_pairs(b[:, 4:8]).int() | (high << 4)).float() - 32
    values = IQ4_VALUES.on(b.device)[_nibbles(b[:, 8:], 16).long()]
    return _scaled(_half(b[:, :2]) * scales, values)


def _packed_signs(words: Tensor) -> Tensor:
    """Four 7-bit sign codes in each 32-bit word: [N, k] → [N, 32·k] of 1.0 and -1.0."""
    codes = torch.stack([(words >> shift) & 0x7F for shift in (0, 7, 14, 21)], dim=-1)
    return _signs(sign_masks().on(words.device)[codes.view(words.shape[0], -1)])


@_decodes("iq2_xxs")
def _iq2_xxs(b: Tensor) -> Tensor:
    n = b.shape[0]
    pairs = b[:, 2:].reshape(n, 8, 8)
    words = _word32(pairs[:, :, 4:].reshape(n, -1))
    values = grid("iq2_xxs").on(b.device)[pairs[:, :, :4].reshape(n, -1).long()].view(n, -1)
    scales = _half(b[:, :2]) * (0.5 + (words >> 28).float()) * 0.25
    return _scaled(scales, values) * _packed_signs(words)


@_decodes("iq2_xs")
def _iq2_xs(b: Tensor) -> Tensor:
    n = b.shape[0]
    words = _word16(b[:, 2:66])
    values = grid("iq2_xs").on(b.device)[(words & 511).long()].view(n, -1)
    signs = _signs(sign_masks().on(b.device)[(words >> 9).long()])
    scales = _half(b[:, :2]) * (0.5 + _pairs(b[:, 66:74]).float()) * 0.25
    return _scaled(scales, values) * signs


@_decodes("iq2_s")
def _iq2_s(b: Tensor) -> Tensor:
    n = b.shape[0]
    index = b[:, 2:34].int() | (_fields(b[:, 66:74], range(0, 8, 2), 3, 1).int() << 8)
    values = grid("iq2_s").on(b.device)[index.long()].view(n, -1)
    scales = _half(b[:, :2]) * (0.5 + _pairs(b[:, 74:82]).float()) * 0.25
    return _scaled(scales, values) * _signs(b[:, 34:66])


@_decodes("iq3_xxs")
def _iq3_xxs(b: Tensor) -> Tensor:
    words = _word32(b[:, 66:98])
    values = grid("iq3_xxs").on(b.device)[b[:, 2:66].long()].view(b.shape[0], -1)
    scales = _half(b[:, :2]) * (0.5 + (words >> 28).float()) * 0.5
    return _scaled(scales, values) * _packed_signs(words)


@_decodes("iq3_s")
def _iq3_s(b: Tensor) -> Tensor:
    index = b[:, 2:66].int() | (_bits(b[:, 66:74]).int() << 8)
    values = grid("iq3_s").on(b.device)[index.long()].view(b.shape[0], -1)
    scales = _half(b[:, :2]) * (1 + 2 * _pairs(b[:, 106:110]).float())
    return _scaled(scales, values) * _signs(b[:, 74:106])


_IQ1_DELTA = 0.125


@_decodes("iq1_s")
def _iq1_s(b: Tensor) -> Tensor:
    n = b.shape[0]
    high = _word16(b[:, 34:50])  # [N, 8]
    parts = torch.stack([(high >> shift) & 7 for shift in (0, 3, 6, 9)], dim=-1)
    values = grid("iq1_s").on(b.device)[(b[:, 2:34].int() | (parts.view(n, -1) << 8)).long()]
    scales = _half(b[:, :2]) * (2 * ((high >> 12) & 7) + 1).float()
    delta = _IQ1_DELTA * (1.0 - 2.0 * (high >> 15).float())
    return _scaled(scales, values.view(n, 8, 32) + delta.unsqueeze(-1))


@_decodes("iq1_m")
def _iq1_m(b: Tensor) -> Tensor:
    n = b.shape[0]
    words = _word16(b[:, 48:56])  # [N, 4]; the top nibbles spell the block's f16 scale
    top = words >> 12
    d16 = top[:, 0] | (top[:, 1] << 4) | (top[:, 2] << 8) | (top[:, 3] << 12)
    d = d16.to(torch.int16).view(torch.float16).float().unsqueeze(1)
    steps = torch.stack([(words >> shift) & 7 for shift in (0, 3, 6, 9)], dim=-1).view(n, 16)
    high = _pairs(b[:, 32:48])  # [N, 32]: three index bits and the sign of delta
    index = b[:, :32].int() | ((high & 7).int() << 8)
    delta = _IQ1_DELTA * (1.0 - 2.0 * (high >> 3).float())
    values = grid("iq1_m").on(b.device)[index.long()] + delta.unsqueeze(-1)  # [N, 32, 8]
    return _scaled(d * (2 * steps + 1).float(), values)

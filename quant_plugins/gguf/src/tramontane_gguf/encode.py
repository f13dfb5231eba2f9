"""Encoders of the ggml block types in torch: float32 to bytes, vectorized over blocks.

They serve where the native ones are not built, and on other devices than the CPU. Layouts are
those of `tramontane_gguf.dequantize`. Every function takes blocks [N, block_size] float32 and what
each weight's importance is, or None, and gives [N, type_size] uint8.

Without importances a large weight counts more than a small one: |x| plus the root mean square of
its group; in the 32-wide types none counts, as in ggml's own reference. With them a weight counts
by its column times √(2·mean(x²) + x²), in Q6_K by its column alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tramontane_gguf.fit import AffineFit, Coder, fit_scale, fit_scales, integers, inverse
from tramontane_gguf.tables import IQ4_VALUES

Encoder = Callable[[Tensor, Tensor | None], Tensor]
ENCODERS: dict[str, Encoder] = {}

_IQ4_GRID = (-127.0, -28.0, 28.0, 8.0)


def _encodes(name: str) -> Callable[[Encoder], Encoder]:
    def register(function: Encoder) -> Encoder:
        ENCODERS[name] = function
        return function

    return register


# Pieces -----------------------------------------------------------------------------------


def _counted(x: Tensor, importance: Tensor | None, size: int, spread: float) -> Tensor:
    """What the error of each weight counts, as groups [G, size]."""
    groups = x.view(-1, size)
    if importance is None:
        return groups.abs() + groups.square().mean(-1, keepdim=True).sqrt()
    mean = x.square().mean(-1, keepdim=True)
    return (importance * (spread * mean + x.square()).sqrt()).view(-1, size)


def _half(x: Tensor) -> Tensor:
    """[N, k] as the bytes of f16, [N, 2·k]."""
    return x.half().contiguous().view(torch.uint8)


def _bytes(codes: Tensor) -> Tensor:
    return codes.to(torch.uint8)


def _fields(codes: Tensor, width: int, group: int) -> Tensor:
    """The inverse of the decoder's: ``8 // width`` codes of ``width`` bits to a byte, in groups of
    ``group`` bytes."""
    steps = 8 // width
    parts = codes.view(codes.shape[0], -1, steps, group)
    packed = parts[:, :, 0].clone()
    for k in range(1, steps):
        packed |= parts[:, :, k] << (k * width)
    return packed.reshape(codes.shape[0], -1)


def _put_high(q: Tensor) -> Tensor:
    """The fifth bit of 32 codes as a little-endian word, [N, 4]."""
    return _fields(q >> 4, 1, 1)


# 32 elements to a block -----------------------------------------------------------------------


def _scaled_32(x: Tensor, importance: Tensor | None, half: int) -> tuple[Tensor, Tensor]:
    if importance is None:
        d = x.gather(1, x.abs().argmax(1, keepdim=True)) / -half
        q = (x * inverse(d) + (half + 0.5)).trunc().clamp(0, 2 * half - 1)
        return _half(d), _bytes(q)
    w = _counted(x, importance, 32, 1.0)
    a, _ = fit_scale(x, w, integers(-half, half - 1), -half, -0.9, 1.2, 0.1)
    d = a.half().float()[:, None]
    return _half(d), _bytes((x * inverse(d)).round().clamp(-half, half - 1) + half)


def _affine_32(x: Tensor, importance: Tensor | None, levels: int) -> tuple[Tensor, Tensor]:
    if importance is None:
        low = x.amin(1, keepdim=True)
        d = (x.amax(1, keepdim=True) - low) / levels
        q = ((x - low) * inverse(d) + 0.5).trunc().clamp(0, levels)
        return torch.cat((_half(d), _half(low)), 1), _bytes(q)
    # The offset may have either sign here, so that groups are moved below zero first.
    top = x.amax(1).clamp(min=0)
    w = _counted(x, importance, 32, 1.0)
    a, b, _ = AffineFit(x - top[:, None], w, levels).search(-0.9, 1.2, 0.1)
    d, low = a.half().float()[:, None], (b + top).half().float()[:, None]
    q = ((x - low) * inverse(d)).round().clamp(0, levels)
    return torch.cat((_half(d), _half(low)), 1), _bytes(q)


@_encodes("q4_0")
def _q4_0(x: Tensor, importance: Tensor | None) -> Tensor:
    head, q = _scaled_32(x, importance, 8)
    return torch.cat((head, _fields(q, 4, 16)), 1)


@_encodes("q4_1")
def _q4_1(x: Tensor, importance: Tensor | None) -> Tensor:
    head, q = _affine_32(x, importance, 15)
    return torch.cat((head, _fields(q, 4, 16)), 1)


@_encodes("q5_0")
def _q5_0(x: Tensor, importance: Tensor | None) -> Tensor:
    head, q = _scaled_32(x, importance, 16)
    return torch.cat((head, _put_high(q), _fields(q & 15, 4, 16)), 1)


@_encodes("q5_1")
def _q5_1(x: Tensor, importance: Tensor | None) -> Tensor:
    head, q = _affine_32(x, importance, 31)
    return torch.cat((head, _put_high(q), _fields(q & 15, 4, 16)), 1)


def _eight(x: Tensor) -> tuple[Tensor, Tensor]:
    d = x.abs().amax(1, keepdim=True) / 127
    v = x * inverse(d)
    return d, (v.abs() + 0.5).floor() * v.sign()


@_encodes("q8_0")
def _q8_0(x: Tensor, importance: Tensor | None) -> Tensor:
    d, q = _eight(x)
    return torch.cat((_half(d), q.to(torch.int8).view(torch.uint8)), 1)


@_encodes("q8_1")
def _q8_1(x: Tensor, importance: Tensor | None) -> Tensor:
    d, q = _eight(x)
    total = d * q.sum(1, keepdim=True)
    return torch.cat((_half(d), _half(total), q.to(torch.int8).view(torch.uint8)), 1)


# K-quants: 256 elements to a block -----------------------------------------------------------


def _affine_k(
    x: Tensor, importance: Tensor | None, size: int, levels: int, top: int, spread: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Halves d and dmin [N, 4], codes of scales and of minima, and of weights."""
    n, count = x.shape[0], 256 // size
    groups = x.view(-1, size)
    grid = (-0.9, 1.2, 0.1) if levels == 3 else (-1.0, 1.1, 0.1)
    fit = AffineFit(groups, _counted(x, importance, size, spread), levels)
    a, b, qq = fit.search(*grid)
    d, scales = fit_scales(a.view(n, count), qq.view(n, count), 0, top, top)
    a = (d[:, None] * scales).view(-1)
    low = fit.offset(a, b).view(n, count)
    dmin, mins = fit_scales(low, fit.sum_w.view(n, count), 0, top, top)
    shifted = groups + (dmin[:, None] * mins).view(-1, 1)
    q = (shifted * inverse(a)[:, None]).round().clamp(0, levels)
    head = _half(torch.stack((d, dmin), 1))
    return head, _bytes(scales), _bytes(mins), _bytes(q.view(n, 256))


def _scales_and_mins(scales: Tensor, mins: Tensor) -> Tensor:
    """Eight 6-bit scales and eight 6-bit minima in 12 bytes."""
    s, m = (scales[:, :4], scales[:, 4:]), (mins[:, :4], mins[:, 4:])
    first = s[0] | ((s[1] >> 4) << 6)
    second = m[0] | ((m[1] >> 4) << 6)
    return torch.cat((first, second, (s[1] & 15) | ((m[1] & 15) << 4)), 1)


@_encodes("q2_k")
def _q2_k(x: Tensor, importance: Tensor | None) -> Tensor:
    head, scales, mins, q = _affine_k(x, importance, 16, 3, 15, 1.0)
    return torch.cat((scales | (mins << 4), _fields(q, 2, 32), head), 1)


@_encodes("q4_k")
def _q4_k(x: Tensor, importance: Tensor | None) -> Tensor:
    head, scales, mins, q = _affine_k(x, importance, 32, 15, 63, 2.0)
    return torch.cat((head, _scales_and_mins(scales, mins), _fields(q, 4, 32)), 1)


@_encodes("q5_k")
def _q5_k(x: Tensor, importance: Tensor | None) -> Tensor:
    head, scales, mins, q = _affine_k(x, importance, 32, 31, 63, 2.0)
    packed = _scales_and_mins(scales, mins)
    return torch.cat((head, packed, _fields(q >> 4, 1, 32), _fields(q & 15, 4, 32)), 1)


def _scaled_k(
    x: Tensor, w: Tensor, half: int, scale_half: int, stop: float
) -> tuple[Tensor, Tensor, Tensor]:
    """d [N, 2 bytes], codes of 16 scales as floats, and of weights from 0."""
    n = x.shape[0]
    groups = x.view(-1, 16)
    a, qq = fit_scale(groups, w, integers(-half, half - 1), -half, -0.9, stop, 0.1)
    d, scales = fit_scales(a.view(n, 16), qq.view(n, 16), -scale_half, scale_half - 1, -scale_half)
    unit = inverse(d[:, None] * scales).view(-1, 1)
    q = (groups * unit).round().clamp(-half, half - 1) + half
    return _half(d[:, None]), scales, _bytes(q.view(n, 256))


@_encodes("q3_k")
def _q3_k(x: Tensor, importance: Tensor | None) -> Tensor:
    d, scales, q = _scaled_k(x, _counted(x, importance, 16, 2.0), 4, 32, 1.2)
    six = _bytes(scales + 32)
    packed = torch.cat((_fields(six & 15, 4, 8), _fields(six >> 4, 2, 4)), 1)
    return torch.cat((_fields(q >> 2, 1, 32), _fields(q & 3, 2, 32), packed, d), 1)


@_encodes("q6_k")
def _q6_k(x: Tensor, importance: Tensor | None) -> Tensor:
    w = _counted(x, None, 16, 2.0) if importance is None else importance.reshape(-1, 16)
    d, scales, q = _scaled_k(x, w, 32, 128, 1.0)
    signed = scales.to(torch.int8).view(torch.uint8)
    return torch.cat((_fields(q & 15, 4, 64), _fields(q >> 4, 2, 32), signed, d), 1)


@_encodes("q8_k")
def _q8_k(x: Tensor, importance: Tensor | None) -> Tensor:
    d = x.gather(1, x.abs().argmax(1, keepdim=True)) / -127
    q = (x * inverse(d)).round().clamp(-127, 127)
    sums = q.view(-1, 16, 16).sum(-1).to(torch.int16).view(torch.uint8)
    return torch.cat((d.view(torch.uint8), q.to(torch.int8).view(torch.uint8), sums), 1)


# The table of IQ4 ----------------------------------------------------------------------------


def _iq4_codes(x: Tensor) -> Tensor:
    values = IQ4_VALUES.on(x.device)
    return torch.bucketize(x, (values[1:] + values[:-1]) / 2)


def _iq4_coder(x: Tensor) -> Tensor:
    return IQ4_VALUES.on(x.device)[_iq4_codes(x)]


_iq4: Coder = _iq4_coder


@_encodes("iq4_nl")
def _iq4_nl(x: Tensor, importance: Tensor | None) -> Tensor:
    a, _ = fit_scale(x, _counted(x, importance, 32, 1.0), _iq4, *_IQ4_GRID)
    d = a.half().float()[:, None]
    return torch.cat((_half(d), _fields(_bytes(_iq4_codes(x * inverse(d))), 4, 16)), 1)


@_encodes("iq4_xs")
def _iq4_xs(x: Tensor, importance: Tensor | None) -> Tensor:
    n = x.shape[0]
    groups = x.view(-1, 32)
    a, qq = fit_scale(groups, _counted(x, importance, 32, 2.0), _iq4, *_IQ4_GRID)
    d, scales = fit_scales(a.view(n, 8), qq.view(n, 8), -32, 31, -32)
    six = _bytes(scales + 32)
    q = _iq4_codes(groups * inverse(d[:, None] * scales).view(-1, 1)).view(n, 256)
    high = _fields(six >> 4, 2, 1)
    return torch.cat(
        (_half(d[:, None]), high, _fields(six & 15, 4, 1), _fields(_bytes(q), 4, 16)), 1
    )

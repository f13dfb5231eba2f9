"""What tramontane-kernels-cpu provides."""

from __future__ import annotations

from collections.abc import Iterable

from tramontane.hooks import KernelSpec, hookimpl


@hookimpl
def tramontane_kernels() -> Iterable[KernelSpec]:
    return (
        KernelSpec(
            name="native packed linear",
            target="tramontane_kernels_cpu.linear:packed_linear",
            op="packed_linear",
            device="cpu",
            summary="ggml block types and affine groups times int8 activations",
        ),
        KernelSpec(
            name="native paged attention",
            target="tramontane_kernels_cpu.attention:paged_attention",
            op="paged_attention",
            device="cpu",
            summary="one pass over the blocks of the KV cache",
        ),
        KernelSpec(
            name="native RMS norm",
            target="tramontane_kernels_cpu.norm:rms_norm",
            op="rms_norm",
            device="cpu",
            summary="one call, without torch's intermediate tensors",
        ),
        KernelSpec(
            name="native self-attention",
            target="tramontane_kernels_cpu.block:self_attention",
            op="self_attention",
            device="cpu",
            summary="projections, rotation, cache and attention in one call",
        ),
        KernelSpec(
            name="native gated MLP",
            target="tramontane_kernels_cpu.block:gated_mlp",
            op="gated_mlp",
            device="cpu",
            summary="three projections and their gate in one call",
        ),
        KernelSpec(
            name="native gated experts",
            target="tramontane_kernels_cpu.experts:gated_experts",
            op="gated_experts",
            device="cpu",
            summary="all chosen experts of all tokens in one call",
        ),
        KernelSpec(
            name="native pre-norm layer",
            target="tramontane_kernels_cpu.block:pre_norm_layer",
            op="pre_norm_layer",
            device="cpu",
            summary="attention, MLP, norms and residuals in one call",
        ),
        KernelSpec(
            name="native decoder layers",
            target="tramontane_kernels_cpu.block:decoder_layers",
            op="decoder_layers",
            device="cpu",
            summary="all layers in one call, between which no thread waits to be woken",
        ),
        KernelSpec(
            name="native penalties",
            target="tramontane_kernels_cpu.draw:penalize",
            op="penalize",
            device="cpu",
            summary="presence, frequency and repetition in one pass over what occurs",
        ),
        KernelSpec(
            name="native draw",
            target="tramontane_kernels_cpu.draw:draw",
            op="draw",
            device="cpu",
            summary="temperature, top-k, top-p, min-p and the draw in one call",
        ),
    )

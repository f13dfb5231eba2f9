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
            summary="ggml block types times int8 activations",
        ),
        KernelSpec(
            name="native paged attention",
            target="tramontane_kernels_cpu.attention:paged_attention",
            op="paged_attention",
            device="cpu",
            summary="one pass over the blocks of the KV cache",
        ),
    )

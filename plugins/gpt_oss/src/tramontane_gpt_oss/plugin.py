"""What tramontane-gpt-oss provides."""

from __future__ import annotations

from collections.abc import Iterable

from tramontane.hooks import ArchitectureSpec, hookimpl


@hookimpl
def tramontane_architectures() -> Iterable[ArchitectureSpec]:
    return (
        ArchitectureSpec(
            name="gpt_oss",
            target="tramontane_gpt_oss.gpt_oss:GptOss",
            hf_names=("GptOssForCausalLM",),
            gguf_names=("gpt-oss",),
            summary="gpt-oss: a mixture of experts, attention sinks, every second layer windowed",
        ),
    )

"""The plug-in contract: every hook, its arguments and its promise.

Hooks answer "what exists" once, at start-up; objects resolved from the specs do the work by
ordinary calls. A plug-in is a module named in the entry-point group ``tramontane``; it implements
the hooks it needs, with ``hookimpl``, and may accept fewer arguments than a hook offers. Its
``plugin.py`` must not import torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from tramontane.hooks.specs import (
        AdapterSpec,
        ArchitectureSpec,
        CheckpointSpec,
        ExecutorSpec,
        KernelSpec,
        ModelSpec,
        PipelineSpec,
        QuantizerSpec,
        ToolFormatSpec,
        ToolSource,
        TransportSpec,
    )

GROUP = "tramontane"

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


@hookspec
def tramontane_architectures() -> Iterable[ArchitectureSpec]:
    """Model architectures. Core looks one up by its name, by ``architectures`` of a
    ``config.json``, or by ``general.architecture`` of a GGUF file."""


@hookspec
def tramontane_pipelines() -> Iterable[PipelineSpec]:
    """Roads from request to response, one a model kind."""


@hookspec
def tramontane_quantizers() -> Iterable[QuantizerSpec]:
    """Weight formats: how weights are encoded, decoded and multiplied."""


@hookspec
def tramontane_checkpoint_formats() -> Iterable[CheckpointSpec]:
    """Weight file formats, found by file name ending."""


@hookspec
def tramontane_adapters() -> Iterable[AdapterSpec]:
    """Adapter modes applied to a loaded model: LoRA, X-LoRA, AnyMoE."""


@hookspec
def tramontane_transports() -> Iterable[TransportSpec]:
    """MCP transports, found by the configuration class they serve."""


@hookspec
def tramontane_kernels() -> Iterable[KernelSpec]:
    """Faster implementations of core operators. The best usable one is bound when a model is
    loaded; the reference implementation is always there."""


@hookspec
def tramontane_executors() -> Iterable[ExecutorSpec]:
    """Ways to run a model's forwards: in this process, in others, on other machines."""


@hookspec
def tramontane_models() -> Iterable[ModelSpec]:
    """Models that travel inside a distribution and can be named as ``model_id``."""


@hookspec
def tramontane_tool_formats() -> Iterable[ToolFormatSpec]:
    """Ways of writing tool calls, chosen by what a model's chat template mentions."""


@hookspec
def tramontane_tool_sources(config: Mapping[str, Any]) -> Iterable[ToolSource]:
    """Tools for chat requests. ``config`` holds the runner's tool settings
    (``mcp_client_config`` and others); a source that finds nothing for it there returns nothing."""


@hookspec
def tramontane_commands(cli: Any) -> None:
    """Add subcommands to the Typer application ``cli``."""


@hookspec
def tramontane_model_loaded(info: Mapping[str, Any]) -> None:
    """Observe a model that has become ready: ``model_id``, ``kind``, ``seconds`` and what its
    pipeline's ``stats`` say (for text ``architecture``, ``weight_bytes``, ``cache_bytes`` …)."""


@hookspec
def tramontane_request_finished(request: Any, usage: Any) -> None:
    """Observe a request that has ended, with its true usage. Called off the engine's thread."""

"""The plug-in contract and its manager. Imports no torch."""

from tramontane.hooks.hookspecs import GROUP, hookimpl, hookspec
from tramontane.hooks.manager import PluginFailure, PluginInfo, PluginManager, plugin_manager
from tramontane.hooks.specs import (
    API_VERSION,
    AdapterSpec,
    ArchitectureSpec,
    CheckpointSpec,
    ExecutorSpec,
    KernelSpec,
    ModelKind,
    ModelSpec,
    PipelineSpec,
    QuantizerSpec,
    Spec,
    ToolFormatSpec,
    ToolSource,
    TransportSpec,
)

__all__ = [
    "API_VERSION",
    "GROUP",
    "AdapterSpec",
    "ArchitectureSpec",
    "CheckpointSpec",
    "ExecutorSpec",
    "KernelSpec",
    "ModelKind",
    "ModelSpec",
    "PipelineSpec",
    "PluginFailure",
    "PluginInfo",
    "PluginManager",
    "QuantizerSpec",
    "Spec",
    "ToolFormatSpec",
    "ToolSource",
    "TransportSpec",
    "hookimpl",
    "hookspec",
    "plugin_manager",
]

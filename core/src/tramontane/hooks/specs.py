"""What plug-ins declare: frozen records whose ``target`` is a ``"module:Name"`` string.

Nothing here imports torch, and holding a spec imports nothing of its plug-in: the target is
resolved, once, by ``PluginManager.resolve`` when somebody asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from attrs import field, frozen

API_VERSION = 1
"""Version of the plug-in contract. A spec that states another one is refused."""

ModelKind = Literal["text", "vision", "embedding", "diffusion", "speech"]


def _target(instance: object, attribute: Any, value: str) -> None:
    module, colon, name = value.partition(":")
    if not (module and colon and name):
        raise ValueError(f'target must read "module:Name", not {value!r}')


@frozen(kw_only=True)
class Spec:
    """Common part of every spec.

    Attributes:
        name: what users and other plug-ins call it; unique within its kind, case-insensitive.
        target: ``"module:Name"`` of the object that does the work.
        summary: one line for ``tramontane plugins`` and the documentation.
        api_version: the contract the plug-in was written for.
    """

    name: str
    target: str = field(validator=_target)
    summary: str = ""
    api_version: int = API_VERSION

    def claims(self) -> tuple[str, ...]:
        """Names that no other spec of this kind may claim (compared case-insensitively)."""
        return (self.name.lower(),)


@frozen(kw_only=True)
class ArchitectureSpec(Spec):
    """One model architecture. The target is an `tramontane.protocols.Architecture` class.

    Attributes:
        hf_names: entries of ``architectures`` in ``config.json`` that this class serves; for each
            kind of model, one architecture may serve a name.
        gguf_names: values of ``general.architecture`` that this class serves.
        kind: the kind of pipeline the model runs in.
    """

    hf_names: tuple[str, ...] = ()
    gguf_names: tuple[str, ...] = ()
    kind: ModelKind = "text"

    def claims(self) -> tuple[str, ...]:
        # Weights of one class may serve as a text model and as an embedding model.
        prefix = "" if self.kind == "text" else f"{self.kind}:"
        names = {self.name.lower(), *(f"{prefix}{n.lower()}" for n in self.hf_names)}
        return (*sorted(names), *(f"gguf:{n.lower()}" for n in self.gguf_names))


@frozen(kw_only=True)
class PipelineSpec(Spec):
    """A road from request to response. The target is a `tramontane.protocols.Pipeline` class."""

    kind: ModelKind


@frozen(kw_only=True)
class QuantizerSpec(Spec):
    """A weight format. The target is a `tramontane.protocols.Quantizer` class.

    Attributes:
        isq_aliases: strings of ``in_situ_quant`` that select it.
        hf_methods: values of ``quantization_config.quant_method`` whose checkpoints its
            ``read_checkpoint`` reads.
        options: ``"module:Class"`` of the frozen dataclass that holds its options, if any.
    """

    isq_aliases: tuple[str, ...] = ()
    hf_methods: tuple[str, ...] = ()
    options: str | None = None

    def claims(self) -> tuple[str, ...]:
        names = {self.name.lower(), *(a.lower() for a in self.isq_aliases)}
        return (*sorted(names), *(f"hf:{m.lower()}" for m in self.hf_methods))


@frozen(kw_only=True)
class CheckpointSpec(Spec):
    """A weight file format. The target is a `tramontane.protocols.CheckpointFormat` class.

    Attributes:
        suffixes: file name endings it reads, with the dot, lower case.
    """

    suffixes: tuple[str, ...] = ()

    def claims(self) -> tuple[str, ...]:
        return (self.name.lower(), *self.suffixes)


@frozen(kw_only=True)
class AdapterSpec(Spec):
    """A way to adapt a loaded model. The target is a `tramontane.protocols.Adapter` class."""


@frozen(kw_only=True)
class TransportSpec(Spec):
    """An MCP transport. The target is a `tramontane.protocols.Transport` class.

    Attributes:
        config: name of the source class it serves (``McpServerSourcePy.Http`` …).
    """

    config: str

    def claims(self) -> tuple[str, ...]:
        return tuple(sorted({self.name.lower(), self.config.lower()}))


@frozen(kw_only=True)
class KernelSpec(Spec):
    """A faster implementation of one operator, chosen once when a model is loaded.

    Attributes:
        op: operator name of `tramontane.kernels.dispatch`.
        device: torch device type it runs on.
        requires: CPU or GPU features that must be present, e.g. ``("avx512vnni",)``.
        priority: the highest usable one is bound; the reference has 0.
    """

    op: str
    device: str
    requires: tuple[str, ...] = ()
    priority: int = 10


@frozen(kw_only=True)
class ExecutorSpec(Spec):
    """A way to run forwards (here, in other processes, on other machines)."""


@frozen(kw_only=True)
class ToolFormatSpec(Spec):
    """A way of writing tool calls. The target is a `tramontane.text.tool_calls.events.ToolFormat`
    class.

    Attributes:
        markers: texts that a chat template of such a model mentions, all of them. Of several
            formats that fit, the one with most text in its markers is chosen.
        tokens: special tokens that calls are written with; they are not left out of the text.
        whole_answer: the format shapes every answer, also where no tools are offered.
    """

    markers: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    whole_answer: bool = False


@frozen(kw_only=True)
class ModelSpec:
    """A model that travels inside a plug-in and can be named as ``model_id``.

    Attributes:
        name: the ``model_id`` that selects it.
        package: import package that carries the files.
        path: folder of the model inside that package.
        default: whether it serves when the user names no model.
    """

    name: str
    package: str
    path: str
    default: bool = False
    summary: str = ""
    description: str = ""
    api_version: int = API_VERSION

    def claims(self) -> tuple[str, ...]:
        return (self.name.lower(),)


@frozen(kw_only=True)
class ToolSource:
    """Tools that a plug-in offers to chat requests.

    Attributes:
        name: shown in listings and errors.
        tools: OpenAI function schemas by registered tool name. May be a live view that changes
            from request to request, and may make its first reader wait.
        call: runs one tool: ``call(name, arguments) -> text``; raises when the tool fails.
        close: releases what the source holds; called when the runner closes.
        status: how what the source depends on is doing, by name.
    """

    name: str
    tools: Mapping[str, Mapping[str, Any]]
    call: Callable[[str, Mapping[str, Any]], str]
    close: Callable[[], None] = lambda: None
    status: Callable[[], Mapping[str, Mapping[str, Any]]] = dict
    api_version: int = API_VERSION

    def claims(self) -> tuple[str, ...]:
        return (self.name.lower(),)

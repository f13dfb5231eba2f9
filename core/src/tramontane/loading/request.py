"""What is to be loaded, and what whoever asked may see of it before its files are closed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import field, frozen
from torch import nn

from tramontane.hooks import PluginManager, plugin_manager
from tramontane.loading.plan import CacheRequest
from tramontane.loading.rules import Arrangement
from tramontane.loading.topology import Topology
from tramontane.loading.weights import Step
from tramontane.protocols import Checkpoint, InSituSettings
from tramontane.protocols.pipeline import Progress, Reserve, unlimited
from tramontane.text.tokenizer import Tokenizer


@frozen(kw_only=True)
class BoundModel:
    """A model with its weights in place, while the files they came from are still open.

    Attributes:
        model: the architecture; packed weights in their packed modules.
        arrangement: which stored tensors made which parameter.
        checkpoint: the files.
        config: ``config.json``, normalized.
        directory: holds configuration and tokenizer.
        tokenizer: ready to encode.
    """

    model: nn.Module
    arrangement: Arrangement
    checkpoint: Checkpoint
    config: Mapping[str, Any]
    directory: Path
    tokenizer: Tokenizer


@frozen(kw_only=True)
class LoadRequest:
    """What is to be loaded, and how.

    Attributes:
        model_id: travelling model, local directory or file, or hub id.
        files: names of the weight files in it (GGUF), or None to find them.
        format: name of the checkpoint format that reads them; None to go by their ending.
        format_options: what its ``open`` is told beside the files.
        tok_model_id: where tokenizer, chat template and generation settings come from, if not
            from ``model_id``.
        arch: name of the architecture; None for what the configuration says.
        tokenizer_json: file of the tokenizers library, in place of the model's tokenizer.
        dtype: a ``ModelDType`` or its name.
        token_source: see `tramontane.loading.source.resolve`.
        cache_path: cache of the hub, or None for the usual one.
        chat_template, jinja_explicit: see `tramontane.text.chat_template.find_chat_template`.
        cache: the KV cache that memory is planned for.
        in_situ: how weights are packed on their way in; None leaves them as the file has them.
        topology: types and devices of single layers; its types count only with ``in_situ``.
        device_layers: (accelerator, layers there) in the order of the layers; None to place them
            by memory.
        steps: applied to each module once its weights are in place.
        save: called with the model as it was put together, to write it to a file.
        reserve: asked for the memory before it is taken.
        on_progress: told about weights being loaded.
        plugins: where architectures and formats are looked up; None for the process's plug-ins.
    """

    model_id: str
    files: Sequence[str] | None = None
    format: str | None = None
    format_options: Mapping[str, Any] = field(factory=dict)
    tok_model_id: str | None = None
    arch: str | None = None
    tokenizer_json: str | Path | None = None
    dtype: str = "auto"
    token_source: str = "cache"
    cache_path: str | Path | None = None
    chat_template: str | None = None
    jinja_explicit: str | None = None
    cache: CacheRequest = field(factory=CacheRequest)
    in_situ: InSituSettings | None = None
    topology: Topology | None = None
    device_layers: Sequence[tuple[int, int]] | None = None
    steps: Sequence[Step] = ()
    save: Callable[[BoundModel], None] | None = None
    reserve: Reserve = unlimited
    on_progress: Progress | None = None
    plugins: PluginManager = field(factory=plugin_manager)

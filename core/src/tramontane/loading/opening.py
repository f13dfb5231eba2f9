"""From a request to opened files: weights, configuration, architecture, tokenizer.

Nothing here reads a weight; each function is one step of `tramontane.loading.loader`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import frozen

from tramontane.errors import ConfigError, ModelKindError, SourceError
from tramontane.hooks import ArchitectureSpec, ModelKind, PluginManager
from tramontane.loading.config import normalize, read_config
from tramontane.loading.request import LoadRequest
from tramontane.loading.source import ModelFiles, resolve
from tramontane.protocols import Checkpoint, EmbeddedTokenizer, QuantizedCheckpoints
from tramontane.text.chat_template import ChatTemplate, find_chat_template
from tramontane.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

VARIANTS: Mapping[ModelKind, str] = {
    "text": "Which.Plain",
    "vision": "Which.VisionPlain",
    "embedding": "Which.Embedding",
    "diffusion": "Which.DiffusionPlain",
    "speech": "Which.Speech",
}
"""Kind of model → how it is selected."""


@frozen(kw_only=True)
class OpenModel:
    """A model's files, open.

    Attributes:
        directory: of the weights and their configuration.
        side: holds tokenizer, chat template and generation settings.
        checkpoint: weights, under the names of the unquantized model.
        config: ``config.json``, normalized.
        tokenizer: what the weight file carries of one, or None.
    """

    directory: Path
    side: Path
    checkpoint: Checkpoint
    config: dict[str, Any]
    tokenizer: EmbeddedTokenizer | None


@contextmanager
def opened(request: LoadRequest, beside: Sequence[str] = ()) -> Iterator[OpenModel]:
    """The files of the model that ``request`` names; they are closed with the context.

    Args:
        beside: patterns of further files that the hub is asked for.

    Raises:
        SourceError: not found, not permitted or not reachable.
        MissingPluginError: nothing installed reads the files, or what is packed in them.
        ConfigError, CheckpointError: damaged, or a setting that is not covered.
    """
    files = find_weights(request, beside)
    side = files.directory
    if request.tok_model_id is not None:
        side = find_files(request, request.tok_model_id, weights=False).directory
    checkpoint = open_weights(request, files)
    try:
        data = config_data(files.directory, checkpoint)
        checkpoint = quantized_view(checkpoint, data, request.plugins)
        yield OpenModel(
            directory=files.directory,
            side=side,
            checkpoint=checkpoint,
            config=data,
            tokenizer=checkpoint.tokenizer(),
        )
    finally:
        checkpoint.close()


def open_checkpoint(files: Sequence[Path], plugins: PluginManager) -> Checkpoint:
    """Open weight files with the format that reads their ending.

    Raises:
        MissingPluginError: no installed format does.
        CheckpointError: a file is damaged.
    """
    spec = plugins.checkpoint_for(files[0].name)
    if spec is None:
        raise plugins.missing("checkpoint_formats", files[0].suffix.lstrip(".") or files[0].name)
    checkpoint: Checkpoint = plugins.resolve(spec)().open(files)
    return checkpoint


def find_weights(request: LoadRequest, beside: Sequence[str] = ()) -> ModelFiles:
    """The files of the model that ``request`` names. A format that knows its files by more than
    their names, as UQFF its shards, has a method ``find``.

    Raises:
        SourceError: not found, not permitted or not reachable.
    """
    plugins = request.plugins
    target = None
    if request.format is not None:
        target = plugins.resolve(plugins.get("checkpoint_formats", request.format))
    if target is None or not hasattr(target, "find"):
        return find_files(request, request.model_id, request.files, beside=beside)

    def fetch(patterns: Sequence[str]) -> Path:
        wanted = (*beside, *patterns)
        return find_files(request, request.model_id, weights=False, beside=wanted).directory

    return ModelFiles(fetch(()), tuple(target().find(request.files, fetch)))


def open_weights(request: LoadRequest, files: ModelFiles) -> Checkpoint:
    """Open what `find_weights` found.

    Raises:
        MissingPluginError: no installed format does.
        CheckpointError: a file is damaged.
    """
    plugins = request.plugins
    if request.format is None:
        return open_checkpoint(files.weights, plugins)
    target = plugins.resolve(plugins.get("checkpoint_formats", request.format))
    checkpoint: Checkpoint = target().open(files.weights, **request.format_options)
    return checkpoint


def config_data(directory: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    """The configuration: that of the weight file when it carries one, else ``config.json``.

    Raises:
        SourceError: there is none.
        ConfigError: it is damaged.
    """
    embedded = checkpoint.config()
    return read_config(directory) if embedded is None else normalize(embedded)


def find_architecture(
    data: Mapping[str, Any], arch: str | None, plugins: PluginManager, *, kind: ModelKind
) -> ArchitectureSpec:
    """The architecture the user named, or the first known one of ``architectures``.

    Raises:
        ConfigError: neither names one.
        MissingPluginError: nothing installed serves it; names what to install.
        ModelKindError: it is of another kind.
    """
    named = [arch] if arch else data.get("architectures") or []
    if not isinstance(named, list) or not all(isinstance(n, str) for n in named) or not named:
        known = ", ".join(sorted(spec.name for spec in plugins.specs("architectures")))
        raise ConfigError(
            f"the configuration names no architecture (architectures is {named!r}); give `arch`, "
            f"one of: {known or 'none installed'}"
        )
    found = (plugins.find_architecture(name, kind) for name in named)
    spec: ArchitectureSpec | None = next((s for s in found if s is not None), None)
    if spec is None:
        raise plugins.missing("architectures", str(named[0]))
    if spec.kind != kind:
        known = ", ".join(s.name for s in plugins.specs("architectures") if s.kind == kind)
        raise ModelKindError(
            f"{spec.name} is one of the {spec.kind} models, not of the {kind} models; choose "
            f"the Which variant of that kind ({VARIANTS[spec.kind]}). Installed {kind} "
            f"architectures: {known or 'none'}"
        )
    return spec


def quantized_view(
    checkpoint: Checkpoint, data: Mapping[str, Any], plugins: PluginManager
) -> Checkpoint:
    """The checkpoint as the quantizer of ``quantization_config`` reads it; itself without one.

    Raises:
        MissingPluginError: nothing installed reads that ``quant_method``.
        ConfigError, CheckpointError: settings or parts that the format does not cover.
    """
    settings = data.get("quantization_config") or data.get("quantization")
    if not settings:
        return checkpoint
    method = settings.get("quant_method") if isinstance(settings, Mapping) else None
    if method is None and isinstance(settings, Mapping) and {"bits", "group_size"} <= {*settings}:
        method = "mlx"  # whose configurations name no method
    if not isinstance(method, str):
        raise ConfigError(
            f"quantization_config names no quant_method ({settings!r}), so nothing says how its "
            f"weights are stored"
        )
    spec = plugins.find("quantizers", f"hf:{method}")
    if spec is None:
        raise plugins.missing("quantizers", method)
    reader: QuantizedCheckpoints = plugins.resolve(spec)()
    return reader.read_checkpoint(checkpoint, settings)


def find_files(
    request: LoadRequest,
    model_id: str,
    files: Sequence[str] | None = None,
    *,
    weights: bool = True,
    beside: Sequence[str] = (),
) -> ModelFiles:
    """`tramontane.loading.source.resolve` with the settings of a request."""
    return resolve(
        model_id,
        token_source=request.token_source,
        cache_path=request.cache_path,
        files=files,
        weights=weights,
        beside=beside,
        plugins=request.plugins,
    )


def find_tokenizer(
    request: LoadRequest,
    side: Path,
    embedded: EmbeddedTokenizer | None,
    vocab_size: int,
    *,
    ends: bool = False,
) -> Tokenizer:
    """The file the user named, else that of ``tok_model_id``, else the one inside the weight file,
    else the model directory's.

    Args:
        ends: texts are not continued, so the one inside the weight file may put its end after them.
    """
    chosen = request.tokenizer_json is not None or request.tok_model_id is not None
    if embedded is not None and not chosen:
        return Tokenizer(
            embedded.tokenizer,
            bos_token=embedded.bos_token,
            eos_token=embedded.eos_token,
            unk_token=embedded.unk_token,
            add_bos=embedded.add_bos,
            add_eos=ends and embedded.add_eos,
        )
    tokenizer = Tokenizer.from_files(side, request.tokenizer_json)
    if tokenizer.vocab_size > vocab_size:
        message = (
            f"the tokenizer of {request.tokenizer_json or request.tok_model_id or side} has "
            f"{tokenizer.vocab_size} tokens, the model {vocab_size}"
        )
        if chosen:
            raise SourceError(f"{message}; it belongs to another model")
        log.warning("%s; the last ones cannot be used", message)
    return tokenizer


def find_template(
    request: LoadRequest, model: OpenModel, tokenizer: Tokenizer
) -> ChatTemplate | None:
    """The chat template the user gave, else the model's; None where it has none.

    Raises:
        SourceError, ConfigError: it cannot be read.
    """
    return find_chat_template(
        model.side,
        chat_template=request.chat_template,
        jinja_explicit=request.jinja_explicit,
        embedded=model.tokenizer.chat_template if model.tokenizer else None,
        special_tokens=tokenizer.special_tokens,
    )

"""The road from a request for a model to the model, ready to run.

source → checkpoint format → config → architecture on the meta device → tokenizer and template →
memory plan → weights, one tensor at a time → kernels. What is cheap and may fail comes before what
is costly.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from attrs import evolve, field, frozen
from torch import nn

from tramontane.errors import ConfigError, ModelKindError, SourceError
from tramontane.hooks import ArchitectureSpec, ModelKind, PluginManager, plugin_manager
from tramontane.loading.config import normalize, read_config
from tramontane.loading.device import choose_device
from tramontane.loading.device_map import DeviceMap
from tramontane.loading.dtype import choose_dtype, survey
from tramontane.loading.in_situ import in_situ_quantizer, report_slow
from tramontane.loading.layers import LayerNames
from tramontane.loading.placement import Layout, check_types, device_of, elsewhere, place_layers
from tramontane.loading.plan import CacheRequest, MemoryPlan, plan_memory
from tramontane.loading.rules import Arrangement, arrange
from tramontane.loading.source import ModelFiles, resolve
from tramontane.loading.topology import Topology
from tramontane.loading.weights import Binder, Step, wanted_names, weight_bytes
from tramontane.nn import bind_kernels, install_transfers
from tramontane.protocols import (
    Checkpoint,
    EmbeddedTokenizer,
    InSituPlan,
    InSituSettings,
    QuantizedCheckpoints,
)
from tramontane.protocols.in_situ import Override
from tramontane.protocols.pipeline import Progress, Reserve, unlimited
from tramontane.text.chat_template import ChatTemplate, find_chat_template
from tramontane.text.generation_config import end_of_turn_ids, eos_ids, read_generation_config
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
class LoadedModel:
    """A model with its weights in place, and what the engine needs to know of it.

    Attributes:
        model: the architecture, kernels bound.
        config: its config object.
        architecture: the spec it was found by.
        tokenizer: see `tramontane.text.Tokenizer`.
        chat_template: None when the model has none.
        eos_token_ids: every token that ends a turn.
        generation_config: content of ``generation_config.json``; empty when there is none.
        dtype: of activations, and of weights that are not packed.
        device: where it runs; of a model on several devices, where a forward begins and ends.
        device_map: where each layer is.
        override: types that a topology pins, for quantizing anew; None where there are none.
        weight_bytes: memory of the weights, shared ones counted once.
        max_seq_len: longest sequence that model and cache allow.
        plan: the cache to allocate.
    """

    model: nn.Module
    config: Any
    architecture: ArchitectureSpec
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    eos_token_ids: frozenset[int]
    generation_config: Mapping[str, Any]
    dtype: torch.dtype
    device: torch.device
    device_map: DeviceMap
    override: Override | None
    weight_bytes: int
    max_seq_len: int
    plan: MemoryPlan


def load_text(request: LoadRequest) -> LoadedModel:
    """Bring up a text model.

    Raises:
        SourceError: files not found, not permitted or not reachable.
        MissingPluginError: nothing installed knows the architecture or the file format.
        ConfigError: a setting that the architecture does not cover.
        CheckpointError: weights that are damaged or do not fit.
        MemoryPlanError: not enough memory; says what would fit.
        ModelKindError: the model is no text model.
    """
    plugins = request.plugins
    device = choose_device()
    in_situ = None if request.in_situ is None else in_situ_quantizer(plugins)
    if in_situ is not None and request.in_situ is not None:
        in_situ.check(request.in_situ, device)
        if request.topology is not None:
            check_types(request.topology, in_situ, device)
    files = find_weights(request)
    side = files.directory
    if request.tok_model_id is not None:
        side = find_files(request, request.tok_model_id, weights=False).directory
    checkpoint = open_weights(request, files)
    try:
        data = config_data(files.directory, checkpoint)
        spec = find_architecture(data, request.arch, plugins, kind="text")
        checkpoint = quantized_view(checkpoint, data, plugins)
        architecture = plugins.resolve(spec)
        config = architecture.Config.from_dict(data)
        embedded = checkpoint.tokenizer()
        tokenizer = find_tokenizer(request, side, embedded, config.vocab_size)
        template = find_chat_template(
            side,
            chat_template=request.chat_template,
            jinja_explicit=request.jinja_explicit,
            embedded=embedded.chat_template if embedded else None,
            special_tokens=tokenizer.special_tokens,
        )
        generation_config = read_generation_config(side)
        draft = Draft.of(architecture, config, checkpoint)
        layout = Layout(
            model=draft.model,
            arrangement=draft.arrangement,
            specs=architecture.cache_specs(config),
            topology=request.topology,
        )
        layout.check()
        inventory = survey(checkpoint, draft.arrangement.stored)
        packing, override = None, layout.override()
        if in_situ is not None and request.in_situ is not None:
            settings = evolve(request.in_situ, override=override)
            packing = in_situ.plan(draft.model, draft.arrangement.aliases, settings, device)
            inventory = inventory.quantized(packing.elements, packing.packed_bytes)
        dtype = choose_dtype(request.dtype, inventory, device)
        left = request.reserve(inventory.bytes_as(dtype))
        device_map, parts = place_layers(
            layout,
            checkpoint,
            config=config,
            inventory=inventory,
            packing=packing,
            request=request.cache,
            device_layers=request.device_layers,
            dtype=dtype,
            device=device,
        )
        plan = plan_memory(
            inventory=inventory,
            specs=layout.specs,
            max_positions=config.max_position_embeddings,
            request=request.cache,
            dtype=dtype,
            device=device_map.main,
            left=left,
            parts=parts,
        )
        request.reserve(plan.weight_bytes + plan.cache_bytes)
        model = draft.bind(
            checkpoint,
            dtype=dtype,
            device=device_map.main,
            device_map=device_map,
            in_situ=packing,
            steps=request.steps,
            on_progress=request.on_progress,
        )
        if request.save is not None:
            bound = BoundModel(
                model=model,
                arrangement=draft.arrangement,
                checkpoint=checkpoint,
                config=data,
                directory=side,
                tokenizer=tokenizer,
            )
            request.save(bound)
    finally:
        checkpoint.close()
    extra_eos = eos_ids(data) | frozenset(embedded.eos_token_ids if embedded else ())
    return LoadedModel(
        model=model,
        config=config,
        architecture=spec,
        tokenizer=tokenizer,
        chat_template=template,
        eos_token_ids=end_of_turn_ids(tokenizer, generation_config, *extra_eos),
        generation_config=generation_config,
        dtype=dtype,
        device=device_map.main,
        device_map=device_map,
        override=override,
        weight_bytes=weight_bytes(model),
        max_seq_len=plan.max_seq_len,
        plan=plan,
    )


def build(
    architecture: type[Any],
    config: Any,
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype,
    device: torch.device,
    steps: Sequence[Step] = (),
    on_progress: Progress | None = None,
) -> nn.Module:
    """The architecture with the checkpoint's weights in it, kernels bound.

    Raises:
        CheckpointError: the weights do not fit.
    """
    draft = Draft.of(architecture, config, checkpoint)
    return draft.bind(checkpoint, dtype=dtype, device=device, steps=steps, on_progress=on_progress)


@frozen
class Draft:
    """A model without weights, and which tensors of a checkpoint will make them.

    Attributes:
        model: every parameter on the meta device.
        arrangement: how each comes out of the checkpoint.
    """

    model: nn.Module
    arrangement: Arrangement

    @classmethod
    def of(cls, architecture: type[Any], config: Any, checkpoint: Checkpoint) -> Self:
        """Lay out the model and match its names with the checkpoint's.

        Raises:
            CheckpointError: they do not fit.
        """
        with torch.device("meta"):
            model: nn.Module = architecture(config)
        rules = getattr(architecture, "WEIGHTS", ())
        return cls(model, arrange(checkpoint.names(), wanted_names(model), rules, config))

    def bind(
        self,
        checkpoint: Checkpoint,
        *,
        dtype: torch.dtype,
        device: torch.device,
        device_map: DeviceMap | None = None,
        in_situ: InSituPlan | None = None,
        steps: Sequence[Step] = (),
        on_progress: Progress | None = None,
    ) -> nn.Module:
        """The model with its weights in place, kernels bound.

        Args:
            device_map: where its layers go; None for ``device``.

        Raises:
            CheckpointError: shapes or dtypes do not fit.
        """
        device_map = device_map or DeviceMap.single(device, 0)
        binder = Binder(
            self.model,
            checkpoint,
            self.arrangement,
            dtype=dtype,
            device=device,
            device_of=device_of(self.model, device_map) if device_map.is_split else None,
            in_situ=in_situ,
            steps=steps,
            on_progress=on_progress,
        )
        model = binder.run().eval()
        bind_kernels(model, device, dtype, elsewhere(model, device_map))
        if device_map.is_split:
            layers = LayerNames.of(model, len(device_map.layers)).modules(model)
            install_transfers(list(layers), device_map.layers, device_map.main)
        if in_situ is not None:
            report_slow(model, device)
        return model


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

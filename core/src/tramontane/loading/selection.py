"""What a ``Which`` variant and a runner's settings ask of the loader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import evolve

from tramontane.errors import UnsupportedError, ValidationError
from tramontane.loading.dtype import cache_dtype
from tramontane.loading.live_weights import in_situ_settings
from tramontane.loading.plan import CacheRequest
from tramontane.loading.request import BoundModel, LoadRequest
from tramontane.loading.topology import Topology
from tramontane.protocols.pipeline import PipelineOptions


def load_request(which: Any, options: PipelineOptions) -> LoadRequest:
    """Which files, how they are quantized and placed, where they are written to.

    Raises:
        ValidationError: two settings contradict each other.
        UnsupportedError: the model is of a kind that is not written.
        MissingPluginError: no installed format writes what is to be written.
    """
    topology = None if which.topology is None else Topology.read(which.topology)
    return LoadRequest(
        model_id=which.canonical_id,
        **weight_files(which),
        save=saving(which, options, topology),
        arch=getattr(which, "arch", None),
        tokenizer_json=getattr(which, "tokenizer_json", None),
        dtype=which.dtype,
        token_source=options.token_source,
        cache_path=getattr(which, "hf_cache_path", None),
        in_situ=in_situ_settings(which, options, topology),
        topology=topology,
        device_layers=options.device_layers,
        reserve=options.reserve,
        plugins=options.plugins,
        on_progress=options.on_progress,
    )


def text_request(which: Any, options: PipelineOptions) -> LoadRequest:
    """`load_request` of a model that chats: with its template, and a KV cache."""
    return evolve(
        load_request(which, options),
        tok_model_id=getattr(which, "tok_model_id", None),
        chat_template=options.chat_template,
        jinja_explicit=options.jinja_explicit,
        cache=cache_request(which, options),
    )


def cache_request(which: Any, options: PipelineOptions) -> CacheRequest:
    """The KV cache that memory is planned for."""
    planned = {}
    if which.auto_map_params is not None:
        planned["planned_seq_len"] = which.auto_map_params.max_seq_len
        planned["planned_batch_size"] = which.auto_map_params.max_batch_size
    return CacheRequest(
        context_len=options.context_len,
        cache_fraction=options.cache_fraction,
        cache_bytes=options.cache_bytes,
        block_size=options.block_size,
        dtype=cache_dtype(options.cache_type),
        max_seqs=options.max_seqs,
        **planned,
    )


def weight_files(which: Any) -> dict[str, Any]:
    """``files``, ``format`` and ``format_options`` of a `LoadRequest`.

    Raises:
        ValidationError: UQFF files together with what only concerns quantizing.
    """
    if which.uqff_files:
        for name in ("write_uqff", "imatrix", "calibration_file"):
            if getattr(which, name, None):
                raise ValidationError(
                    f"from_uqff loads weights that are quantized already, so {name} has nothing "
                    f"to do: give one of them"
                )
        return {"files": which.uqff_files, "format": "uqff"}
    if "GGML" in type(which).__name__:
        gqa = 1 if which.gqa is None else which.gqa
        return {"files": which.filenames, "format": "ggml", "format_options": {"gqa": gqa}}
    return {"files": which.filenames or None}


def saving(
    which: Any, options: PipelineOptions, topology: Topology | None = None
) -> Callable[[BoundModel], None] | None:
    """What writes the model as ``write_uqff`` says; None where it says nothing.

    Raises:
        ValidationError: nothing says what to quantize to, or the name does not end in ``.uqff``.
        UnsupportedError: the model is of a kind that is not written.
        MissingPluginError: no installed format writes such files.
    """
    path = getattr(which, "write_uqff", None)
    if path is None:
        return None
    if which.kind not in ("text", "embedding") or "Lora" in type(which).__name__:
        raise UnsupportedError(
            f"UQFF is written of text and embedding models without adapters, not of "
            f"Which.{type(which).__name__}"
        )
    type_name = options.in_situ_quant
    if type_name is None:
        if topology is None or not topology.pins_types:
            raise ValidationError(
                "write_uqff writes what in-situ quantization makes: give in_situ_quant too, e.g. "
                "'Q4K', or a topology with types"
            )
        type_name = Path(path).stem  # of several types, none of which is that of the whole
    target = options.plugins.resolve(options.plugins.get("checkpoint_formats", "uqff"))()
    target.check_output(Path(path))

    def save(bound: BoundModel) -> None:
        target.save(bound, Path(path), type_name)

    return save

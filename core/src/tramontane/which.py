"""`Which`: the model to load. Fields, their order and defaults are those of the mistralrs SDK.

As data, a selector is ``{"Plain": {...}}``, or its fields and ``kind``, as in mistral.rs's TOML
files (`tramontane.selector_file`); `Which.from_dict` reads both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from attrs import field, frozen

from tramontane.api.config import LoraAdapter, TextAutoMapParams, VisionAutoMapParams
from tramontane.api.convert import (
    nearest,
    register,
    structure,
    structure_fields,
    unstructure_fields,
)
from tramontane.api.enums import (
    Architecture,
    DiffusionArchitecture,
    EmbeddingArchitecture,
    IsqOrganization,
    ModelDType,
    SpeechArchitecture,
    VisionArchitecture,
)
from tramontane.api.selector import (
    Selector,
    diffusion_fields,
    embedding_fields,
    speech_fields,
    split_names,
    text_fields,
    vision_fields,
)
from tramontane.errors import ValidationError


class Which:
    """A namespace of selectors: ``Which.Plain(model_id="...")``.

    A ``*_model_id`` is a hub repository, a local directory, or a model that a plug-in brings.
    Fields, wherever they occur:

    Attributes:
        arch: architecture, a member of the enum or any registered name; None to go by the
            model's ``config.json``.
        tokenizer_json: a ``tokenizer.json`` in place of the model's own.
        tok_model_id: where tokenizer and chat template come from; None for the weight file's own.
        quantized_filename: the weight file, or the list of its parts.
        topology: a file with settings for single layers.
        organization: what in-situ quantization touches; see `IsqOrganization`.
        from_uqff: UQFF files to load from, several separated by semicolons or as a list.
        write_uqff: where to write the model as UQFF.
        dtype: what the model computes in; of quantized weights only the activations.
        auto_map_params: what automatic device mapping makes room for; None for its defaults.
        calibration_file: text to collect activation statistics with, for quantizing.
        imatrix: file of such statistics, in place of ``calibration_file``.
        hf_cache_path: the hub cache; None for the usual place.
        xlora_model_id, order: X-LoRA's repository, and its ordering file.
        tgt_non_granular_index: token from which X-LoRA keeps its scalings; None to renew them at
            every token.
        adapter_model_id: LoRA repository, several separated by semicolons or as a list.
        adapters_model_id, order: the same for GGUF and GGML, with their ordering file.
        adapters: LoRA adapters that requests choose among by alias.
        max_adapters, max_rank, max_bytes: limits of those, 16, 256 and 8 GiB.
        gqa: query heads that share a key/value head, which GGML files do not tell; None for 1.
        max_edge: pixels of the longer edge that images are scaled down to; None for no limit.
        matformer_config_path, matformer_slice_name: file of slices, and the slice of a model
            with nested sub-models to load.
        dac_model_id: repository of the audio codec; None for the model's usual one.

    Raises:
        ValidationError: a value is wrong; the message says the field and what it may be.
    """

    @frozen(field_transformer=text_fields)
    class Plain(Selector):
        """A text model in safetensors or PyTorch files."""

        model_id: str
        arch: Architecture | str | None = None
        tokenizer_json: str | None = None
        topology: str | None = None
        organization: IsqOrganization | str | None = None
        from_uqff: str | list[str] | None = None
        write_uqff: str | None = None
        dtype: ModelDType | str = ModelDType.Auto
        auto_map_params: TextAutoMapParams | None = None
        calibration_file: str | None = None
        imatrix: str | None = None
        hf_cache_path: str | None = None
        matformer_config_path: str | None = field(default=None, kw_only=True)
        matformer_slice_name: str | None = field(default=None, kw_only=True)

        def __attrs_post_init__(self) -> None:
            _check_statistics(self)

    @frozen(field_transformer=text_fields)
    class XLora(Selector):
        """`Plain` with X-LoRA; ``model_id`` None for the base model that its files name."""

        xlora_model_id: str
        order: str
        arch: Architecture | str | None = None
        model_id: str | None = None
        tokenizer_json: str | None = None
        tgt_non_granular_index: int | None = None
        topology: str | None = None
        from_uqff: str | list[str] | None = None
        write_uqff: str | None = None
        dtype: ModelDType | str = ModelDType.Auto
        auto_map_params: TextAutoMapParams | None = None
        hf_cache_path: str | None = None

    @frozen(field_transformer=text_fields)
    class Lora(Selector):
        """`Plain` with LoRA: merged for good (``adapter_model_id``), or chosen by each request
        (``adapters``)."""

        adapter_model_id: str | list[str] | None = None
        arch: Architecture | str | None = None
        model_id: str | None = None
        tokenizer_json: str | None = None
        topology: str | None = None
        from_uqff: str | list[str] | None = None
        write_uqff: str | None = None
        dtype: ModelDType | str = ModelDType.Auto
        auto_map_params: TextAutoMapParams | None = None
        hf_cache_path: str | None = None
        adapters: list[LoraAdapter] | None = field(default=None, kw_only=True)
        max_adapters: int = field(default=16, kw_only=True)
        max_rank: int = field(default=256, kw_only=True)
        max_bytes: int = field(default=8 * 2**30, kw_only=True)

        def __attrs_post_init__(self) -> None:
            if (self.adapter_model_id is None) == (self.adapters is None):
                raise ValidationError(
                    "Which.Lora takes adapter_model_id (merged while loading) or adapters "
                    "(chosen by each request): give one of them"
                )

        @property
        def adapter_model_ids(self) -> list[str]:
            """Adapters to merge, in order."""
            return split_names(self.adapter_model_id)

    @frozen(field_transformer=text_fields)
    class GGUF(Selector):
        """A text model in GGUF files."""

        quantized_model_id: str
        quantized_filename: str | list[str]
        tok_model_id: str | None = None
        topology: str | None = None
        dtype: ModelDType | str = ModelDType.Auto
        auto_map_params: TextAutoMapParams | None = None
        tokenizer_json: str | None = field(default=None, kw_only=True)
        hf_cache_path: str | None = field(default=None, kw_only=True)

    @frozen(field_transformer=text_fields)
    class XLoraGGUF(Selector):
        """`GGUF` with X-LoRA."""

        quantized_model_id: str
        quantized_filename: str | list[str]
        xlora_model_id: str
        order: str
        tok_model_id: str | None = None
        tgt_non_granular_index: int | None = None
        topology: str | None = None
        dtype: ModelDType | str = ModelDType.Auto
        auto_map_params: TextAutoMapParams | None = None

    @frozen(field_transformer=text_fields)
    class LoraGGUF(Selector):
        """`GGUF` with LoRA."""

        quantized_model_id: str
        quantized_filename: str | list[str]
        adapters_model_id: str
        order: str
        tok_model_id: str | None = None
        topology: str | None = None
        dtype: ModelDType | str = ModelDType.Auto
        auto_map_params: TextAutoMapParams | None = None

    @frozen(field_transformer=text_fields)
    class GGML(Selector):
        """A Llama-family model in a GGML file."""

        quantized_model_id: str
        quantized_filename: str
        tok_model_id: str | None = None
        tokenizer_json: str | None = None
        gqa: int | None = None
        topology: str | None = None
        dtype: ModelDType | str = ModelDType.Auto
        auto_map_params: TextAutoMapParams | None = None

    @frozen(field_transformer=text_fields)
    class XLoraGGML(Selector):
        """`GGML` with X-LoRA."""

        quantized_model_id: str
        quantized_filename: str
        xlora_model_id: str
        order: str
        tok_model_id: str | None = None
        tgt_non_granular_index: int | None = None
        tokenizer_json: str | None = None
        gqa: int | None = None
        topology: str | None = None
        dtype: ModelDType | str = ModelDType.Auto
        auto_map_params: TextAutoMapParams | None = None

    @frozen(field_transformer=text_fields)
    class LoraGGML(Selector):
        """`GGML` with LoRA."""

        quantized_model_id: str
        quantized_filename: str
        adapters_model_id: str
        order: str
        tok_model_id: str | None = None
        tokenizer_json: str | None = None
        topology: str | None = None
        dtype: ModelDType | str = ModelDType.Auto
        auto_map_params: TextAutoMapParams | None = None
        gqa: int | None = field(default=None, kw_only=True)

    @frozen(field_transformer=embedding_fields)
    class Embedding(Selector):
        """A model that turns texts into vectors."""

        kind: ClassVar[str] = "embedding"
        model_id: str
        arch: EmbeddingArchitecture | str | None = None
        tokenizer_json: str | None = None
        topology: str | None = None
        from_uqff: str | list[str] | None = None
        write_uqff: str | None = None
        dtype: ModelDType | str = ModelDType.Auto
        hf_cache_path: str | None = None

    @frozen(field_transformer=vision_fields)
    class VisionPlain(Selector):
        """A model that reads images beside text."""

        kind: ClassVar[str] = "vision"
        model_id: str
        arch: VisionArchitecture | str | None = None
        tokenizer_json: str | None = None
        topology: str | None = None
        from_uqff: str | list[str] | None = None
        write_uqff: str | None = None
        dtype: ModelDType | str = ModelDType.Auto
        max_edge: int | None = None
        auto_map_params: VisionAutoMapParams | None = None
        calibration_file: str | None = None
        imatrix: str | None = None
        hf_cache_path: str | None = None
        matformer_config_path: str | None = field(default=None, kw_only=True)
        matformer_slice_name: str | None = field(default=None, kw_only=True)

        def __attrs_post_init__(self) -> None:
            _check_statistics(self)

    MultimodalPlain = VisionPlain

    @frozen(field_transformer=diffusion_fields)
    class DiffusionPlain(Selector):
        """A model that draws."""

        kind: ClassVar[str] = "diffusion"
        model_id: str
        arch: DiffusionArchitecture | str
        dtype: ModelDType | str = ModelDType.Auto

    @frozen(field_transformer=speech_fields)
    class Speech(Selector):
        """A model that speaks."""

        kind: ClassVar[str] = "speech"
        model_id: str
        arch: SpeechArchitecture | str
        dac_model_id: str | None = None
        dtype: ModelDType | str = ModelDType.Auto

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Selector:
        """A selector from ``{"Plain": {...}}`` or ``{"kind": "plain", ...}``.

        Raises:
            ValidationError: no such variant, or a field is unknown, missing or wrong.
        """
        return structure(data, Selector)


def _check_statistics(which: Which.Plain | Which.VisionPlain) -> None:
    if which.calibration_file is not None and which.imatrix is not None:
        raise ValidationError(
            "calibration_file and imatrix both supply activation statistics: give one of them"
        )


VARIANTS: dict[str, type[Selector]] = {
    name: value
    for name, value in vars(Which).items()
    if isinstance(value, type) and issubclass(value, Selector)
}
"""Variant name → class; `Which.MultimodalPlain` is `Which.VisionPlain`."""


def _variant(name: object) -> type[Selector]:
    wanted = str(name).lower().replace("_", "").replace("-", "")
    for known, cls in VARIANTS.items():
        if known.lower() == wanted:
            return cls
    raise ValidationError(f"Which has no variant {name!r}{nearest(str(name), VARIANTS)}")


def _load(data: Any, wanted: type[Selector]) -> Selector:
    if isinstance(data, Mapping) and len(data) == 1:
        ((name, value),) = data.items()
        if isinstance(value, Mapping):
            return structure_fields(value, _variant(name))
    if isinstance(data, Mapping) and "kind" in data:
        return _load_table(dict(data))
    if wanted is not Selector:
        return structure_fields(data, wanted)
    raise ValidationError(
        'a selector must read {"Plain": {"model_id": ...}} or {"kind": "plain", "model_id": ...}, '
        f"not {data!r}"
    )


def _load_table(data: dict[str, Any]) -> Selector:
    """A ``[model]`` table: automatic mapping and LoRA limits are spelled otherwise there."""
    cls = _variant(data.pop("kind"))
    room = {
        name: data.pop(name)
        for name in ("max_seq_len", "max_batch_size", "max_num_images", "max_image_length")
        if name in data
    }
    if room:
        data["auto_map_params"] = room
    if cls is Which.Lora:
        data.update(data.pop("runtime_config", {}))
        if "adapter_model_ids" in data:
            data["adapter_model_id"] = data.pop("adapter_model_ids")
    return structure_fields(data, cls)


def _dump(which: Selector) -> dict[str, Any]:
    return {type(which).__name__: unstructure_fields(which)}


register([Selector, *dict.fromkeys(VARIANTS.values())], _load, _dump)

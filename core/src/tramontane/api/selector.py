"""Base of the `tramontane.Which` variants, and what each of their fields accepts."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

from attrs import Attribute, frozen

from tramontane.api import validators as check
from tramontane.api.config import LoraAdapter, TextAutoMapParams, VisionAutoMapParams
from tramontane.api.convert import structure
from tramontane.api.enums import (
    Architecture,
    DiffusionArchitecture,
    EmbeddingArchitecture,
    IsqOrganization,
    ModelDType,
    SpeechArchitecture,
    VisionArchitecture,
)
from tramontane.errors import ValidationError


def _dtype(value: Any) -> Any:
    return check.member(ModelDType, ModelDType.Auto if value is None else value)


def _arch(value: Any) -> Any:
    return check.open_member(Architecture, value)


def _vision_arch(value: Any) -> Any:
    return check.open_member(VisionArchitecture, value)


def _embedding_arch(value: Any) -> Any:
    return check.open_member(EmbeddingArchitecture, value)


def _diffusion_arch(value: Any) -> Any:
    if isinstance(value, SpeechArchitecture):
        raise ValidationError(f"arch {value.value!r} speaks: load it with Which.Speech")
    return check.open_member(DiffusionArchitecture, value)


def _speech_arch(value: Any) -> Any:
    if isinstance(value, DiffusionArchitecture):
        raise ValidationError(f"arch {value.value!r} draws: load it with Which.DiffusionPlain")
    return check.open_member(SpeechArchitecture, value)


def _organization(value: Any) -> Any:
    return check.member(IsqOrganization, value)


def _text_map(value: Any) -> Any:
    """``(None,)`` is what the SDK's documentation prints for the default."""
    return None if value in (None, (None,)) else structure(value, TextAutoMapParams)


def _vision_map(value: Any) -> Any:
    if isinstance(value, TextAutoMapParams):
        return VisionAutoMapParams(value.max_seq_len, value.max_batch_size)
    return None if value in (None, (None,)) else structure(value, VisionAutoMapParams)


def _adapters(value: Any) -> Any:
    if value is None:
        return None
    if not isinstance(value, (list, tuple)):
        raise ValidationError(f"adapters must be a list of LoraAdapter, not {value!r}")
    return [structure(adapter, LoraAdapter) for adapter in value]


def _check_names(instance: object, attribute: Any, value: Any) -> None:
    """One name or a list of them."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or not all(isinstance(n, str) and n for n in names):
        raise ValidationError(f"{attribute.name} must be a name or a list of names, not {value!r}")


def _check_names_or_none(instance: object, attribute: Any, value: Any) -> None:
    if value is not None:
        _check_names(instance, attribute, value)


RULES: dict[str, tuple[Any, Any]] = {
    "arch": (_arch, None),
    "dtype": (_dtype, None),
    "auto_map_params": (_text_map, None),
    "organization": (_organization, None),
    "adapters": (_adapters, None),
    "quantized_filename": (check.as_paths, _check_names),
    "from_uqff": (check.as_paths, _check_names_or_none),
    "adapter_model_id": (check.as_paths, _check_names_or_none),
    "tgt_non_granular_index": (None, check.number(ge=0, integer=True)),
    "gqa": (None, check.number(ge=1, integer=True)),
    "max_edge": (None, check.number(ge=1, integer=True)),
    "max_adapters": (None, check.number(ge=1, integer=True, optional=False)),
    "max_rank": (None, check.number(ge=1, integer=True, optional=False)),
    "max_bytes": (None, check.number(ge=1, integer=True, optional=False)),
}
"""Field → its converter and validator. Any other field is a name or a path."""


def text_fields(
    cls: type[Any], attributes: list[Attribute[Any]], **rules: tuple[Any, Any]
) -> list[Attribute[Any]]:
    """Give each field of a variant its converter and validator."""

    def with_rule(attribute: Attribute[Any]) -> Attribute[Any]:
        name = (check.as_path, check.text(optional=attribute.default is None, filled=True))
        converter, validator = rules.get(attribute.name) or RULES.get(attribute.name) or name
        return attribute.evolve(converter=converter, validator=validator)

    return [with_rule(attribute) for attribute in attributes]


embedding_fields = partial(text_fields, arch=(_embedding_arch, None))
vision_fields = partial(text_fields, arch=(_vision_arch, None), auto_map_params=(_vision_map, None))
diffusion_fields = partial(text_fields, arch=(_diffusion_arch, None))
speech_fields = partial(text_fields, arch=(_speech_arch, None))


def split_names(value: str | list[str] | None, delimiter: str = ";") -> list[str]:
    """The names in ``value``, which is a list or one string with delimiters."""
    parts = value.split(delimiter) if isinstance(value, str) else (value or [])
    return [part.strip() for part in parts if part.strip()]


@frozen
class Selector:
    """Base of `Which`'s variants.

    Attributes:
        kind: kind of pipeline that serves the model.
    """

    kind: ClassVar[str] = "text"

    @property
    def canonical_id(self) -> str:
        """What requests may call the model: the repository or directory of its weights."""
        for name in ("quantized_model_id", "model_id", "xlora_model_id"):
            found = getattr(self, name, None)
            if found:
                return str(found)
        return ";".join(split_names(getattr(self, "adapter_model_id", None)))

    @property
    def filenames(self) -> list[str]:
        """GGUF or GGML files, in order; empty for other models."""
        return split_names(getattr(self, "quantized_filename", None))

    @property
    def uqff_files(self) -> list[str]:
        """UQFF files to load from, in order; a string separates them by semicolons."""
        return split_names(getattr(self, "from_uqff", None))

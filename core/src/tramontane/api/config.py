"""Configuration objects that a `Runner`, a `Which` variant or a request takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypedDict

from attrs import field, frozen

from tramontane.api import validators as check
from tramontane.api.convert import (
    check_keys,
    nearest,
    register,
    structure,
    structure_fields,
    unstructure_fields,
)
from tramontane.api.enums import SearchContextSize
from tramontane.errors import ValidationError

COUNT = check.number(ge=1, integer=True, optional=False)


@frozen
class TextAutoMapParams:
    """What automatic device mapping makes room for; no hard limits.

    Attributes:
        max_seq_len: tokens of a sequence.
        max_batch_size: sequences that run together.
    """

    max_seq_len: int = field(default=4096, validator=COUNT)
    max_batch_size: int = field(default=1, validator=COUNT)


@frozen
class VisionAutoMapParams:
    """`TextAutoMapParams` for models that see.

    Attributes:
        max_num_images: images of a request.
        max_image_length: pixels of an image's longer edge.
    """

    max_seq_len: int = field(default=4096, validator=COUNT)
    max_batch_size: int = field(default=1, validator=COUNT)
    max_num_images: int = field(default=1, validator=COUNT)
    max_image_length: int = field(default=1024, validator=COUNT)


MultimodalAutoMapParams = VisionAutoMapParams


def _stripped(value: Any) -> Any:
    return value.strip() if isinstance(value, str) else value


@frozen
class LoraAdapter:
    """A LoRA adapter under a name of its own.

    Attributes:
        alias: what requests call it; 1 to 256 bytes, surrounding blanks removed.
        source: repository or directory.
        revision: of the repository; None for its main branch.
    """

    alias: str = field(converter=_stripped)
    source: str = field(converter=check.as_path, validator=check.text(optional=False, filled=True))
    revision: str | None = field(default=None, validator=check.text(filled=True))

    @alias.validator
    def _check_alias(self, attribute: Any, value: Any) -> None:
        check.text(optional=False, filled=True)(self, attribute, value)
        if len(value.encode()) > 256:
            raise ValidationError(f"alias must have at most 256 bytes, not {len(value.encode())}")


@frozen
class ExpertType:
    """Base of `AnyMoeExpertType`'s variants."""


class AnyMoeExpertType:
    """What the experts of an AnyMoE model are made from.

    As data: ``"fine_tuned"`` or ``{"lora_adapter": {"rank", "alpha", "target_modules"}}``.
    """

    @frozen
    class FineTuned(ExpertType):
        """Fine-tuned copies of the base model; their MLPs are the experts."""

    @frozen
    class LoraAdapter(ExpertType):
        """LoRA adapters; the base MLP with each of them added is an expert.

        Attributes:
            rank: of every adapter.
            alpha: scale is ``alpha / rank``.
            target_modules: MLP linears that are adapted: gate_proj, up_proj, down_proj.
        """

        rank: int = field(validator=COUNT)
        alpha: float = field(validator=check.number(optional=False))
        target_modules: list[str] = field(
            converter=check.as_list, validator=check.texts(optional=False)
        )


_EXPERT_TYPES: dict[str, type[ExpertType]] = {
    "fine_tuned": AnyMoeExpertType.FineTuned,
    "lora_adapter": AnyMoeExpertType.LoraAdapter,
}


def _load_expert_type(data: Any, wanted: type[Any]) -> ExpertType:
    if isinstance(data, str):
        data = {data: {}}
    if not isinstance(data, Mapping) or len(data) != 1:
        raise ValidationError(
            'expert_type must be "fine_tuned" or {"lora_adapter": {"rank": ..., "alpha": ..., '
            f'"target_modules": ...}}}}, not {data!r}'
        )
    ((name, fields),) = data.items()
    if name not in _EXPERT_TYPES:
        raise ValidationError(f"expert_type: no {name!r}{nearest(str(name), _EXPERT_TYPES)}")
    return structure_fields(fields, _EXPERT_TYPES[name])


def _dump_expert_type(expert: ExpertType) -> Any:
    if isinstance(expert, AnyMoeExpertType.FineTuned):
        return "fine_tuned"
    return {"lora_adapter": unstructure_fields(expert)}


register([ExpertType, *_EXPERT_TYPES.values()], _load_expert_type, _dump_expert_type)


def _expert_type(value: Any) -> ExpertType:
    return structure(value, ExpertType)


@frozen
class AnyMoeConfig:
    """Turn a dense model and variants of it into a mixture of experts.

    Attributes:
        hidden_size: of the base model.
        dataset_json: file of ``{"rows": [{"prompt", "expert", "image_urls"?}]}`` to train the
            gates with; expert 0 is the base model's own MLP, i is ``model_ids[i - 1]``'s.
        prefix: where the layers are, ``"model.layers"``.
        mlp: what the MLP of a layer is called, ``"mlp"``.
        model_ids: repositories or directories of the experts, all of one kind.
        expert_type: that kind.
        layers: indices of the layers to turn; empty for all.
        lr: learning rate of the gates.
        epochs: passes over the dataset.
        batch_size: rows of a training step.
        gate_model_id: where the trained gates are saved to, or loaded from when ``training`` is
            False.
        training: False loads gates from ``gate_model_id`` instead of training them.
        loss_csv_path: file for the training losses; must end in ``.csv``.
    """

    hidden_size: int = field(validator=COUNT)
    dataset_json: str = field(
        converter=check.as_path, validator=check.text(optional=False, filled=True)
    )
    prefix: str = field(validator=check.text(optional=False))
    mlp: str = field(validator=check.text(optional=False, filled=True))
    model_ids: list[str] = field(converter=check.as_paths, validator=check.texts(optional=False))
    expert_type: ExpertType = field(converter=_expert_type)
    layers: list[int] = field(factory=list, converter=check.as_list)
    lr: float = field(default=1e-3, validator=check.number(gt=0, optional=False))
    epochs: int = field(default=100, validator=COUNT)
    batch_size: int = field(default=4, validator=COUNT)
    gate_model_id: str | None = field(
        default=None, converter=check.as_path, validator=check.text(filled=True)
    )
    training: bool = field(default=True, validator=check.flag())
    loss_csv_path: str | None = field(
        default=None, converter=check.as_path, validator=check.text(filled=True)
    )

    @layers.validator
    def _check_layers(self, attribute: Any, value: Any) -> None:
        if not isinstance(value, list) or not all(type(n) is int and n >= 0 for n in value):
            raise ValidationError(f"layers must be a list of layer indices, not {value!r}")

    @loss_csv_path.validator
    def _check_loss_csv_path(self, attribute: Any, value: Any) -> None:
        if value is not None and not value.endswith(".csv"):
            raise ValidationError(f"loss_csv_path must end in .csv, not {value!r}")


@frozen
class ApproximateUserLocation:
    """Where the user is, for web search."""

    city: str = field(validator=check.text(optional=False))
    country: str = field(validator=check.text(optional=False))
    region: str = field(validator=check.text(optional=False))
    timezone: str = field(validator=check.text(optional=False))


@frozen
class WebSearchUserLocation:
    """The user's location; as data ``{"type": "approximate", "approximate": {...}}``."""

    location: ApproximateUserLocation

    @classmethod
    def approximate(cls, approximate: ApproximateUserLocation) -> WebSearchUserLocation:
        return cls(approximate)


def _load_location(data: Any, wanted: type[Any]) -> WebSearchUserLocation:
    check_keys(data, {"type": True, "approximate": True}, "user_location")
    if data["type"] != "approximate":
        raise ValidationError(f'user_location: type is "approximate", not {data["type"]!r}')
    return WebSearchUserLocation(structure(data["approximate"], ApproximateUserLocation))


def _dump_location(location: WebSearchUserLocation) -> dict[str, Any]:
    return {"type": "approximate", "approximate": unstructure_fields(location.location)}


register([WebSearchUserLocation], _load_location, _dump_location)


def _context_size(value: Any) -> Any:
    return check.member(SearchContextSize, value)


@frozen
class WebSearchOptions:
    """How a request may search the web.

    Attributes:
        search_context_size: room for results in the prompt; medium when left out.
        user_location: where the user is.
        search_description, extract_description: told to the model in place of the built-in
            descriptions of the two tools.
    """

    search_context_size: SearchContextSize | None = field(default=None, converter=_context_size)
    user_location: WebSearchUserLocation | None = None
    search_description: str | None = field(default=None, validator=check.text())
    extract_description: str | None = field(default=None, validator=check.text())


class SearchResult(TypedDict):
    """What a search callback returns a list of, most relevant first."""

    title: str
    description: str
    url: str
    content: str


SearchCallback = Callable[[str], list[SearchResult]]
"""``callback(query)``, in place of the built-in web search."""

ToolCallback = Callable[[str, dict[str, Any]], str]
"""``callback(tool name, arguments)``; what it returns is told to the model."""

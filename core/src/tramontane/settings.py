"""Everything a `Runner` can be told besides which model: checks, and what becomes of it.

Names and defaults are those of the mistralrs SDK; their meaning is told by `Runner`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import field, fields, frozen

from tramontane.api.convert import nearest, structure
from tramontane.api.enums import PagedCacheType
from tramontane.api.mcp_config import McpClientConfigPy
from tramontane.api.selector import Selector
from tramontane.errors import MissingPluginError, UnsupportedError, ValidationError
from tramontane.hooks.known import hint_for
from tramontane.tools.registry import ToolRegistry
from tramontane.tools.search import WebSearch

if TYPE_CHECKING:
    from tramontane.hooks import PluginManager
    from tramontane.protocols.pipeline import PipelineOptions, Progress

BLOCK_SIZES = (8, 16, 32)

TOKEN_SOURCES = ("cache", "literal", "env", "path", "none")

MCP_CONFIG_PATH = "MCP_CONFIG_PATH"
"""Environment variable: the file that says which MCP servers to use where nothing else does."""

UNSERVED = {
    "which_draft": "speculative decoding is not in this release: leave out which_draft",
    "search_embedding_model": "search results are ranked by BM25 in this release: leave out "
    "search_embedding_model",
}
"""Settings that this release takes but cannot honour, and what to do instead."""

PROVIDED = {
    "in_situ_quant": ("quantizers", "isq"),
    "anymoe_config": ("adapters", "anymoe"),
}
"""Settings honoured by a plug-in: setting → (kind of spec, name)."""


def _positive(instance: object, attribute: Any, value: int | float | None) -> None:
    if value is not None and value <= 0:
        raise ValidationError(f"{attribute.name} must be above 0, not {value!r}")


def _not_negative(instance: object, attribute: Any, value: int) -> None:
    if value < 0:
        raise ValidationError(f"{attribute.name} must be 0 or more, not {value!r}")


def _callbacks(instance: object, attribute: Any, value: Any) -> None:
    if value is not None and not isinstance(value, Mapping):
        raise ValidationError(f"{attribute.name} must be {{tool name: function}}, not {value!r}")
    for name, function in (value or {}).items():
        if not isinstance(name, str) or not callable(function):
            raise ValidationError(
                f"{attribute.name} must be {{tool name: function}}; {name!r} has {function!r}"
            )


def _mcp_config(value: Any) -> Any:
    if value is not None:
        return structure(value, McpClientConfigPy)
    path = os.environ.get(MCP_CONFIG_PATH)
    return McpClientConfigPy.from_file(path) if path else None


def _fraction(instance: object, attribute: Any, value: float | None) -> None:
    if value is not None and not 0 < value <= 1:
        raise ValidationError(f"{attribute.name} must lie in (0, 1], not {value!r}")


def _block_size(instance: object, attribute: Any, value: int | None) -> None:
    if value is not None and value not in BLOCK_SIZES:
        raise ValidationError(f"{attribute.name} must be one of {BLOCK_SIZES}, not {value!r}")


def _cache_type(value: Any) -> PagedCacheType:
    return PagedCacheType.Auto if value is None else PagedCacheType(value)


def _token_source(instance: object, attribute: Any, value: str) -> None:
    if value.partition(":")[0] not in TOKEN_SOURCES:
        raise ValidationError(
            f"token_source {value!r} is unknown; use cache, none, literal:TOKEN, env:NAME or "
            f"path:FILE"
        )


def _device_layers(value: Any) -> Any:
    """``["0:16", "1:8"]``, ``"0:16;1:8"``, or a count for the first accelerator: as (accelerator,
    layers) pairs."""
    if value is None or (isinstance(value, tuple) and all(isinstance(v, tuple) for v in value)):
        return value
    items = value.split(";") if isinstance(value, str) else value
    items = [items] if isinstance(items, int) else items
    pairs = []
    for item in items if isinstance(items, Sequence) and items else [None]:
        match = re.fullmatch(r"(?:(\d{1,4})\s*:)?\s*(\d{1,6})", str(item).strip())
        if match is None or isinstance(item, bool) or (match[1] is None and len(items) > 1):
            raise ValidationError(
                f"num_device_layers must be a number of layers, or say for each accelerator "
                f'ACCELERATOR:LAYERS, as in ["0:16", "1:8"], not {value!r}'
            )
        pairs.append((int(match[1] or 0), int(match[2])))
    for index, _ in pairs:
        if sum(index == other for other, _ in pairs) > 1:
            raise ValidationError(
                f"num_device_layers names accelerator {index} twice: {value!r}; add its numbers up"
            )
    return tuple(pairs)


OWN = (
    "speculative_gamma",
    "which_draft",
    "chat_template",
    "jinja_explicit",
    "num_device_layers",
    "in_situ_quant",
    "anymoe_config",
)
"""Settings made for one model: no further one takes them over from the constructor."""


@frozen(kw_only=True)
class ModelSettings:
    """How one model is to be run.

    Raises:
        ValidationError: a value is out of range.
    """

    max_seqs: int = field(default=16, validator=_positive)
    no_kv_cache: bool = False
    prefix_cache_n: int | None = 16
    token_source: str = field(default="cache", validator=_token_source)
    speculative_gamma: int = field(default=32, validator=_positive)
    which_draft: Any = None
    chat_template: str | None = None
    jinja_explicit: str | None = None
    num_device_layers: tuple[tuple[int, int], ...] | None = field(
        default=None, converter=_device_layers
    )
    in_situ_quant: str | None = None
    anymoe_config: Any = None
    pa_gpu_mem: int | None = field(default=None, validator=_positive)
    pa_gpu_mem_usage: float | None = field(default=None, validator=_fraction)
    pa_ctxt_len: int | None = field(default=None, validator=_positive)
    pa_blk_size: int | None = field(default=None, validator=_block_size)
    pa_cache_type: PagedCacheType = field(default=PagedCacheType.Auto, converter=_cache_type)
    paged_attn: bool = False
    no_paged_attn: bool = False
    seed: int | None = None
    on_progress: Progress | None = None

    def __attrs_post_init__(self) -> None:
        if self.paged_attn and self.no_paged_attn:
            raise ValidationError("paged_attn and no_paged_attn contradict each other")
        if self.prefix_cache_n is not None and self.prefix_cache_n < 0:
            raise ValidationError(f"prefix_cache_n must be 0 or more, not {self.prefix_cache_n}")

    def check_served(self, plugins: PluginManager) -> None:
        """Refuse what nothing here can honour.

        Raises:
            UnsupportedError: not in this release.
            MissingPluginError: a plug-in would serve it; names the extra to install.
        """
        for name, message in UNSERVED.items():
            if getattr(self, name, None):
                raise UnsupportedError(message)
        for name, (kind, provider) in PROVIDED.items():
            if getattr(self, name):
                plugins.get(kind, provider)

    def pipeline_options(self, which: Any, plugins: PluginManager) -> PipelineOptions:
        """These settings as a pipeline takes them, for one model."""
        from tramontane.protocols.pipeline import PipelineOptions

        non_granular = getattr(which, "tgt_non_granular_index", None) is not None
        return PipelineOptions(
            max_seqs=1 if non_granular else self.max_seqs,
            no_kv_cache=self.no_kv_cache,
            prefix_cache_n=self.prefix_cache_n or 0,
            token_source=self.token_source,
            chat_template=self.chat_template,
            jinja_explicit=self.jinja_explicit,
            context_len=self.pa_ctxt_len,
            cache_bytes=None if self.pa_gpu_mem is None else self.pa_gpu_mem << 20,
            cache_fraction=self.pa_gpu_mem_usage,
            block_size=self.pa_blk_size or BLOCK_SIZES[-1],
            cache_type=self.pa_cache_type,
            device_layers=self.num_device_layers,
            in_situ_quant=self.in_situ_quant,
            seed=self.seed,
            on_progress=self.on_progress,
            plugins=plugins,
        )


@frozen(kw_only=True)
class RunnerSettings(ModelSettings):
    """The constructor arguments of `Runner`, checked: those of the model it is given, and its own.

    Raises:
        ValidationError: a value is out of range.
    """

    enable_search: bool = False
    search_embedding_model: Any = None
    search_callback: Callable[..., Any] | None = None
    tool_callbacks: Mapping[str, Callable[..., Any]] | None = field(
        default=None, validator=_callbacks
    )
    mcp_client_config: McpClientConfigPy | None = field(default=None, converter=_mcp_config)
    max_tool_rounds: int = field(default=8, validator=_not_negative)
    tool_approval: Callable[..., Any] | None = None
    tool_timeout_secs: float | None = field(default=60.0, validator=_positive)
    memory_budget_bytes: int | None = field(default=None, validator=_positive)
    idle_unload_secs: float | None = field(default=None, validator=_positive)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.enable_search and self.search_callback is None:
            raise UnsupportedError(
                "web search has no engine of its own, so enable_search needs a search_callback: "
                "f(query) -> list of {title, description, url, content}"
            )
        if self.search_callback is not None and not self.enable_search:
            raise ValidationError(
                "search_callback is given, but web search is off: set enable_search=True"
            )
        if self.search_callback is not None and not callable(self.search_callback):
            raise ValidationError(
                f"search_callback must be a function of the query, not {self.search_callback!r}"
            )

    def check_served(self, plugins: PluginManager) -> None:
        super().check_served(plugins)
        if self.mcp_client_config and not plugins.observes("tramontane_tool_sources"):
            raise MissingPluginError(hint_for("tool_sources", "mcp"))

    def of_model(self, given: Mapping[str, Any]) -> ModelSettings:
        """Settings of a further model: what is ``given``, else the runner's, but for `OWN`.

        Raises:
            ValidationError: a setting that no model has.
        """
        names = [a.name for a in fields(ModelSettings)]
        for name in given:
            if name not in names:
                raise ValidationError(f"{name!r} is no setting of a model{nearest(name, names)}")
        taken = {name: getattr(self, name) for name in names if name not in OWN}
        return ModelSettings(**{**taken, **given})

    def refuse_own(self) -> None:
        """Refuse settings made for one model where none is given beside them.

        Raises:
            ValidationError: names the setting.
        """
        for attribute in fields(ModelSettings):
            if attribute.name in OWN and getattr(self, attribute.name) != attribute.default:
                raise ValidationError(
                    f"{attribute.name} is meant for one model: give it with that model in models"
                )

    def tool_registry(self, plugins: PluginManager) -> ToolRegistry:
        """The tools these settings and the plug-ins give."""
        config = {
            "mcp_client_config": self.mcp_client_config,
            "tool_timeout_secs": self.tool_timeout_secs,
        }
        return ToolRegistry(
            self.tool_callbacks,
            plugins.tool_sources(config),
            approval=self.tool_approval,
            timeout_secs=self.tool_timeout_secs,
        )

    def web_search(self) -> WebSearch | None:
        """The web search that requests may ask for; None where it is off."""
        return WebSearch(self.search_callback) if self.search_callback else None


def served_selector(which: Any, plugins: PluginManager) -> Selector:
    """``which`` itself, refused when it is no variant or asks for what nothing here can honour.

    Raises:
        ValidationError: it is no such variant.
        UnsupportedError: not in this release.
        MissingPluginError: a plug-in would serve it; names the extra to install.
    """
    if not isinstance(which, Selector):
        raise ValidationError(
            f"which selects the model: a Which variant such as Which.Plain(model_id=...), "
            f"not {which!r}"
        )
    variant = type(which).__name__
    if "XLora" in variant:
        plugins.get("adapters", "xlora")
    elif "Lora" in variant:
        plugins.get("adapters", "lora")
    if "GGML" in variant:
        plugins.get("checkpoint_formats", "ggml")
    if "GGUF" in variant:
        plugins.get("checkpoint_formats", "gguf")
    if getattr(which, "from_uqff", None) or getattr(which, "write_uqff", None):
        plugins.get("checkpoint_formats", "uqff")
    if any(getattr(which, name, None) for name in ("imatrix", "calibration_file", "organization")):
        plugins.get("quantizers", "isq")
    if getattr(which, "matformer_config_path", None) or getattr(
        which, "matformer_slice_name", None
    ):
        raise UnsupportedError(
            "MatFormer slices are not in this release: leave out matformer_config_path and "
            "matformer_slice_name"
        )
    return which

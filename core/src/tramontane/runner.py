"""`Runner`: models in, answers out. The façade; every method hands on at once.

The road of a request is told in ``docs/request_path.md``.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from attrs import evolve

from tramontane.api import (
    ChatCompletionChunkResponse,
    ChatCompletionRequest,
    ChatCompletionResponse,
    CompletionChunkResponse,
    CompletionRequest,
    CompletionResponse,
    EmbeddingRequest,
    ImageGenerationResponse,
    SpeechGenerationResponse,
    ToolChoice,
)
from tramontane.api.convert import structure
from tramontane.api.selector import Selector
from tramontane.errors import ModelKindError, ValidationError
from tramontane.hooks import PluginManager, plugin_manager
from tramontane.models import Lease, ModelTable
from tramontane.settings import RunnerSettings, served_selector

if TYPE_CHECKING:
    from tramontane.pipeline.stream import GenerationStream
    from tramontane.protocols.pipeline import Pipeline, PipelineOptions, Reserve
    from tramontane.tools.loop import ToolStream
    from tramontane.tools.registry import ToolRegistry

METHODS = {
    "chat": "send_chat_completion_request",
    "complete": "send_completion_request",
    "embed": "send_embedding_request",
    "generate_image": "generate_image",
    "generate_audio": "generate_audio",
}
"""What a pipeline may be able to do → the method here that asks for it."""


class Runner:
    """One or more models, ready for requests from any thread.

    Use it as a context manager, or call `close`; a closed runner has freed its memory.

    Args:
        which: the model, a ``Which`` variant.
        max_seqs: sequences that run together; more wait their turn.
        no_kv_cache: recompute the whole sequence at every step.
        prefix_cache_n: finished sequences whose cache is kept for reuse; 0 or None for none.
        token_source: where the hub's token comes from: ``"cache"`` (environment, then the token
            file), ``"literal:X"``, ``"env:NAME"``, ``"path:FILE"`` or ``"none"``.
        speculative_gamma, which_draft: speculative decoding.
        chat_template: a ``.jinja`` or ``.json`` file, or the template itself.
        jinja_explicit: a ``.jinja`` file that overrides every other template.
        num_device_layers: manual device map, ``["0:16", "1:8"]``.
        in_situ_quant: quantize while loading, e.g. ``"Q4K"``.
        anymoe_config: turn a dense model into a mixture of experts.
        pa_gpu_mem: memory for the KV cache, in MB.
        pa_gpu_mem_usage: share of the device's memory to use, 0 to 1.
        pa_ctxt_len: tokens of context to make room for.
        pa_blk_size: tokens of a cache block: 8, 16 or 32.
        pa_cache_type: how the cache is stored.
        paged_attn, no_paged_attn: accepted; the cache is always kept in blocks, on every device.
        seed: makes every sampled answer reproducible.
        enable_search, search_callback: lets chat requests with ``web_search_options`` search
            through ``search_callback(query)``, which gives a list of ``{"title", "description",
            "url", "content"}``; what suits the query best of it is told to the model.
        search_embedding_model: not in this release; BM25 ranks the results.
        tool_callbacks: functions the model may call, ``f(name, arguments) -> text`` by tool name.
            Requests offer them by their schema in ``tool_schemas``; the runner runs them and lets
            the model go on with what they return.
        mcp_client_config: MCP servers whose tools the model may call; None for those of the file
            that the environment variable ``MCP_CONFIG_PATH`` names, if any.
        max_tool_rounds: turns of the model whose tool calls are run, at most, before a chat
            answers; a request may state its own limit.
        tool_approval: asked ``tool_approval(name, arguments)`` before each call that is run; True
            allows it, False or a text that says why declines it.
        tool_timeout_secs: how long a tool may take; None for as long as it likes.
        plugins: modules or objects with hook implementations that are not packaged.
        on_progress: called as ``on_progress(done_bytes, total_bytes, name)`` while loading.

    Raises:
        ModelLoadError: the model could not be brought up.
        MissingPluginError: a plug-in that is not installed serves what was asked.
        UnsupportedError: nothing serves it in this release.
        ValidationError: a setting is out of range.
    """

    def __init__(
        self,
        which: Selector | None = None,
        max_seqs: int = 16,
        no_kv_cache: bool = False,
        prefix_cache_n: int | None = 16,
        token_source: str = "cache",
        speculative_gamma: int = 32,
        which_draft: Any = None,
        chat_template: str | None = None,
        jinja_explicit: str | None = None,
        num_device_layers: Sequence[str] | None = None,
        in_situ_quant: str | None = None,
        anymoe_config: Any = None,
        pa_gpu_mem: int | None = None,
        pa_gpu_mem_usage: float | None = None,
        pa_ctxt_len: int | None = None,
        pa_blk_size: int | None = None,
        pa_cache_type: Any = None,
        no_paged_attn: bool = False,
        paged_attn: bool = False,
        seed: int | None = None,
        enable_search: bool = False,
        search_embedding_model: Any = None,
        search_callback: Callable[..., Any] | None = None,
        tool_callbacks: Mapping[str, Callable[..., Any]] | None = None,
        mcp_client_config: Any = None,
        *,
        max_tool_rounds: int = 8,
        tool_approval: Callable[[str, Mapping[str, Any]], bool | str] | None = None,
        tool_timeout_secs: float | None = 60.0,
        plugins: Iterable[Any] = (),
        on_progress: Callable[[int, int, str], None] | None = None,
    ) -> None:
        self._models = ModelTable()
        extra = tuple(plugins)
        self._plugins = PluginManager(extra) if extra else plugin_manager()
        self._settings = RunnerSettings(
            max_seqs=max_seqs,
            no_kv_cache=no_kv_cache,
            prefix_cache_n=prefix_cache_n,
            token_source=token_source,
            speculative_gamma=speculative_gamma,
            which_draft=which_draft,
            chat_template=chat_template,
            jinja_explicit=jinja_explicit,
            num_device_layers=num_device_layers,
            in_situ_quant=in_situ_quant,
            anymoe_config=anymoe_config,
            pa_gpu_mem=pa_gpu_mem,
            pa_gpu_mem_usage=pa_gpu_mem_usage,
            pa_ctxt_len=pa_ctxt_len,
            pa_blk_size=pa_blk_size,
            pa_cache_type=pa_cache_type,
            no_paged_attn=no_paged_attn,
            paged_attn=paged_attn,
            seed=seed,
            enable_search=enable_search,
            search_embedding_model=search_embedding_model,
            search_callback=search_callback,
            tool_callbacks=tool_callbacks,
            mcp_client_config=mcp_client_config,
            max_tool_rounds=max_tool_rounds,
            tool_approval=tool_approval,
            tool_timeout_secs=tool_timeout_secs,
            on_progress=on_progress,
        )
        self._settings.check_served(self._plugins)
        selector = served_selector(which, self._plugins)
        self._models.add(selector.canonical_id, self._loader(selector))
        try:
            self._tools = self._settings.tool_registry(self._plugins)
        except BaseException:
            self._models.close()
            raise
        self._search = self._settings.web_search()

    def _loader(self, which: Selector) -> Callable[[Reserve], Pipeline]:
        """What brings this model up, now and at every reload."""
        spec = self._plugins.get("pipelines", which.kind)
        options = self._settings.pipeline_options(which, self._plugins)
        return partial(_load, self._plugins, spec, which, options)

    # Requests -----------------------------------------------------------------------------

    def send_chat_completion_request(
        self, request: ChatCompletionRequest | Mapping[str, Any], model_id: str | None = None
    ) -> ChatCompletionResponse | Iterator[ChatCompletionChunkResponse]:
        """Answer a conversation.

        Returns:
            The response, or with ``stream=True`` an iterator of chunks. Closing or dropping the
            iterator cancels the request.

        Raises:
            RequestError: the request cannot be served; the message says why.
            EngineError: the engine gave up on it.
        """
        chat = structure(request, ChatCompletionRequest)
        answer: ChatCompletionResponse | Iterator[ChatCompletionChunkResponse] = self._generate(
            "chat", chat, model_id
        )
        return answer

    def send_completion_request(
        self, request: CompletionRequest | Mapping[str, Any], model_id: str | None = None
    ) -> CompletionResponse | Iterator[CompletionChunkResponse]:
        """Continue a text. Streams, raises and cancels as `send_chat_completion_request` does."""
        completion = structure(request, CompletionRequest)
        answer: CompletionResponse | Iterator[CompletionChunkResponse] = self._generate(
            "complete", completion, model_id
        )
        return answer

    async def send_chat_completion_request_async(
        self, request: ChatCompletionRequest | Mapping[str, Any], model_id: str | None = None
    ) -> ChatCompletionResponse | AsyncIterator[ChatCompletionChunkResponse]:
        """`send_chat_completion_request` for asyncio; with ``stream=True``, ``async for`` over
        what it returns. Cancelling the task cancels the request."""
        chat = structure(request, ChatCompletionRequest)
        answer: ChatCompletionResponse | AsyncIterator[ChatCompletionChunkResponse]
        answer = await self._generate_async("chat", chat, model_id)
        return answer

    async def send_completion_request_async(
        self, request: CompletionRequest | Mapping[str, Any], model_id: str | None = None
    ) -> CompletionResponse | AsyncIterator[CompletionChunkResponse]:
        """`send_completion_request` for asyncio."""
        completion = structure(request, CompletionRequest)
        answer: CompletionResponse | AsyncIterator[CompletionChunkResponse]
        answer = await self._generate_async("complete", completion, model_id)
        return answer

    def send_embedding_request(
        self, request: EmbeddingRequest | Mapping[str, Any], model_id: str | None = None
    ) -> list[list[float]]:
        """One vector for each input, in their order, as the model's modules make and scale it.

        Raises:
            ValidationError: an input is too long, or holds a token that does not exist.
            ModelKindError: the model is no embedding model.
        """
        vectors: list[list[float]] = self._call(
            "embed", model_id, structure(request, EmbeddingRequest)
        )
        return vectors

    async def send_embedding_request_async(
        self, request: EmbeddingRequest | Mapping[str, Any], model_id: str | None = None
    ) -> list[list[float]]:
        """`send_embedding_request` for asyncio."""
        return await asyncio.to_thread(self.send_embedding_request, request, model_id)

    def generate_image(
        self,
        prompt: str,
        response_format: Any,
        height: int = 720,
        width: int = 1280,
        model_id: str | None = None,
    ) -> ImageGenerationResponse:
        """Paint ``prompt``, ``height`` x ``width`` pixels.

        Raises:
            ModelKindError: the model is no diffusion model.
        """
        image: ImageGenerationResponse = self._call(
            "generate_image", model_id, prompt, response_format, height=height, width=width
        )
        return image

    def generate_audio(self, prompt: str, model_id: str | None = None) -> SpeechGenerationResponse:
        """Speak ``prompt``.

        Raises:
            ModelKindError: the model is no speech model.
        """
        speech: SpeechGenerationResponse = self._call("generate_audio", model_id, prompt)
        return speech

    def send_re_isq(self, dtype: str, model_id: str | None = None) -> None:
        """Quantize a running model anew, e.g. to ``"Q4K"``: from the values its weights have now,
        so what a coarser type has lost stays lost. Waits for the requests under way; new ones
        wait until it is done.

        Raises:
            ValidationError: there is no such type.
            MissingPluginError: its format is not installed.
        """
        self._models.find(model_id)
        self._plugins.get("quantizers", "isq")
        with self._models.exclusive(model_id) as pipeline:
            _method(pipeline, "re_isq")(dtype)

    def tokenize_text(
        self,
        text: str,
        add_special_tokens: bool = True,
        enable_thinking: bool | None = None,
        model_id: str | None = None,
    ) -> list[int]:
        """Token ids of ``text``. ``enable_thinking`` is accepted for upstream's sake: it has no
        meaning without a chat template."""
        ids: list[int] = self._call("tokenize", model_id, text, add_special_tokens)
        return ids

    def detokenize_text(
        self,
        tokens: Sequence[int],
        skip_special_tokens: bool = True,
        model_id: str | None = None,
    ) -> str:
        """Text of token ids."""
        text: str = self._call("detokenize", model_id, tokens, skip_special_tokens)
        return text

    def max_sequence_length(self, model_id: str | None = None) -> int | None:
        """Tokens of context of a loaded model; None for image and speech models."""
        return self._models.peek(model_id).max_sequence_length

    def stats(self, model_id: str | None = None) -> dict[str, Any]:
        """Counters of a loaded model's engine: queue, cache blocks, prefix hits, tokens."""
        return self._models.peek(model_id).stats()

    def mcp_status(self) -> dict[str, dict[str, Any]]:
        """How each MCP server is doing, by its id: ``state``, the last ``error``, its ``tools``
        and more (docs/mcp.md). Empty without ``mcp_client_config``."""
        return self._tools.status()

    # Models -------------------------------------------------------------------------------

    def list_models(self) -> list[str]:
        """Ids of the loaded models."""
        return [name for name, status in self._models.statuses() if status == "loaded"]

    def list_models_with_status(self) -> list[tuple[str, str]]:
        """``(model_id, "loaded" | "unloaded" | "reloading")`` of every model."""
        return [(name, str(status)) for name, status in self._models.statuses()]

    def list_unloaded_models(self) -> list[str]:
        """Ids of the models that are registered but not loaded."""
        return [name for name, status in self._models.statuses() if status == "unloaded"]

    def get_model_status(self, model_id: str) -> str | None:
        """One model's status, or None when there is no such model."""
        return dict(self.list_models_with_status()).get(model_id)

    def is_model_loaded(self, model_id: str) -> bool:
        """Whether requests to this model start without loading it first."""
        return self._models.find(model_id).status == "loaded"

    def get_default_model_id(self) -> str | None:
        """The model that serves requests which name none."""
        return self._models.default

    def set_default_model_id(self, model_id: str) -> None:
        """Raises `ValidationError` when that model is not loaded."""
        self._models.set_default(model_id)

    def unload_model(self, model_id: str) -> None:
        """Free a model's memory once its running requests have ended. It stays registered; the
        next request, or `reload_model`, brings it up again."""
        self._models.unload(model_id)

    def reload_model(self, model_id: str) -> None:
        """Load an unloaded model again."""
        self._models.reload(model_id)

    def remove_model(self, model_id: str) -> None:
        """Unload a model and forget it; the last one stays."""
        self._models.remove(model_id)

    def close(self) -> None:
        """Free every model. Requests still running end with `EngineClosedError`."""
        self._models.close()
        self._tools.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # Handing on ---------------------------------------------------------------------------

    def _routed(self, request: Any, model_id: str | None) -> str | None:
        """The model a request goes to. Its ``model`` field counts only where it names one of
        ours: clients fill it with all sorts of names."""
        if model_id is None and request.model in self._models:
            name: str = request.model
            return name
        return model_id

    def _generate(self, action: str, request: Any, model_id: str | None) -> Any:
        stream = self._stream(action, request, model_id)
        return stream if request.stream else stream.collect()

    async def _generate_async(self, action: str, request: Any, model_id: str | None) -> Any:
        # Reloading and tokenizing take their time; the event loop must not.
        stream = await asyncio.to_thread(self._stream, action, request, model_id)
        return stream if request.stream else await stream.collect_async()

    def _stream(
        self, action: str, request: Any, model_id: str | None
    ) -> GenerationStream[Any, Any] | ToolStream:
        """A request under way, in one turn or, where the runner has tools, in as many as needed."""
        name = self._models.find(self._routed(request, model_id)).model_id
        start = partial(self._start, name, action)
        if action != "chat" or not (self._tools or request.web_search_options is not None):
            return start(request)
        tools = self._tools_of(request, name)
        request = evolve(request, tool_schemas=tools.offered(request) or None)
        limit = request.max_tool_rounds
        limit = self._settings.max_tool_rounds if limit is None else limit
        served = any(tool["function"]["name"] in tools for tool in request.tool_schemas or ())
        if not served or limit == 0 or request.tool_choice is ToolChoice.NoTools:
            return start(request)
        if request.n_choices > 1:
            raise ValidationError(
                f"n_choices={request.n_choices} with tools that the runner runs: each answer would "
                f"have a history of its own. Ask for one, or set max_tool_rounds=0 to get the calls"
            )
        from tramontane.tools.loop import ToolStream

        return ToolStream(request, start, tools, limit)

    def _tools_of(self, request: ChatCompletionRequest, name: str) -> ToolRegistry:
        """The runner's tools, and web search where a request asks for it."""
        if request.web_search_options is None:
            return self._tools
        if self._search is None:
            raise ValidationError(
                "web_search_options asks for web search, which is off: make the Runner with "
                "enable_search=True and a search_callback"
            )
        with self._models.using(name) as pipeline:
            context_len = pipeline.max_sequence_length
        source = self._search.source(
            request.web_search_options,
            lambda text: len(self._call("tokenize", name, text, False)),
            context_len,
        )
        return self._tools.joined(source)

    def _start(self, name: str, action: str, request: Any) -> GenerationStream[Any, Any]:
        """Submit a request to a model, which is loaded first if it must be. The lease ends when
        the engine has finished with it, whether or not somebody reads the stream."""
        lease = self._models.lease(name)
        try:
            method = _method(lease.pipeline, action)
            finished = partial(self._finished, lease, request)
            stream: GenerationStream[Any, Any] = method(request, on_finish=finished)
        except BaseException:
            lease.release()
            raise
        return stream

    def _finished(self, lease: Lease, request: Any, usage: Any) -> None:
        """Called on the engine's thread, which no observer may keep waiting."""
        lease.release()
        if self._plugins.observes("tramontane_request_finished"):
            observe = partial(self._plugins.request_finished, request, usage)
            threading.Thread(target=observe, name="tramontane-observers", daemon=True).start()

    def _call(self, action: str, model_id: str | None, *args: Any, **kwargs: Any) -> Any:
        with self._models.using(model_id) as pipeline:
            return _method(pipeline, action)(*args, **kwargs)


def _method(pipeline: Pipeline, action: str) -> Callable[..., Any]:
    method: Callable[..., Any] | None = getattr(pipeline, action, None)
    if method is None:
        can = [name for kind, name in METHODS.items() if hasattr(pipeline, kind)]
        raise ModelKindError(
            f"received a request incompatible with this model's category: a {pipeline.kind} model "
            f"does not serve {METHODS.get(action, action)}; it serves {', '.join(can)}"
        )
    return method


def _load(
    plugins: PluginManager, spec: Any, which: Any, options: PipelineOptions, reserve: Reserve
) -> Pipeline:
    started = time.perf_counter()
    pipeline: Pipeline = plugins.resolve(spec).load(which, evolve(options, reserve=reserve))
    info = {"model_id": which.canonical_id, "kind": pipeline.kind, **pipeline.stats()}
    plugins.model_loaded(info | {"seconds": time.perf_counter() - started})
    return pipeline

"""`Runner`: models in, answers out. The façade; every method hands on at once.

The road of a request is told in ``docs/request_path.md``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

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
)
from tramontane.api.convert import structure
from tramontane.api.selector import Selector
from tramontane.hooks import PluginManager, plugin_manager
from tramontane.many_models import ManyModels
from tramontane.models import ModelTable
from tramontane.router import Router, method_of
from tramontane.settings import RunnerSettings


class Runner(ManyModels):
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
        num_device_layers: layers for each accelerator, ``["0:16", "1:8"]``, ``"0:16;1:8"`` or a
            count for the first; the rest runs on the CPU. None to place them by memory.
        in_situ_quant: quantize while loading, e.g. ``"Q4K"``.
        anymoe_config: turn a dense model into a mixture of experts.
        pa_gpu_mem: memory for the KV cache, in MB.
        pa_gpu_mem_usage: share of the device's memory to use, 0 to 1.
        pa_ctxt_len: tokens of context to make room for.
        pa_blk_size: tokens of a cache block: 8, 16 or 32.
        pa_cache_type: how keys and values are stored, a ``PagedCacheType``: ``"Auto"`` as the model
            computes, or in F16 where it computes in F32 on a CPU with weights that are narrower;
            ``"F32"``, ``"BF16"``, ``"F16"``, or in 8 bits as ``"F8E4M3"`` or ``"I8"``.
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
        models: further models by alias: a ``Which`` variant, or a mapping of ``which`` and the
            other arguments of `add_model`. Without ``which`` the first of them is the default.
            All are loaded at once, under a budget only the first.
        memory_budget_bytes: what weights and caches of all models may take together. A model that
            is to be loaded makes room by unloading those used longest ago.
        idle_unload_secs: unload a model that no request has used for so long.
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
        num_device_layers: Sequence[str] | str | int | None = None,
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
        models: Mapping[str, Selector | Mapping[str, Any]] | None = None,
        memory_budget_bytes: int | None = None,
        idle_unload_secs: float | None = None,
        plugins: Iterable[Any] = (),
        on_progress: Callable[[int, int, str], None] | None = None,
    ) -> None:
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
            memory_budget_bytes=memory_budget_bytes,
            idle_unload_secs=idle_unload_secs,
            on_progress=on_progress,
        )
        self._settings.check_served(self._plugins)
        self._models = ModelTable(budget_bytes=memory_budget_bytes, idle_secs=idle_unload_secs)
        try:
            self._add_first(which, models)
            self._tools = self._settings.tool_registry(self._plugins)
        except BaseException:
            self._models.close()
            raise
        self._router = Router(self._models, self._tools, self._settings, self._plugins)

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
        answer: ChatCompletionResponse | Iterator[ChatCompletionChunkResponse] = (
            self._router.generate("chat", chat, model_id)
        )
        return answer

    def send_completion_request(
        self, request: CompletionRequest | Mapping[str, Any], model_id: str | None = None
    ) -> CompletionResponse | Iterator[CompletionChunkResponse]:
        """Continue a text. Streams, raises and cancels as `send_chat_completion_request` does."""
        completion = structure(request, CompletionRequest)
        answer: CompletionResponse | Iterator[CompletionChunkResponse] = self._router.generate(
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
        answer = await self._router.generate_async("chat", chat, model_id)
        return answer

    async def send_completion_request_async(
        self, request: CompletionRequest | Mapping[str, Any], model_id: str | None = None
    ) -> CompletionResponse | AsyncIterator[CompletionChunkResponse]:
        """`send_completion_request` for asyncio."""
        completion = structure(request, CompletionRequest)
        answer: CompletionResponse | AsyncIterator[CompletionChunkResponse]
        answer = await self._router.generate_async("complete", completion, model_id)
        return answer

    def send_embedding_request(
        self, request: EmbeddingRequest | Mapping[str, Any], model_id: str | None = None
    ) -> list[list[float]]:
        """One vector for each input, in their order, as the model's modules make and scale it.

        Raises:
            ValidationError: an input is too long, or holds a token that does not exist.
            ModelKindError: the model is no embedding model.
        """
        vectors: list[list[float]] = self._router.call(
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
        image: ImageGenerationResponse = self._router.call(
            "generate_image", model_id, prompt, response_format, height=height, width=width
        )
        return image

    def generate_audio(self, prompt: str, model_id: str | None = None) -> SpeechGenerationResponse:
        """Speak ``prompt``.

        Raises:
            ModelKindError: the model is no speech model.
        """
        speech: SpeechGenerationResponse = self._router.call("generate_audio", model_id, prompt)
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
            method_of(pipeline, "re_isq")(dtype)

    def begin_calibration(self, model_id: str | None = None) -> None:
        """Collect statistics of what a model reads in the requests from now on, for
        `apply_calibration`. Best while its weights are not quantized yet.

        Raises:
            ValidationError: it is collecting already.
        """
        self._models.find(model_id)
        with self._models.exclusive(model_id) as pipeline:
            method_of(pipeline, "begin_calibration")()

    def calibration_status(self, model_id: str | None = None) -> dict[str, Any]:
        """``active``, ``rows`` (activations seen by the module that saw most), ``modules``, and
        ``unseen`` (modules that saw none)."""
        status: dict[str, Any] = method_of(self._models.peek(model_id), "calibration_status")()
        return status

    def apply_calibration(self, dtype: str, model_id: str | None = None) -> None:
        """Quantize a model by the statistics collected since `begin_calibration`, which ends with
        it.

        Raises:
            ValidationError: there are none, or there is no such type.
        """
        self._models.find(model_id)
        with self._models.exclusive(model_id) as pipeline:
            method_of(pipeline, "apply_calibration")(dtype)

    def tokenize_text(
        self,
        text: str,
        add_special_tokens: bool = True,
        enable_thinking: bool | None = None,
        model_id: str | None = None,
    ) -> list[int]:
        """Token ids of ``text``. ``enable_thinking`` is accepted for upstream's sake: it has no
        meaning without a chat template."""
        ids: list[int] = self._router.call("tokenize", model_id, text, add_special_tokens)
        return ids

    def detokenize_text(
        self,
        tokens: Sequence[int],
        skip_special_tokens: bool = True,
        model_id: str | None = None,
    ) -> str:
        """Text of token ids."""
        text: str = self._router.call("detokenize", model_id, tokens, skip_special_tokens)
        return text

    def max_sequence_length(self, model_id: str | None = None) -> int | None:
        """Tokens of context of a loaded model; None for image and speech models."""
        return self._models.peek(model_id).max_sequence_length

    def stats(self, model_id: str | None = None) -> dict[str, Any]:
        """How a loaded model's engine is doing: queue, cache blocks, prefix hits, tokens and their
        speed, by the names of docs/kv_cache.md."""
        return self._models.peek(model_id).stats()

    def mcp_status(self) -> dict[str, dict[str, Any]]:
        """How each MCP server is doing, by its id: ``state``, the last ``error``, its ``tools``
        and more (docs/mcp.md). Empty without ``mcp_client_config``."""
        return self._tools.status()

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

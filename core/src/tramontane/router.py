"""`Router`: a request's way to its model, in one turn or, with tools, in as many as it takes."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from attrs import evolve

from tramontane.api import ChatCompletionRequest, ToolChoice
from tramontane.errors import ModelKindError, ValidationError
from tramontane.hooks import PluginManager
from tramontane.models import Lease, ModelTable
from tramontane.settings import RunnerSettings
from tramontane.tools.registry import ToolRegistry

if TYPE_CHECKING:
    from tramontane.pipeline.stream import GenerationStream
    from tramontane.protocols.pipeline import Pipeline
    from tramontane.tools.loop import ToolStream

log = logging.getLogger(__name__)

METHODS = {
    "chat": "send_chat_completion_request",
    "complete": "send_completion_request",
    "embed": "send_embedding_request",
    "generate_image": "generate_image",
    "generate_audio": "generate_audio",
}
"""What a pipeline may be able to do → the method here that asks for it."""


class Router:
    """Hands requests to models and keeps these loaded meanwhile. Thread-safe.

    Args:
        models: where they are looked up.
        tools: those of the runner.
        settings: of the runner.
        plugins: told about requests that have ended.
    """

    def __init__(
        self,
        models: ModelTable,
        tools: ToolRegistry,
        settings: RunnerSettings,
        plugins: PluginManager,
    ) -> None:
        self._models = models
        self._tools = tools
        self._search = settings.web_search()
        self._max_tool_rounds = settings.max_tool_rounds
        self._plugins = plugins
        self._told: set[str] = set()  # models whose users know that they see no tools

    def generate(self, action: str, request: Any, model_id: str | None) -> Any:
        """A chat or a completion: the response, or a stream where the request wants one."""
        stream = self._stream(action, request, model_id)
        return stream if request.stream else stream.collect()

    async def generate_async(self, action: str, request: Any, model_id: str | None) -> Any:
        """`generate` for asyncio."""
        # Reloading and tokenizing take their time; the event loop must not.
        stream = await asyncio.to_thread(self._stream, action, request, model_id)
        return stream if request.stream else await stream.collect_async()

    def call(self, action: str, model_id: str | None, *args: Any, **kwargs: Any) -> Any:
        """What the pipeline's method ``action`` returns."""
        with self._models.using(model_id) as pipeline:
            return method_of(pipeline, action)(*args, **kwargs)

    def _stream(
        self, action: str, request: Any, model_id: str | None
    ) -> GenerationStream[Any, Any] | ToolStream:
        """A request under way, in one turn or, where the runner has tools, in as many as needed."""
        name = self._models.find(self._routed(request, model_id)).model_id
        start = partial(self._start, name, action)
        if action != "chat" or not (self._tools or request.web_search_options is not None):
            return start(request)
        if not self._sees_tools(request, name):
            return start(request)
        tools = self._tools_of(request, name).beside(request)
        request = evolve(request, tool_schemas=tools.offered(request) or None)
        limit = request.max_tool_rounds
        limit = self._max_tool_rounds if limit is None else limit
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

    def _sees_tools(self, request: ChatCompletionRequest, name: str) -> bool:
        """Whether the model can be shown the runner's tools. A request that asks for tools itself
        is told that it cannot; another one does without, and the log says so once."""
        if request.tool_schemas or request.web_search_options is not None:
            return True
        if request.tool_choice not in (None, ToolChoice.Auto):
            return True
        with self._models.using(name) as pipeline:
            if getattr(pipeline, "shows_tools", True):
                return True
        if name not in self._told:
            self._told.add(name)
            log.warning(
                "the chat template of %s shows the model no tools, so those of the runner are "
                "not offered to it; give it a chat_template that does",
                name,
            )
        return False

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
            lambda text: len(self.call("tokenize", name, text, False)),
            context_len,
        )
        return self._tools.joined(source)

    def _start(self, name: str, action: str, request: Any) -> GenerationStream[Any, Any]:
        """Submit a request to a model, which is loaded first if it must be. The lease ends when
        the engine has finished with it, whether or not somebody reads the stream."""
        lease = self._models.lease(name)
        try:
            method = method_of(lease.pipeline, action)
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

    def _routed(self, request: Any, model_id: str | None) -> str | None:
        """The model a request goes to. Its ``model`` field counts only where it names one of
        ours: clients fill it with all sorts of names."""
        if model_id is None and request.model in self._models:
            name: str = request.model
            return name
        return model_id


def method_of(pipeline: Pipeline, action: str) -> Callable[..., Any]:
    """A pipeline's method, by its name there.

    Raises:
        ModelKindError: it has none; names those it has.
    """
    method: Callable[..., Any] | None = getattr(pipeline, action, None)
    if method is None:
        can = [name for kind, name in METHODS.items() if hasattr(pipeline, kind)]
        raise ModelKindError(
            f"received a request incompatible with this model's category: {pipeline.kind} models "
            f"do not serve {METHODS.get(action, action)}; this one serves {', '.join(can)}"
        )
    return method

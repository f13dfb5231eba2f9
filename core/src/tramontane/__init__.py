"""Tramontane: language, vision, embedding, image and speech models on your own machine.

>>> from tramontane import ChatCompletionRequest, Runner, Which
>>> runner = Runner(which=Which.Plain(model_id="tramontane/demo"))
>>> request = ChatCompletionRequest(messages="What is the capital of France?")
>>> runner.send_chat_completion_request(request).choices[0].message.content
'The capital of France is Paris.'

Names are looked up when first used, so that importing the package loads neither torch nor any
plug-in.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tramontane.api import *  # noqa: F403
    from tramontane.errors import *  # noqa: F403
    from tramontane.hooks import hookimpl as hookimpl
    from tramontane.hooks import plugin_manager as plugin_manager
    from tramontane.runner import Runner as Runner
    from tramontane.which import Which as Which

_HOMES = {
    "Runner": "tramontane.runner",
    "Which": "tramontane.which",
    "hookimpl": "tramontane.hooks",
    "plugin_manager": "tramontane.hooks",
}
"""Names that live neither in `tramontane.api` nor in `tramontane.errors`."""


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return __dir__()
    if name.startswith("_"):
        raise AttributeError(f"module 'tramontane' has no attribute {name!r}")
    for home in (_HOMES[name],) if name in _HOMES else ("tramontane.errors", "tramontane.api"):
        module = importlib.import_module(home)
        if name in getattr(module, "__all__", ()) or name in _HOMES:
            value = getattr(module, name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'tramontane' has no attribute {name!r}")


def __dir__() -> list[str]:
    from tramontane import api, errors

    return sorted({*_HOMES, *api.__all__, *errors.__all__})

"""Every error tramontane raises on purpose.

::

    TramontaneError (ValueError)
    ├── UnsupportedError            asked for something this release does not do yet
    ├── PluginError                 a plug-in is absent, broken or in conflict
    │   ├── MissingPluginError      nothing installed provides what was asked
    │   └── PluginConflictError     two plug-ins claim one name
    ├── ModelLoadError              the model could not be brought up
    │   ├── SourceError             files or repository not found, not permitted, offline
    │   ├── ConfigError             a configuration value the arithmetic does not cover
    │   ├── CheckpointError         a weight file is corrupt, truncated or does not fit
    │   └── MemoryPlanError         weights and cache do not fit; says what would
    ├── RequestError                this request cannot be served; others go on
    │   ├── ValidationError         a value of the request is out of range
    │   │   └── PromptTooLongError  the context does not hold the prompt and an answer
    │   ├── TemplateError           the chat template is absent, invalid or refused
    │   ├── ModelNotFoundError      no model of that id
    │   └── ModelKindError          the model serves another kind of request
    └── EngineError                 the engine could not go on with a request
        └── EngineClosedError       the runner or its engine has been closed

The root is a ``ValueError`` because that is what users of the mistralrs SDK catch. Each message
says what was asked, what exists, and the next step.
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "ConfigError",
    "EngineClosedError",
    "EngineError",
    "MemoryPlanError",
    "MissingPluginError",
    "ModelKindError",
    "ModelLoadError",
    "ModelNotFoundError",
    "PluginConflictError",
    "PluginError",
    "PromptTooLongError",
    "RequestError",
    "SourceError",
    "TemplateError",
    "TramontaneError",
    "UnsupportedError",
    "ValidationError",
]


class TramontaneError(ValueError):
    """Root of all deliberate errors."""


class UnsupportedError(TramontaneError):
    """Asked for something this release does not do yet; the message says what to do instead."""


class PluginError(TramontaneError):
    """A plug-in is absent, broken or in conflict with another."""


class MissingPluginError(PluginError):
    """Nothing installed provides what was asked; the message names what to install."""


class PluginConflictError(PluginError):
    """Two plug-ins claim one name; the message names both distributions."""


class ModelLoadError(TramontaneError):
    """The model could not be brought up."""


class SourceError(ModelLoadError):
    """Files or repository not found, not permitted, or not reachable."""


class ConfigError(ModelLoadError):
    """A configuration value that the architecture's arithmetic does not cover."""


class CheckpointError(ModelLoadError):
    """A weight file is corrupt, truncated, or does not fit the architecture."""


class MemoryPlanError(ModelLoadError):
    """Weights and the requested cache do not fit; the message says what would."""


class RequestError(TramontaneError):
    """This request cannot be served; the engine and all other requests go on."""


class ValidationError(RequestError):
    """A value of the request is out of range or contradicts another."""


class PromptTooLongError(ValidationError):
    """The context does not hold the prompt and an answer."""


class TemplateError(RequestError):
    """The chat template is absent, invalid, or refused the messages."""


class ModelNotFoundError(RequestError):
    """No model of that id is registered with the runner."""


class ModelKindError(RequestError):
    """The model serves another kind of request; the message names the right method."""


class EngineError(TramontaneError):
    """The engine could not go on with a request."""


class EngineClosedError(EngineError):
    """The runner, or the engine behind it, has been closed."""

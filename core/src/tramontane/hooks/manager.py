"""Finds plug-ins, refuses the bad ones one by one, and looks up what the good ones declare.

pluggy's own loading stops at the first broken plug-in, lets two plug-ins claim one name and keeps
quiet about misspelt hooks; so plug-ins are loaded here, in a fixed order, each on its own.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from types import ModuleType
from typing import Any, TypeVar, get_args

import pluggy
from attrs import frozen

from tramontane.errors import MissingPluginError, PluginConflictError, PluginError
from tramontane.hooks import hookspecs
from tramontane.hooks.candidates import Candidate, built_in, given, installed
from tramontane.hooks.hookspecs import GROUP
from tramontane.hooks.known import hint_for
from tramontane.hooks.specs import (
    API_VERSION,
    AdapterSpec,
    ArchitectureSpec,
    CheckpointSpec,
    ExecutorSpec,
    KernelSpec,
    ModelKind,
    ModelSpec,
    PipelineSpec,
    QuantizerSpec,
    ToolFormatSpec,
    ToolSource,
    TransportSpec,
)

log = logging.getLogger(__name__)

SPEC_HOOKS: dict[str, type[Any]] = {
    "architectures": ArchitectureSpec,
    "pipelines": PipelineSpec,
    "quantizers": QuantizerSpec,
    "checkpoint_formats": CheckpointSpec,
    "adapters": AdapterSpec,
    "transports": TransportSpec,
    "kernels": KernelSpec,
    "executors": ExecutorSpec,
    "models": ModelSpec,
    "tool_formats": ToolFormatSpec,
}
"""Kind of spec → its class. The hook is called ``tramontane_<kind>``."""

S = TypeVar("S")


@frozen
class PluginInfo:
    """A plug-in in use: entry-point name, module, distribution, version and what it declares."""

    name: str
    module: str
    distribution: str
    version: str
    provides: dict[str, tuple[str, ...]]
    hooks: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"


@frozen
class PluginFailure:
    """A plug-in that was refused, and why."""

    name: str
    module: str
    distribution: str
    version: str
    cause: BaseException

    def __str__(self) -> str:
        kind = type(self.cause).__name__
        return f"{self.name} ({self.distribution} {self.version}): {kind}: {self.cause}"


class PluginManager:
    """Every plug-in of this process, and lookups over what they declare.

    Args:
        extra: modules or objects with hook implementations that are not packaged.
        discover: whether to look for installed plug-ins.
        strict: raise at the first refused plug-in instead of recording it. None reads the
            environment variable ``TRAMONTANE_STRICT_PLUGINS``.

    Raises:
        PluginError: a plug-in of ``extra`` is refused, or any in strict mode.
    """

    def __init__(
        self, extra: Iterable[Any] = (), *, discover: bool = True, strict: bool | None = None
    ) -> None:
        if strict is None:
            strict = os.environ.get("TRAMONTANE_STRICT_PLUGINS", "") not in ("", "0")
        self._pluggy = pluggy.PluginManager(GROUP)
        self._pluggy.add_hookspecs(hookspecs)
        self._specs: dict[str, list[Any]] = {kind: [] for kind in SPEC_HOOKS}
        self._claims: dict[tuple[str, str], PluginInfo] = {}
        self._infos: list[PluginInfo] = []
        self._failures: list[PluginFailure] = []
        self._owner: dict[int, PluginInfo] = {}
        self._resolved: dict[str, Any] = {}
        for candidate in (*built_in(), *(installed() if discover else ())):
            self._add(candidate, strict=strict)
        for plugin in extra:
            self._add(given(plugin), strict=True)

    # Loading ------------------------------------------------------------------------------

    def _add(self, candidate: Candidate, *, strict: bool) -> None:
        plugin = None
        try:
            plugin = candidate.load()
            self._register(candidate, plugin)
        # A plug-in may fail in any way it likes; the others must still load.
        except (Exception, SystemExit) as cause:
            if plugin is not None and self._pluggy.is_registered(plugin):
                self._pluggy.unregister(plugin)
            failure = PluginFailure(
                candidate.name, candidate.module, candidate.distribution, candidate.version, cause
            )
            if strict:
                if isinstance(cause, PluginError):
                    raise
                raise PluginError(f"plug-in {failure}") from cause
            self._failures.append(failure)
            log.warning("plug-in refused: %s", failure)

    def _register(self, candidate: Candidate, plugin: Any) -> None:
        self._pluggy.register(plugin, name=f"{candidate.distribution}:{candidate.name}")
        hooks = self._checked_hooks(plugin)
        specs = {kind: self._call(plugin, kind) for kind in SPEC_HOOKS}
        info = PluginInfo(
            candidate.name,
            candidate.module,
            candidate.distribution,
            candidate.version,
            {kind: tuple(s.name for s in found) for kind, found in specs.items() if found},
            hooks,
        )
        claims: dict[tuple[str, str], PluginInfo] = {}
        for kind, found in specs.items():
            for spec in found:
                self._check(info, kind, spec)
                for claim in spec.claims():
                    other = self._claims.get((kind, claim)) or claims.get((kind, claim))
                    if other is not None:
                        raise PluginConflictError(
                            f"{info} and {other} both provide {claim!r} ({kind}); "
                            f"uninstall one of them"
                        )
                    claims[kind, claim] = info
        self._claims.update(claims)
        for kind, found in specs.items():
            self._specs[kind].extend(found)
            self._owner.update((id(spec), info) for spec in found)
        self._infos.append(info)

    def _checked_hooks(self, plugin: Any) -> tuple[str, ...]:
        """Names of the hooks a plug-in implements, all of which must exist."""
        known = sorted(name for name in vars(hookspecs) if name.startswith(f"{GROUP}_"))
        callers = self._pluggy.get_hookcallers(plugin) or []
        implemented = {caller.name for caller in callers}
        named = {
            n for n in dir(plugin) if n.startswith(f"{GROUP}_") and callable(getattr(plugin, n))
        }
        for name in sorted(named | implemented):
            near = get_close_matches(name, known, n=1)
            if name not in known:
                hint = f"; did you mean {near[0]}?" if near else f"; hooks are {', '.join(known)}"
                raise PluginError(f"there is no hook {name}{hint}")
            if name not in implemented:
                raise PluginError(f"{name} lacks the @hookimpl decorator")
        return tuple(sorted(implemented))

    def _call(self, plugin: Any, kind: str) -> list[Any]:
        caller = getattr(self._pluggy.hook, f"{GROUP}_{kind}")
        for implementation in caller.get_hookimpls():
            if implementation.plugin is plugin:
                return list(implementation.function() or ())
        return []

    def _check(self, info: PluginInfo, kind: str, spec: Any) -> None:
        expected = SPEC_HOOKS[kind]
        if not isinstance(spec, expected):
            raise PluginError(
                f"tramontane_{kind} of {info} must give {expected.__name__} objects, "
                f"not {type(spec).__name__}"
            )
        if spec.api_version != API_VERSION:
            raise PluginError(
                f"{spec.name} of {info} is written for version {spec.api_version} of the plug-in "
                f"contract; this is version {API_VERSION}: install a matching {info.distribution}"
            )

    # What exists --------------------------------------------------------------------------

    def plugins(self) -> list[PluginInfo]:
        """Plug-ins in use, core's own first."""
        return list(self._infos)

    def failures(self) -> list[PluginFailure]:
        """Plug-ins that were refused."""
        return list(self._failures)

    def fingerprint(self) -> tuple[tuple[str, str, str], ...]:
        """Names and versions, for a worker process to compare with its parent."""
        return tuple((i.distribution, i.name, i.version) for i in self._infos)

    def owner(self, spec: Any) -> PluginInfo:
        """The plug-in that declared ``spec``."""
        return self._owner[id(spec)]

    def specs(self, kind: str) -> list[Any]:
        """All specs of a kind: a key of `SPEC_HOOKS`."""
        return list(self._specs[kind])

    # Lookups ------------------------------------------------------------------------------

    def find(self, kind: str, name: str) -> Any | None:
        """The spec of ``kind`` that claims ``name``, or None."""
        wanted = name.lower()
        return next((s for s in self._specs[kind] if wanted in s.claims()), None)

    def get(self, kind: str, name: str) -> Any:
        """The spec of ``kind`` that claims ``name``.

        Raises:
            MissingPluginError: nothing installed claims it; names what to install and what
                there is. A refused plug-in that may have provided it is chained as the cause.
        """
        spec = self.find(kind, name)
        if spec is None:
            raise self.missing(kind, name)
        return spec

    def missing(self, kind: str, name: str) -> MissingPluginError:
        """The error that says that nothing installed provides ``name``."""
        there = sorted(spec.name for spec in self._specs[kind])
        noun = kind.replace("_", " ")
        hint = hint_for(kind, name) or f"no installed plug-in provides {name!r}"
        message = f"{hint}. Installed {noun}: {', '.join(there) if there else 'none'}."
        if self._failures:
            message += f" Refused plug-ins: {'; '.join(map(str, self._failures))}."
        error = MissingPluginError(message)
        if self._failures:
            error.__cause__ = self._failures[-1].cause
        return error

    def architecture(self, name: str, kind: ModelKind = "text") -> ArchitectureSpec:
        """By our name (``"Llama"``) or by Hugging Face name (``"LlamaForCausalLM"``).

        Args:
            kind: preferred where several kinds of model have weights of that Hugging Face name.

        Raises:
            MissingPluginError: as `get`.
        """
        spec = self.find_architecture(name, kind)
        if spec is None:
            raise self.missing("architectures", name)
        return spec

    def find_architecture(self, name: str, kind: ModelKind = "text") -> ArchitectureSpec | None:
        """As `architecture`; None where nothing installed claims the name."""
        kinds = (f"{kind}:", "", *(f"{other}:" for other in get_args(ModelKind)))
        found = (self.find("architectures", f"{prefix}{name}") for prefix in kinds)
        return next((spec for spec in found if spec is not None), None)

    def checkpoint_for(self, filename: str) -> CheckpointSpec | None:
        """The format that reads files of this ending, or None."""
        lowered = filename.lower()
        for spec in self._specs["checkpoint_formats"]:
            if lowered.endswith(tuple(spec.suffixes)):
                found: CheckpointSpec = spec
                return found
        return None

    def default_model(self) -> ModelSpec | None:
        """The travelling model that serves when the user names none, or None."""
        return next((spec for spec in self._specs["models"] if spec.default), None)

    def resolve(self, spec: Any) -> Any:
        """Import what ``spec.target`` names.

        Raises:
            PluginError: the import failed; the plug-in's own error is chained.
        """
        target: str = spec.target
        if target not in self._resolved:
            module_name, _, attribute = target.partition(":")
            try:
                module: ModuleType = importlib.import_module(module_name)
                self._resolved[target] = getattr(module, attribute)
            except (ImportError, AttributeError) as cause:
                owner = self._owner.get(id(spec))
                raise PluginError(
                    f"{spec.name} cannot be loaded: {target} of {owner} failed with "
                    f"{type(cause).__name__}: {cause}"
                ) from cause
        return self._resolved[target]

    # Calls that carry arguments -----------------------------------------------------------

    def _each(self, hook: str, arguments: Mapping[str, Any]) -> Iterator[Any]:
        """Results of one hook, plug-in by plug-in; a failing one is logged and left out."""
        for implementation in reversed(getattr(self._pluggy.hook, hook).get_hookimpls()):
            try:
                yield implementation.function(*(arguments[a] for a in implementation.argnames))
            # As in _add: whatever a plug-in does, the others get their turn.
            except Exception:
                log.exception("%s of %s failed", hook, implementation.plugin_name)

    def observes(self, hook: str) -> bool:
        """Whether any plug-in implements this hook."""
        return bool(getattr(self._pluggy.hook, hook).get_hookimpls())

    def tool_sources(self, config: Mapping[str, Any]) -> list[ToolSource]:
        """Tools of every plug-in for a runner with these settings."""
        results = self._each("tramontane_tool_sources", {"config": config})
        return [source for found in results for source in found or ()]

    def add_commands(self, cli: Any) -> None:
        """Let every plug-in add its subcommands."""
        for _ in self._each("tramontane_commands", {"cli": cli}):
            pass

    def model_loaded(self, info: Mapping[str, Any]) -> None:
        """Tell observers that a model is ready."""
        for _ in self._each("tramontane_model_loaded", {"info": info}):
            pass

    def request_finished(self, request: Any, usage: Any) -> None:
        """Tell observers that a request has ended."""
        arguments = {"request": request, "usage": usage}
        for _ in self._each("tramontane_request_finished", arguments):
            pass


@cache
def plugin_manager() -> PluginManager:
    """The process's plug-ins, discovered at the first call."""
    return PluginManager()

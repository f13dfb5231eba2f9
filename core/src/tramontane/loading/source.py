"""Where a model's files come from: a travelling model, a local directory, or the hub.

All access to the hub is in this file, and all of it goes through ``huggingface_hub``: its cache,
its offline switch, its progress bars.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path

from attrs import frozen

from tramontane.errors import SourceError
from tramontane.hooks import ModelSpec, PluginManager, plugin_manager
from tramontane.loading.weight_files import choose_weights, named_files

log = logging.getLogger(__name__)

SIDE_FILES = ("*.json", "*.jinja", "tokenizer.model", "*.tiktoken", "merges.txt", "vocab.txt")
"""Configuration, tokenizer and template files, everywhere in a repository."""
SAFETENSORS = ("model.safetensors", "model-*-of-*.safetensors")
TORCH = tuple(f"pytorch_model{tail}" for tail in (".bin", "-*-of-*.bin", "-*-of-*.pt*"))

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


@frozen
class ModelFiles:
    """What `resolve` found.

    Attributes:
        directory: holds configuration, tokenizer and template.
        weights: weight files, all shards in order; empty when none were asked for.
    """

    directory: Path
    weights: tuple[Path, ...] = ()


def resolve(
    model_id: str,
    *,
    token_source: str = "cache",
    cache_path: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    files: Sequence[str] | None = None,
    weights: bool = True,
    beside: Sequence[str] = (),
    plugins: PluginManager | None = None,
) -> ModelFiles:
    """Find a model's files, fetching them from the hub when they are nowhere else.

    A name is looked for among the models that travel in plug-ins, then on disk (a directory, or
    one weight file), then on the hub. When the hub cannot be reached its cache serves.

    Args:
        model_id: name, path or hub id.
        token_source: ``literal:X``, ``env:NAME``, ``path:FILE``, ``cache`` or ``none``.
        cache_path: hub cache; None for huggingface_hub's own (``HF_HUB_CACHE``, ``HF_HOME``).
        revision: branch, tag or commit on the hub.
        files: names of the weight files, where the user chose them (GGUF); None finds them.
        weights: False when only tokenizer and configuration are wanted.
        beside: patterns of further files that the hub is asked for.
        plugins: where travelling models and formats are looked up; None for the process's.

    Raises:
        SourceError: not found, not permitted, not reachable, or without weights.
    """
    plugins = plugins or plugin_manager()
    spec = plugins.find("models", model_id)
    local = _travelling(spec) if spec is not None else Path(model_id).expanduser()
    if local.is_file() and files is None:
        return ModelFiles(local.parent, (local,) if weights else ())
    if local.is_dir():
        directory = local
    elif _HUB_ID.fullmatch(model_id):
        token = read_token(token_source)
        directory = _from_hub(
            model_id, token, cache_path, revision, files, weights=weights, beside=beside
        )
    else:
        raise SourceError(
            f"{model_id!r} is neither an existing directory or file nor a hub id "
            f"(name or owner/name)"
        )
    if not weights:
        return ModelFiles(directory)
    if files is not None:
        return ModelFiles(directory, named_files(directory, files))
    return ModelFiles(directory, choose_weights(directory, plugins))


def read_token(token_source: str) -> str | None:
    """The hub token that ``token_source`` names; None when there is none there.

    Raises:
        SourceError: unknown kind of source.
    """
    kind, _, value = token_source.partition(":")
    match kind:
        case "none":
            return None
        case "literal":
            return value
        case "env":
            token = os.environ.get(value)
        case "path":
            try:
                token = Path(value).expanduser().read_text(encoding="utf-8").strip()
            except OSError:
                token = None
        case "cache":
            from huggingface_hub import get_token

            token = os.environ.get("HF_TOKEN") or os.environ.get("HF_HUB_TOKEN") or get_token()
        case _:
            raise SourceError(
                f"token_source {token_source!r} is unknown; use literal:<token>, env:<variable>, "
                f"path:<file>, cache or none"
            )
    if not token:
        log.info("token_source %s holds no token; going on without", token_source)
    return token or None


def _travelling(spec: ModelSpec) -> Path:
    """The folder of a model that a distribution carries."""
    path = Path(str(resources.files(spec.package))) / spec.path
    if not path.exists():
        raise SourceError(
            f"model {spec.name!r} should travel in package {spec.package}, but {path} does not "
            f"exist; reinstall that package"
        )
    return path


def _from_hub(
    model_id: str,
    token: str | None,
    cache_path: str | os.PathLike[str] | None,
    revision: str | None,
    files: Sequence[str] | None,
    *,
    weights: bool,
    beside: Sequence[str],
) -> Path:
    """The snapshot directory of a hub repository, with everything that was asked for in it.

    Without a choice of files, ``.bin`` weights are fetched only where there is no safetensors.
    """

    def fetch(patterns: Iterable[str]) -> Path:
        return _snapshot(model_id, token, cache_path, revision, [*SIDE_FILES, *beside, *patterns])

    if not weights:
        return fetch(())
    if files is not None:
        directory = fetch(files)
        absent = [name for name in files if not (directory / name).is_file()]
        if absent:
            there = _repository_files(model_id, token, revision) or _listing(directory)
            suffix = Path(absent[0]).suffix
            alike = [name for name in there if name.endswith(suffix)] or there
            raise SourceError(
                f"{model_id} has no file {', '.join(absent)}; there are: {', '.join(alike)}"
            )
        return directory
    directory = fetch(SAFETENSORS)
    if not any(directory.glob("*.safetensors")):
        directory = fetch(TORCH)
    return directory


def _snapshot(
    model_id: str,
    token: str | None,
    cache_path: str | os.PathLike[str] | None,
    revision: str | None,
    patterns: list[str],
) -> Path:
    """``snapshot_download`` with errors that say what to do."""
    import huggingface_hub
    from huggingface_hub import constants, errors

    cache = Path(cache_path).expanduser() if cache_path else Path(constants.HF_HUB_CACHE)
    wanted = f"{model_id} (revision {revision})" if revision else model_id
    try:
        return Path(
            huggingface_hub.snapshot_download(
                model_id,
                revision=revision,
                cache_dir=cache,
                token=token or False,
                allow_patterns=patterns,
            )
        )
    except errors.GatedRepoError as cause:
        raise SourceError(
            f"{wanted} is gated: accept its terms on its hub page, then give a token of that "
            f"account with token_source (env:HF_TOKEN, literal:<token>, path:<file>) or "
            f"`hf auth login`"
        ) from cause
    except errors.RevisionNotFoundError as cause:
        raise SourceError(f"{model_id} has no revision {revision!r} on the hub") from cause
    except errors.RepositoryNotFoundError as cause:
        raise SourceError(
            f"{model_id} is not a directory here, and not a repository on the hub that "
            f"{'this token' if token else 'an anonymous user'} may see. Check the name; for a "
            f"private repository give a token with token_source (env:HF_TOKEN, literal:<token>, "
            f"path:<file>)"
        ) from cause
    except errors.LocalEntryNotFoundError as cause:
        raise SourceError(
            f"{wanted} is not a directory here, the hub cannot be reached (or HF_HUB_OFFLINE is "
            f"set), and the cache at {cache} does not hold all of it. Fetch it where there is a "
            f"network, with `hf download {model_id}`, and copy the cache; or give a local "
            f"directory. {cause}"
        ) from cause
    # The hub's client changed its HTTP library between majors, and with it what a lost
    # connection, a proxy or a refused download raises.
    except Exception as cause:
        status = getattr(getattr(cause, "response", None), "status_code", None)
        advice = "; the token is missing or not allowed, see token_source"
        raise SourceError(
            f"{wanted} could not be fetched from the hub: {type(cause).__name__}: {cause}"
            f"{advice if status in (401, 403) else ''}"
        ) from cause


def _repository_files(model_id: str, token: str | None, revision: str | None) -> list[str]:
    """Names of a repository's files for an error message; empty when they cannot be had."""
    from huggingface_hub import HfApi

    try:
        return sorted(HfApi(token=token or False).list_repo_files(model_id, revision=revision))
    # The message this is for must not be lost to another failure.
    except Exception:
        return []


def _listing(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())

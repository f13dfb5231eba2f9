"""Runner settings as mistral.rs's TOML files have them."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from tramontane.api.config import AnyMoeConfig
from tramontane.api.convert import check_keys, structure
from tramontane.errors import SourceError, ValidationError
from tramontane.which import Which


def read_selector_file(path: str | Path) -> dict[str, Any]:
    """Arguments of `Runner` from a TOML file: ``[model]`` becomes ``which``, ``[speculative]``
    ``which_draft`` and ``speculative_gamma``, ``[anymoe]`` ``anymoe_config``.

    Raises:
        SourceError: the file cannot be read.
        ValidationError: its content is wrong; the message names file and key.
    """
    try:
        data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise SourceError(f"selector file {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValidationError(f"selector file {path}: not valid TOML: {error}") from error
    try:
        return _runner_arguments(data)
    except ValidationError as error:
        raise ValidationError(f"selector file {path}: {error}") from error


def _runner_arguments(data: dict[str, Any]) -> dict[str, Any]:
    check_keys(data, {"model": True, "speculative": False, "anymoe": False}, "selector")
    arguments: dict[str, Any] = {"which": Which.from_dict(data["model"])}
    if "speculative" in data:
        speculative = data["speculative"]
        check_keys(speculative, {"draft_model": True, "gamma": False}, "[speculative]")
        arguments["which_draft"] = Which.from_dict(speculative["draft_model"])
        if "gamma" in speculative:
            arguments["speculative_gamma"] = speculative["gamma"]
    if "anymoe" in data:
        anymoe = dict(data["anymoe"])
        arguments["anymoe_config"] = structure({**anymoe.pop("config", {}), **anymoe}, AnyMoeConfig)
    return arguments

"""Whether a file says what the model is: its keys are read back, and compared."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from tramontane.errors import ConfigError
from tramontane.hooks import ModelKind, plugin_manager
from tramontane.nn.rope import RopeParameters, inverse_frequencies
from tramontane_gguf.configuration import configuration
from tramontane_gguf.families import Family
from tramontane_gguf.metadata import Metadata

_FREE = frozenset({"max_position_embeddings", "tie_word_embeddings"})
"""Fields that files may state otherwise: models without positions have any length, and tied is what
lacks a head."""

_OF_EXPERTS = frozenset({"num_experts_per_tok", "intermediate_size"})
"""Fields that mean nothing in a hybrid without experts, whose MLP is the shared one."""


_ALIKE = frozenset({("Mistral", "Llama")})
"""Models and those that the same family is read as, where that makes no difference."""

log = logging.getLogger(__name__)


def check_sayable(
    config: Mapping[str, Any],
    family: Family,
    keys: Mapping[str, Any],
    *,
    names: Sequence[str],
    factors: Mapping[str, Tensor],
) -> None:
    """Compare a model's configuration with what readers will make of its file.

    Args:
        config: of the model.
        family: what it is written as.
        keys: of the file, without the architecture's prefix.
        names: of the file's tensors.
        factors: tensors with divisors of frequencies.

    Raises:
        ConfigError: they differ; names the first value that does.
    """
    plugins = plugin_manager()
    kind: ModelKind = "embedding" if "pooling_type" in keys else "text"
    spec = plugins.find_architecture(str(config["architectures"][0]), kind)
    if spec is None:
        return  # nobody here can run it, and say what matters
    values = {f"{family.name}.{key}": _stored(value) for key, value in keys.items()}
    again = configuration(
        Metadata(Path("the file"), values),
        family,
        names=names,
        vocab_size=int(config["vocab_size"]),
        factors=lambda name: factors[name].tolist() if name in factors else None,
    )
    found = plugins.find_architecture(str(again["architectures"][0]), kind)
    if found is None or (found is not spec and (spec.name, found.name) not in _ALIKE):
        raise ConfigError(f"{spec.name} would be read as {found.name if found else 'nothing'}")
    wanted = plugins.resolve(spec).Config.from_dict(config)
    given = plugins.resolve(found).Config.from_dict(again)
    head_dim = int(getattr(wanted, "head_dim", 0))
    free = _free(wanted)
    for field in attrs.fields(type(wanted)):
        ours, theirs = getattr(wanted, field.name), getattr(given, field.name, None)
        if field.name == "sliding_window" and not hasattr(given, field.name) and ours:
            log.warning(
                "GGUF has no word for the window of a %s: a text longer than its %d tokens will "
                "be read otherwise, by llama.cpp too", spec.name, ours,
            )  # fmt: skip
        elif field.name not in free and not _same(ours, theirs, head_dim):
            raise ConfigError(
                f"a GGUF file of family {family.name} cannot say that {field.name} is {ours!r}; "
                f"it would be read as {theirs!r}"
            )


def _free(config: Any) -> frozenset[str]:
    """Fields that may differ, since this model does not use them."""
    free = set(_FREE)
    if hasattr(config, "hidden_activation"):
        free.add("hidden_act")
    if getattr(config, "num_local_experts", None) == 0:
        free |= _OF_EXPERTS
    if "linear_attention" not in getattr(config, "layer_types", ()):
        free |= {f.name for f in attrs.fields(type(config)) if f.name.startswith("mamba_")}
    return frozenset(free)


def _stored(value: Any) -> Any:
    if isinstance(value, list) and value and not isinstance(value[0], str):
        return np.array(value)
    return value


def _same(ours: Any, theirs: Any, head_dim: int) -> bool:
    if isinstance(ours, RopeParameters) and isinstance(theirs, RopeParameters):
        return _rotates_alike(ours, theirs, head_dim)
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        return ours.keys() == theirs.keys() and all(
            _same(ours[key], theirs[key], head_dim) for key in ours
        )
    if isinstance(ours, (tuple, list)) and isinstance(theirs, (tuple, list)):
        pairs = zip(ours, theirs, strict=False)
        return len(ours) == len(theirs) and all(_same(a, b, head_dim) for a, b in pairs)
    if isinstance(ours, float) and isinstance(theirs, (int, float)):
        return math.isclose(ours, theirs, rel_tol=1e-6)
    return bool(ours == theirs)


def _rotates_alike(ours: RopeParameters, theirs: RopeParameters, head_dim: int) -> bool:
    """By what is multiplied with, since parameters may be said in several ways."""
    limit = ours.original_max_position_embeddings
    for length in (1, limit, limit + 1, ours.max_position_embeddings):
        (a, a_scale), (b, b_scale) = (
            inverse_frequencies(rope, head_dim, length) for rope in (ours, theirs)
        )
        if a.shape != b.shape or not torch.allclose(a, b, rtol=1e-4, atol=0):
            return False
        if not math.isclose(a_scale, b_scale, rel_tol=1e-5):
            return False
    return True

"""A stored model to UQFF: quantized as while loading, then written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from tramontane.hooks import ModelKind, PluginManager
from tramontane.loading.draft import Draft
from tramontane.loading.dtype import choose_dtype, survey
from tramontane.loading.in_situ import in_situ_quantizer
from tramontane.loading.opening import find_architecture
from tramontane.loading.request import BoundModel
from tramontane.loading.stored import StoredModel
from tramontane.protocols import InSituSettings
from tramontane.protocols.pipeline import Progress
from tramontane_uqff.writer import check_output, write_bound


def convert(
    model: StoredModel,
    path: Path,
    type_name: str,
    plugins: PluginManager,
    *,
    importance: Mapping[str, Tensor] | None = None,
    on_progress: Progress | None = None,
) -> None:
    """Write ``model`` as UQFF, each weight of the type that in-situ quantization gives it.

    Args:
        model: an opened model.
        path: ``out/q4k.uqff``, see `tramontane_uqff.writer.write_bound`.
        type_name: a type of in-situ quantization, ``"Q4K"``.
        plugins: where formats and the policy are.
        importance: module name → importance of columns.
        on_progress: told while weights are quantized.

    Raises:
        ValidationError: no such type, or the name does not end in ``.uqff``.
        MissingPluginError: tramontane-isq or a format is not installed.
        ModelKindError: neither a text nor an embedding model.
    """
    check_output(path)
    device = torch.device("cpu")
    settings = InSituSettings(type_name=type_name, importance=importance)
    policy = in_situ_quantizer(plugins)
    policy.check(settings, device)
    kind: ModelKind = "embedding" if (model.directory / "modules.json").is_file() else "text"
    spec = find_architecture(model.config, None, plugins, kind=kind)
    architecture = plugins.resolve(spec)
    draft = Draft.of(architecture, architecture.Config.from_dict(model.config), model.checkpoint)
    packing = policy.plan(draft.model, draft.arrangement.aliases, settings, device)
    inventory = survey(model.checkpoint, draft.arrangement.stored)
    bound = BoundModel(
        model=draft.bind(
            model.checkpoint,
            dtype=choose_dtype("auto", inventory, device),
            device=device,
            in_situ=packing,
            on_progress=on_progress,
        ),
        arrangement=draft.arrangement,
        checkpoint=model.checkpoint,
        config=model.config,
        directory=model.directory,
        tokenizer=model.tokenizer,
    )
    write_bound(bound, path, type_name, plugins)

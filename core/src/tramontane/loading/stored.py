"""A model as it is stored, opened but not loaded: what converters and writers start from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import frozen

from tramontane.loading.opening import (
    config_data,
    find_files,
    find_tokenizer,
    find_weights,
    open_weights,
    quantized_view,
)
from tramontane.loading.request import LoadRequest
from tramontane.protocols import Checkpoint
from tramontane.text.chat_template import find_chat_template
from tramontane.text.tokenizer import Tokenizer


@frozen(kw_only=True)
class StoredModel:
    """An opened model.

    Attributes:
        name: what it is called.
        directory: holds configuration and tokenizer.
        checkpoint: its weights, under the names of the unquantized model.
        config: ``config.json``, normalized.
        tokenizer: ready to encode.
        chat_template: its source, or None.
    """

    name: str
    directory: Path
    checkpoint: Checkpoint
    config: Mapping[str, Any]
    tokenizer: Tokenizer
    chat_template: str | None


@contextmanager
def open_stored(request: LoadRequest) -> Iterator[StoredModel]:
    """Open a model's files; they are closed with the context.

    Raises:
        ModelLoadError: as for `tramontane.loading.loader.load_text`.
    """
    files = find_weights(request)
    side = files.directory
    if request.tok_model_id is not None:
        side = find_files(request, request.tok_model_id, weights=False).directory
    checkpoint = open_weights(request, files)
    try:
        data = config_data(files.directory, checkpoint)
        checkpoint = quantized_view(checkpoint, data, request.plugins)
        embedded = checkpoint.tokenizer()
        tokenizer = find_tokenizer(request, side, embedded, int(data["vocab_size"]))
        template = find_chat_template(
            side,
            chat_template=request.chat_template,
            jinja_explicit=request.jinja_explicit,
            embedded=embedded.chat_template if embedded else None,
            special_tokens=tokenizer.special_tokens,
        )
        yield StoredModel(
            name=Path(request.model_id).name,
            directory=side,
            checkpoint=checkpoint,
            config=data,
            tokenizer=tokenizer,
            chat_template=None if template is None else template.source(),
        )
    finally:
        checkpoint.close()

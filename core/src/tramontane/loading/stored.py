"""A model as it is stored, opened but not loaded: what converters and writers start from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import frozen

from tramontane.loading.opening import find_template, find_tokenizer, find_weights, opened
from tramontane.loading.request import LoadRequest
from tramontane.loading.sentence_modules import FILES, MODULES
from tramontane.protocols import Checkpoint
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
    with opened(request) as model:
        if (model.directory / MODULES).is_file():  # an embedding model, of which these are a part
            find_weights(request, beside=FILES)
        tokenizer = find_tokenizer(
            request, model.side, model.tokenizer, int(model.config["vocab_size"])
        )
        template = find_template(request, model, tokenizer)
        yield StoredModel(
            name=Path(request.model_id).name,
            directory=model.side,
            checkpoint=model.checkpoint,
            config=model.config,
            tokenizer=tokenizer,
            chat_template=None if template is None else template.source(),
        )

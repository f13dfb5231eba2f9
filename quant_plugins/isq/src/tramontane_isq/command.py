"""``tramontane quantize`` and ``calibrate``: a model, or what its quantizing goes by, to a file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tramontane.errors import UnsupportedError, ValidationError
from tramontane.hooks import plugin_manager

if TYPE_CHECKING:
    from tramontane.protocols.pipeline import Progress


def quantize(
    model: Annotated[
        str, typer.Option("--model", "-m", help="Directory, file or hub id of the model.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write, e.g. x.gguf.")],
    type_name: Annotated[str, typer.Option("--type", "-t", help="E.g. Q4_K_M, Q8_0, F16.")],
    imatrix: Annotated[
        Path | None, typer.Option(help="Importance matrix: .gguf, .dat, .imatrix or .cimatrix.")
    ] = None,
    tok_model_id: Annotated[
        str | None, typer.Option(help="Where the tokenizer comes from, if not from the model.")
    ] = None,
    token_source: Annotated[str, typer.Option(help="Where the hub's token comes from.")] = "cache",
    force: Annotated[bool, typer.Option("--force", help="Replace a file that exists.")] = False,
) -> None:
    """Write a model to a file, quantized; the file is replaced only when the new one is whole."""
    plugins = plugin_manager()
    spec = plugins.checkpoint_for(output.name)
    if spec is None:
        raise plugins.missing("checkpoint_formats", output.suffix.lstrip(".") or output.name)
    writer = plugins.resolve(spec)()
    if not hasattr(writer, "write"):
        raise UnsupportedError(
            f"{spec.name} files can be read but not written; end the name of the output in .gguf "
            f"or .uqff"
        )
    # A format of several files writes them beside the name it is given.
    first = writer.first_file(output) if hasattr(writer, "first_file") else output
    if first.exists() and not force:
        raise ValidationError(f"{first} exists already; give --force to replace it")
    if not output.parent.is_dir():
        raise ValidationError(f"{output.parent} is no directory; make it first")

    from tramontane.loading.loader import LoadRequest
    from tramontane.loading.stored import open_stored
    from tramontane_isq.imatrix import read_imatrix

    options: dict[str, Any] = {}
    if imatrix is not None:
        options["importance"] = read_imatrix(imatrix, plugins).by_gguf_name(every=True)
    files = None
    path = Path(model).expanduser()
    if path.is_file():
        model, files = str(path.parent), [path.name]
    request = LoadRequest(
        model_id=model,
        files=files,
        tok_model_id=tok_model_id,
        token_source=token_source,
        plugins=plugins,
    )
    with open_stored(request) as stored, progress() as on_progress:
        writer.write(stored, output, type_name, on_progress=on_progress, **options)
    typer.echo(f"{first}: {first.stat().st_size / 2**20:.1f} MiB", err=True)


def calibrate(
    model: Annotated[str, typer.Option("--model", "-m", help="Directory or hub id of the model.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A .cimatrix or .gguf file.")],
    text: Annotated[Path, typer.Option("--text", help="What the model reads, UTF-8.")],
    force: Annotated[bool, typer.Option("--force", help="Replace a file that exists.")] = False,
) -> None:
    """Let a model read a text, and write the importance of its columns to a file."""
    if output.suffix.lower() not in (".cimatrix", ".gguf"):
        raise ValidationError(f"{output} must end in .cimatrix or .gguf, which says its form")
    if output.exists() and not force:
        raise ValidationError(f"{output} exists already; give --force to replace it")
    if not output.parent.is_dir():
        raise ValidationError(f"{output.parent} is no directory; make it first")

    from tramontane.pipeline.text import TextPipeline
    from tramontane.protocols.pipeline import PipelineOptions
    from tramontane.which import Which
    from tramontane_isq.imatrix import Imatrix, write_cimatrix, write_gguf

    plugins = plugin_manager()
    pipeline = TextPipeline.load(Which.Plain(model), PipelineOptions(max_seqs=1, plugins=plugins))
    try:
        pipeline.calibrate(text)
        found = Imatrix(values=pipeline.live_weights.statistics(), datasets=(text.name,))
    finally:
        pipeline.close()
    if output.suffix.lower() == ".gguf":
        named = Imatrix(values=found.by_gguf_name(), datasets=found.datasets)
        write_gguf(output, named, plugins)
    else:
        write_cimatrix(output, found.values)
    typer.echo(f"{output}: statistics of {len(found.values)} weights", err=True)


@contextmanager
def progress() -> Iterator[Progress | None]:
    """A bar on the terminal that says how far the work is; None where nobody watches."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich import progress as bars
    from rich.console import Console
    from rich.markup import escape

    columns = (
        bars.BarColumn(),
        bars.DownloadColumn(),
        bars.TimeRemainingColumn(),
        bars.TextColumn("{task.description}"),
    )
    with bars.Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("", total=None)

        def on_progress(done: int, total: int, name: str) -> None:
            shown.update(task, completed=done, total=total, description=escape(name))

        yield on_progress

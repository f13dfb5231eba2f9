"""Registers the embedded demo model, the default where no model is named."""

from collections.abc import Iterator

from tramontane.hooks import ModelSpec, hookimpl


@hookimpl
def tramontane_models() -> Iterator[ModelSpec]:
    """Yield the one model this distribution carries."""
    yield ModelSpec(
        name="tramontane/demo",
        package="tramontane_demo_model",
        path="model",
        default=True,
        description="Llama of 2.9 million parameters: small talk, sums, capitals, tool calls",
    )

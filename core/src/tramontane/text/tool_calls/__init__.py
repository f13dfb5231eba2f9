"""Tool calls in generated text: one module a way of writing them."""

from tramontane.text.tool_calls.choose import choose_format, shown_tokens

__all__ = ["choose_format", "shown_tokens"]

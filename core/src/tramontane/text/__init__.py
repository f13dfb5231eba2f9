"""Everything between text and token ids: tokenizers, chat templates, incremental text.

Imports no torch, so that commands which only look at text start quickly; and nothing at all here,
because discovery passes through to the plug-in module of `tool_calls`.
"""

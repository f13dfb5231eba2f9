"""Weight rules for the ways in which checkpoints store experts."""

from __future__ import annotations

from tramontane.protocols import Rename, Split, Stack, WeightRule


def expert_weights(intermediate_size: str) -> tuple[WeightRule, ...]:
    """Rules that fill ``….experts.{gate,up,down}_proj`` of `GatedExperts`.

    Published files store expert by expert (``experts.0.gate_proj.weight``), GGUF one stack a
    projection, and transformers 5 may write its own stacks: ``experts.gate_up_proj``, gate above
    up, and ``experts.down_proj``.

    Args:
        intermediate_size: the property of the config that is the width of one expert.
    """
    return (
        Stack(r"(.*\.experts)\.(\d+)\.gate_proj\.weight", r"\1.gate_proj.weight"),
        Stack(r"(.*\.experts)\.(\d+)\.up_proj\.weight", r"\1.up_proj.weight"),
        Stack(r"(.*\.experts)\.(\d+)\.down_proj\.weight", r"\1.down_proj.weight"),
        Rename(r"(.*\.experts\.down_proj)", r"\1.weight"),
        Split(
            r"(.*\.experts)\.gate_up_proj",
            (r"\1.gate_proj.weight", r"\1.up_proj.weight"),
            (intermediate_size, intermediate_size),
            axis=1,
        ),
    )


MIXTRAL_NAMES: tuple[WeightRule, ...] = (
    Rename(r"(.*)\.block_sparse_moe\.(.*)", r"\1.mlp.\2"),
    Rename(r"(.*\.experts\.(?:\d+\.)?)w1\.weight", r"\1gate_proj.weight"),
    Rename(r"(.*\.experts\.(?:\d+\.)?)w2\.weight", r"\1down_proj.weight"),
    Rename(r"(.*\.experts\.(?:\d+\.)?)w3\.weight", r"\1up_proj.weight"),
)
"""Mixtral's own names for an MLP of experts; they come before `expert_weights`."""

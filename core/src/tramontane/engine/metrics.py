"""What an engine counts, from its first request to its last."""

from __future__ import annotations

from attrs import define


@define
class Metrics:
    """Totals. The engine's thread writes them, and whoever likes reads them.

    Attributes:
        steps: forwards.
        busy_secs: time in steps.
        admissions: sequences that began to run, those that were preempted anew each time.
        preemptions: sequences that gave their blocks back to earlier ones.
        restarts: sequences computed anew because the model's keys changed with their length.
        finished: sequences that have ended, whatever for; of these
        failed: ended by an error, and
        canceled: ended by their reader.
        queue_secs: time from submission to the first admission, of all sequences together.
        longest_queue_secs: the longest of them.
        computed_tokens: tokens that went through the model, those computed again included.
        prompt_tokens: of prompts whose first token was sampled, found ones included.
        generated_tokens: sampled.
        prefix_lookup_tokens: of admitted sequences.
        prefix_hit_tokens: of those, found computed.
        prefix_hit_blocks: the same in blocks.
        prefix_miss_blocks: full blocks that might have been found and were not.
        prefix_evictions: blocks whose content was given up for others.
    """

    steps: int = 0
    busy_secs: float = 0.0
    admissions: int = 0
    preemptions: int = 0
    restarts: int = 0
    finished: int = 0
    failed: int = 0
    canceled: int = 0
    queue_secs: float = 0.0
    longest_queue_secs: float = 0.0
    computed_tokens: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    prefix_lookup_tokens: int = 0
    prefix_hit_tokens: int = 0
    prefix_hit_blocks: int = 0
    prefix_miss_blocks: int = 0
    prefix_evictions: int = 0

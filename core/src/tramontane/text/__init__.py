"""Everything between text and token ids: tokenizers, chat templates, incremental text.

Imports no torch, so that commands which only look at text start quickly.
"""

from tramontane.text.chat_template import ChatTemplate, find_chat_template
from tramontane.text.detokenizer import Detokenizer
from tramontane.text.generation_config import (
    end_of_turn_ids,
    read_generation_config,
    sampling_defaults,
)
from tramontane.text.messages import Message, normalize_messages, require_text, text_messages
from tramontane.text.reasoning import ReasoningSplitter
from tramontane.text.stops import StopMatcher
from tramontane.text.tokenizer import Tokenizer

__all__ = [
    "ChatTemplate",
    "Detokenizer",
    "Message",
    "ReasoningSplitter",
    "StopMatcher",
    "Tokenizer",
    "end_of_turn_ids",
    "find_chat_template",
    "normalize_messages",
    "read_generation_config",
    "require_text",
    "sampling_defaults",
    "text_messages",
]

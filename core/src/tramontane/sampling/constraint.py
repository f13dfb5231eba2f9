"""`Constraint`: what a grammar lets one sequence say next."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from attrs import frozen
from torch import Tensor

from tramontane.errors import EngineError

if TYPE_CHECKING:
    from llguidance import LLMatcher


@frozen
class Prelude:
    """What may or must come before the grammar: a model's reasoning.

    Attributes:
        end: bytes that end it.
        inside: whether the answer begins inside.
        opening: tokens of which the first one may open it.
        may_stop: whether the answer may end inside.
    """

    end: bytes
    inside: bool = False
    opening: frozenset[int] = frozenset()
    may_stop: bool = False


class Constraint:
    """Follows the tokens of one sequence through a grammar.

    The mask of the next token is computed once, by llguidance and without the interpreter's lock.
    Doing so on other threads was measured to cost more than it saves: a mask takes less time than
    handing it over. For one thread at a time.

    Args:
        matcher: at the grammar's beginning; the constraint owns it.
        vocab_size: tokens the model can choose among.
        token_bytes: gives a token's bytes.
        encode: tokens of text that came together with the prelude's end.
        eos_token_ids: end the answer, where the grammar is complete.
        prelude: None when the grammar begins at once.

    Attributes:
        finished: whether the grammar allows nothing more.
    """

    def __init__(
        self,
        matcher: LLMatcher,
        *,
        vocab_size: int,
        token_bytes: Callable[[int], bytes],
        encode: Callable[[str], list[int]],
        eos_token_ids: frozenset[int],
        prelude: Prelude | None = None,
    ) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._token_bytes = token_bytes
        self._encode = encode
        self._eos_token_ids = eos_token_ids
        self._prelude = prelude
        self._inside = prelude is not None and prelude.inside
        self._tail = b""
        self.finished = False
        self._mask: Tensor | None = None
        self._settle()

    def allowed(self) -> Tensor | None:
        """Tokens that may come next, [vocab] bool; None for all.

        Raises:
            EngineError: the grammar became too complex to follow.
        """
        if self._inside:
            return self._mask_inside()
        if self._mask is None:
            self._mask = self._compute()
        return self._mask

    def advance(self, token_id: int) -> None:
        """Take the token that was chosen.

        Raises:
            EngineError: the grammar does not allow it.
        """
        if self._inside:
            self._advance_inside(token_id)
            return
        prelude, self._prelude = self._prelude, None
        if prelude is not None and token_id in prelude.opening:
            self._prelude, self._inside = prelude, True
            return
        if not self._matcher.consume_token(token_id):
            raise EngineError(f"the grammar does not allow token {token_id}: {self._why()}")
        self._settle()

    def _advance_inside(self, token_id: int) -> None:
        assert self._prelude is not None
        self._tail += self._token_bytes(token_id)
        before, end, rest = self._tail.partition(self._prelude.end)
        if not end:
            self._tail = before[-len(self._prelude.end) :]
            return
        self._inside, self._prelude = False, None
        text = rest.decode("utf-8", "replace").lstrip()
        for token in self._encode(text) if text else ():
            if not self._matcher.consume_token(token):
                raise EngineError(f"the grammar does not allow {text!r}: {self._why()}")
        self._settle()

    def _mask_inside(self) -> Tensor | None:
        assert self._prelude is not None
        if self._prelude.may_stop:
            return None
        return _all_but(self._vocab_size, self._eos_token_ids)

    def _settle(self) -> None:
        """After a token: the mask is of the past, and the grammar may be at its end."""
        self._mask = None
        self.finished = not self._inside and self._matcher.is_stopped()

    def _compute(self) -> Tensor:
        opening = frozenset() if self._prelude is None else self._prelude.opening
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise EngineError(f"the grammar cannot be followed: {self._why()}")
        # [vocab] bool, a byte a token
        mask = np.unpackbits(bits, count=self._vocab_size, bitorder="little").view(np.bool_)
        allowed = torch.from_numpy(mask)
        if opening:
            allowed[list(opening)] = True
        return allowed

    def _why(self) -> str:
        error = self._matcher.get_error().strip()
        # llguidance puts the state of its parser around it.
        lines = [line for line in error.splitlines() if line.startswith("Error: ")]
        return lines[0] if lines else error or "it is complete"


@cache
def _all_but(vocab_size: int, token_ids: frozenset[int]) -> Tensor:
    allowed = torch.ones(vocab_size, dtype=torch.bool)
    allowed[[token_id for token_id in token_ids if token_id < vocab_size]] = False
    return allowed

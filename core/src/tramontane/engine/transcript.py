"""From sampled tokens to the text a reader may see."""

from __future__ import annotations

from collections import deque

from tramontane.engine.output import Delta, FinishReason, TokenLogprob
from tramontane.errors import TramontaneError
from tramontane.sampling.params import SamplingParams
from tramontane.sampling.sampler import SampledToken
from tramontane.text.detokenizer import Detokenizer
from tramontane.text.stops import StopMatcher
from tramontane.text.tokenizer import Tokenizer


class Transcript:
    """One sequence's output as text: whole characters only, nothing that may turn out to belong
    to a stop string, and log probabilities that keep step with the text.

    Tokens that give no text yet wait here and travel with the next delta.

    Args:
        shown: special tokens that are part of the text; the others are left out.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_ids: list[int],
        params: SamplingParams,
        shown: frozenset[int] = frozenset(),
    ) -> None:
        self._tokenizer = tokenizer
        self._shown = shown
        self._detokenizer = Detokenizer(tokenizer, prompt_ids, shown=shown)
        self._stops = StopMatcher(params.stop_strings) if params.stop_strings else None
        self._wants_logprobs = params.logprobs
        self._text = ""
        self._token_ids: list[int] = []
        # Text positions: how much the tokens came to, and how much has been let out.
        self._num_decoded = 0
        self._num_emitted = 0
        self._cut = False  # a stop string ended the text
        self._logprobs: deque[tuple[int, TokenLogprob]] = deque()  # where its text begins, entry

    def push(self, token: SampledToken) -> bool:
        """Take a token that belongs to the text. Returns whether it completed a stop string; the
        text then ends before that."""
        self._token_ids.append(token.token_id)
        if self._wants_logprobs:
            self._logprobs.append((self._num_decoded, self._entry(token)))
        text = self._detokenizer.push(token.token_id)
        if not text:
            return False
        return self._let_out(text)

    def push_last(self, token: SampledToken) -> None:
        """Take a token that ends the sequence; it is no part of its text unless it is shown."""
        if token.token_id in self._shown:
            self.push(token)
        else:
            self._token_ids.append(token.token_id)

    def flush(self) -> bool:
        """No token follows: let out what was held back. Returns whether a stop string has ended
        the text."""
        if not self._cut:
            rest = self._detokenizer.flush()
            if not (rest and self._let_out(rest)) and self._stops is not None:
                self._emit(self._stops.flush())
        return self._cut

    def take(
        self,
        index: int,
        finish_reason: FinishReason | None = None,
        error: TramontaneError | None = None,
    ) -> Delta | None:
        """What has been let out since the last call, or None while there is no text and no
        ``finish_reason``."""
        if not self._text and finish_reason is None:
            return None
        delta = Delta(self._text, self._token_ids, [], finish_reason, error, index)
        if self._wants_logprobs:
            # Tokens beyond a stop string have no place in the text; other ends leave none over.
            everything = finish_reason is not None and not self._cut
            while self._logprobs and (everything or self._logprobs[0][0] < self._num_emitted):
                delta.logprobs.append(self._logprobs.popleft()[1])
        self._text = ""
        self._token_ids = []
        return delta

    def _let_out(self, text: str) -> bool:
        self._num_decoded += len(text)
        if self._stops is None:
            self._emit(text)
            return False
        text, self._cut = self._stops.push(text)
        self._emit(text)
        return self._cut

    def _emit(self, text: str) -> None:
        self._text += text
        self._num_emitted += len(text)

    def _entry(self, token: SampledToken) -> TokenLogprob:
        assert token.logprob is not None, "the sampler gives log probabilities when asked to"
        top = tuple(self._logprob(token_id, logprob) for token_id, logprob in token.top_logprobs)
        return self._logprob(token.token_id, token.logprob, top)

    def _logprob(
        self, token_id: int, logprob: float, top: tuple[TokenLogprob, ...] = ()
    ) -> TokenLogprob:
        raw = self._tokenizer.token_bytes(token_id)
        return TokenLogprob(token_id, raw.decode("utf-8", "replace"), raw, logprob, top)

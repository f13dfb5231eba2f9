"""`Sampler`: from logits to the next token of each sequence.

Order of the steps, on float32 logits of the last position:

1. DRY
2. presence, frequency and repetition penalties, over prompt and output
3. logit bias
4. grammar mask
5. greedy: the most likely token; otherwise softmax(logits / temperature)
6. top-k: the k most likely tokens stay
7. top-p: in falling order, a token stays while those before it hold less than p
8. min-p: tokens of at most m times the highest probability go
9. one draw from what is left, by weight

Steps 6 to 8 compare the probabilities of step 5; nothing is normalized in between.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from attrs import frozen
from torch import Tensor

from tramontane.errors import EngineError
from tramontane.kernels.dispatch import Operator, bind
from tramontane.sampling.dry import DryIndex, penalize_repetition
from tramontane.sampling.logprobs import logprobs_of
from tramontane.sampling.params import SamplingParams
from tramontane.sampling.penalties import TokenCounts, add_bias

Mask = Callable[[], Tensor | None]


@frozen
class SampledToken:
    """A chosen token.

    Attributes:
        token_id: its id.
        logprob: its log probability; None unless asked for.
        top_logprobs: (id, log probability) of the most likely tokens, falling.
    """

    token_id: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


class SamplerState:
    """What sampling remembers of one sequence.

    Args:
        params: its settings.
        prompt_ids: not changed.
        output_ids: what has been sampled; the owner appends each token before the next step.
        seed: of its draws; None for ``params.seed``, and if that is None, an unpredictable one.
        allowed_mask: gives the tokens that the grammar allows next, [vocab] bool, or None for all;
            shorter than the logits it forbids the rest. Called once a step at least; must not
            change anything.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_ids: list[int],
        output_ids: list[int] | None = None,
        *,
        seed: int | None = None,
        allowed_mask: Mask | None = None,
    ) -> None:
        self.params = params
        self.prompt_ids = prompt_ids
        self.output_ids: list[int] = [] if output_ids is None else output_ids
        self.allowed_mask = allowed_mask
        self._random = random.Random(params.seed if seed is None else seed)
        self._counts: TokenCounts | None = None
        self._penalize: Operator | None = None
        self._dry: DryIndex | None = None
        self._num_counted = 0

    @property
    def changes_logits(self) -> bool:
        """Whether any of the steps 1 to 3 applies."""
        params = self.params
        return params.counts_tokens or params.dry is not None or bool(params.logit_bias)

    def uniform(self) -> float:
        """The sequence's next random number, in [0, 1)."""
        return self._random.random()

    def apply(self, logits: Tensor) -> None:
        """Steps 1 to 3 on this sequence's row, [vocab], in place."""
        params = self.params
        self._take_up_context()
        if self._dry is not None and params.dry is not None:
            penalize_repetition(logits, self._dry, params.dry)
        if self._counts is not None:
            self._penalize = self._penalize or bind("penalize", logits.device)
            self._penalize(
                logits,
                self._counts.ids,
                self._counts.counts,
                presence=params.presence_penalty,
                frequency=params.frequency_penalty,
                repetition=params.repetition_penalty,
            )
        if params.logit_bias:
            add_bias(logits, params.logit_bias)

    def _take_up_context(self) -> None:
        """Bring the indices of the context up to date."""
        new = self.output_ids[self._num_counted :]
        self._num_counted = len(self.output_ids)
        if self.params.counts_tokens:
            if self._counts is None:
                self._counts = TokenCounts()
                self._counts.add(self.prompt_ids)
            self._counts.add(new)
        if self.params.dry is not None:
            if self._dry is None:
                self._dry = DryIndex()
                self._dry.extend(self.prompt_ids)
            self._dry.extend(new)


class Sampler:
    """Chooses the next tokens of a batch. A row's result never depends on the other rows."""

    def __init__(self) -> None:
        self._draw: Operator | None = None

    def sample(self, logits: Tensor, states: Sequence[SamplerState]) -> list[SampledToken]:
        """One token a row.

        Args:
            logits: [R, vocab] float32; not changed.
            states: R sequences.

        Raises:
            EngineError: a row has NaN or infinite logits, or its settings leave no token. Nothing
                has been drawn for any row then, so the others can be sampled again without it.
        """
        params = [state.params for state in states]
        logits = self._changed(logits, states)
        best, tokens = _most_likely(logits)
        if not bool(best.isfinite().all()):
            raise _unusable(best)
        drawn = [row for row, p in enumerate(params) if not p.is_greedy]
        if drawn:
            self._draw = self._draw or bind("draw", logits.device)
            chosen = self._draw(
                logits if len(drawn) == len(states) else logits[drawn],
                [params[row] for row in drawn],
                [states[row].uniform() for row in drawn],
            )
            for row, token in zip(drawn, chosen, strict=True):
                tokens[row] = token
        sampled = [SampledToken(token) for token in tokens]
        told = [row for row, p in enumerate(params) if p.logprobs]
        if told:
            logprobs = logprobs_of(
                logits[told],
                [tokens[row] for row in told],
                [params[row].top_logprobs for row in told],
            )
            for row, (logprob, top) in zip(told, logprobs, strict=True):
                sampled[row] = SampledToken(tokens[row], logprob, top)
        return sampled

    def _changed(self, logits: Tensor, states: Sequence[SamplerState]) -> Tensor:
        """Logits after steps 1 to 4; the given ones when none applies."""
        changing = [row for row, state in enumerate(states) if state.changes_logits]
        masks = [None if state.allowed_mask is None else state.allowed_mask() for state in states]
        masked = any(mask is not None for mask in masks)
        if changing or masked:
            logits = logits.clone(memory_format=torch.contiguous_format)
        for row in changing:
            states[row].apply(logits[row])
        if masked:
            _forbid(logits, masks)
        return logits


def _forbid(logits: Tensor, masks: Sequence[Tensor | None]) -> None:
    """Step 4, in place. All rows at once: one by one, the calls would cost more than the work."""
    (size,) = {len(mask) for mask in masks if mask is not None}  # all of one vocabulary
    length = min(size, logits.shape[1])
    free = torch.ones(length, dtype=torch.bool)
    allowed = torch.stack([free if mask is None else mask[:length] for mask in masks])
    logits[:, :length].masked_fill_(~allowed.to(logits.device), float("-inf"))
    if length < logits.shape[1]:
        bound = [row for row, mask in enumerate(masks) if mask is not None]
        logits[bound, length:] = float("-inf")


def _most_likely(logits: Tensor) -> tuple[Tensor, list[int]]:
    """Highest logit [R] and its token, a row each; NaN counts as higher than anything."""
    if logits.device.type != "cpu":
        best, tokens = logits.max(dim=-1)
        return best, tokens.tolist()
    # Ten times as fast as torch at one row of a large vocabulary, which is what decoding asks for.
    ids = torch.from_numpy(logits.numpy().argmax(-1))
    return logits.gather(1, ids.unsqueeze(1)).squeeze(1), ids.tolist()


def _unusable(best: Tensor) -> EngineError:
    """The error for the first row whose highest logit is no finite number."""
    values = [value for value in best.tolist() if not abs(value) < float("inf")]
    if values[0] == float("-inf"):
        return EngineError("grammar, bias and penalties of this request leave no token to choose")
    return EngineError(
        f"the model computed {values[0]} for this request, so no token can be chosen; "
        f"a dtype of more range (ModelDType.BF16 or F32) may help"
    )

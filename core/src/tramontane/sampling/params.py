"""How the next token of one sequence is chosen, with every default decided. No torch.

`SamplingParams.resolve` decides: the request's own value, else the model's
``generation_config.json``, else the neutral one. Without a temperature from either, or with
``do_sample`` false, the most likely token is taken.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from attrs import field, frozen

from tramontane.api import validators as check
from tramontane.api.requests import ChatCompletionRequest, CompletionRequest
from tramontane.errors import ConfigError, ValidationError

GREEDY_BELOW = 1e-7
"""Temperatures under this take the most likely token."""

DRY_BASE = 1.75
DRY_ALLOWED_LENGTH = 2
DRY_SEQUENCE_BREAKERS = ("\n", ":", '"', "*")

FINITE = check.number(optional=False)
COUNT_OR_ZERO = check.number(ge=0, integer=True, optional=False)


class Encode(Protocol):
    """`tramontane.text.tokenizer.Tokenizer.encode`."""

    def __call__(self, text: str, add_special_tokens: bool = ...) -> Sequence[int]: ...


@frozen(kw_only=True)
class DryParams:
    """Don't Repeat Yourself: a penalty that grows with the length of a repetition.

    Attributes:
        multiplier: the penalty of a repetition of ``allowed_length`` tokens.
        base: each further token multiplies it by this; at least 1.
        allowed_length: shorter repetitions are free.
        breaker_ids: tokens that no repetition extends across.
    """

    multiplier: float = field(validator=check.number(gt=0, optional=False))
    base: float = field(default=DRY_BASE, validator=check.number(ge=1, optional=False))
    allowed_length: int = field(default=DRY_ALLOWED_LENGTH, validator=COUNT_OR_ZERO)
    breaker_ids: frozenset[int] = frozenset()


def breaker_ids(breakers: Sequence[str], encode: Encode) -> frozenset[int]:
    """The token a breaker ends with inside of a text; "a" stands for the text before it."""
    encoded = (encode("a" + breaker, add_special_tokens=False) for breaker in breakers)
    return frozenset(ids[-1] for ids in encoded if ids)


def _top_k(value: Any) -> Any:
    return None if value == -1 else value


def _strings(value: Any) -> Any:
    return tuple(value)


def _bias(value: Any) -> Any:
    return dict(value or {})


def _check_bias(instance: object, attribute: Any, value: dict[Any, Any]) -> None:
    for token, bias in value.items():
        if type(token) is not int or token < 0:
            raise ValidationError(f"logit_bias must have token ids as keys, not {token!r}")
        if type(bias) not in (int, float) or math.isnan(bias) or bias == math.inf:
            raise ValidationError(
                f"logit_bias of token {token} must be a finite number, or -inf to forbid it, "
                f"not {bias!r}"
            )


@frozen(kw_only=True)
class SamplingParams:
    """What the sampler and the engine need to know of a request.

    Attributes:
        temperature: divides the logits; None or under 1e-7 takes the most likely token.
        top_k: tokens kept; None (or -1) for all.
        top_p: probability kept, (0, 1]; None for all.
        min_p: share of the most likely token's probability that a kept one exceeds, [0, 1).
        presence_penalty, frequency_penalty: taken from the logit of a token that occurs, once,
            and times its occurrences.
        repetition_penalty: divides positive logits and multiplies negative ones of tokens that
            occur.
        dry: DRY settings, None for none.
        logit_bias: token id → number added to its logit; -inf forbids it.
        logprobs: compute the log probability of each sampled token.
        top_logprobs: and those of this many most likely ones.
        max_tokens: tokens to generate at most, None for as many as the context holds.
        stop_strings: texts that end the answer.
        stop_token_ids: tokens that end the answer.
        seed: makes the sequence's draws repeatable; None for the engine's choice.

    Raises:
        ValidationError: a value is out of range.
    """

    temperature: float | None = field(default=None, validator=check.number(ge=0))
    top_k: int | None = field(
        default=None, converter=_top_k, validator=check.number(ge=1, integer=True)
    )
    top_p: float | None = field(default=None, validator=check.number(gt=0, le=1))
    min_p: float | None = field(default=None, validator=check.number(ge=0, lt=1))
    presence_penalty: float = field(default=0.0, validator=FINITE)
    frequency_penalty: float = field(default=0.0, validator=FINITE)
    repetition_penalty: float = field(default=1.0, validator=check.number(gt=0, optional=False))
    dry: DryParams | None = None
    logit_bias: dict[int, float] = field(factory=dict, converter=_bias, validator=_check_bias)
    logprobs: bool = field(default=False, validator=check.flag())
    top_logprobs: int = field(default=0, validator=COUNT_OR_ZERO)
    max_tokens: int | None = field(default=None, validator=check.number(ge=1, integer=True))
    stop_strings: tuple[str, ...] = field(default=(), converter=_strings)
    stop_token_ids: frozenset[int] = field(default=frozenset(), converter=frozenset)
    seed: int | None = field(default=None, validator=check.number(integer=True))

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is taken."""
        return self.temperature is None or self.temperature < GREEDY_BELOW

    @property
    def counts_tokens(self) -> bool:
        """Whether a penalty depends on how often tokens occur."""
        return (
            self.presence_penalty != 0
            or self.frequency_penalty != 0
            or self.repetition_penalty != 1
        )

    @classmethod
    def resolve(
        cls,
        request: ChatCompletionRequest | CompletionRequest,
        generation_config: Mapping[str, Any] | None,
        *,
        encode: Encode,
        need_logprobs: bool = False,
    ) -> SamplingParams:
        """Decide every setting of a request.

        Args:
            request: wins where it says anything.
            generation_config: content of ``generation_config.json``, or None.
            encode: finds the tokens of DRY's sequence breakers.
            need_logprobs: compute log probabilities although the request does not ask.

        Raises:
            ConfigError: ``generation_config`` has a value out of range.
        """
        try:
            defaults = _model_defaults(generation_config or {})
            cls(**defaults)
        except ValidationError as error:
            raise ConfigError(f"generation_config.json: {error}") from error
        chosen = {
            "temperature": request.temperature,
            "top_k": request.top_k,
            "top_p": request.top_p,
            "min_p": request.min_p,
            "presence_penalty": request.presence_penalty,
            "frequency_penalty": request.frequency_penalty,
            "repetition_penalty": request.repetition_penalty,
            "max_tokens": request.max_tokens,
        }
        settings = defaults | {name: v for name, v in chosen.items() if v is not None}
        settings["logit_bias"] = settings.get("logit_bias", {}) | (request.logit_bias or {})
        top_logprobs = 1 if request.top_logprobs is None else request.top_logprobs
        return cls(
            **settings,
            dry=_dry(request, encode),
            logprobs=request.logprobs or need_logprobs,
            top_logprobs=top_logprobs if request.logprobs else 0,
            stop_strings=request.stop_seqs or (),
            seed=request.seed,
        )


def _model_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a ``generation_config.json`` says, in our names. Neutral values that we do not have
    (``top_k`` 0, ``top_p`` 0, ``min_p`` 1) are left out, and without sampling all of its rules."""
    settings = {
        "repetition_penalty": config.get("repetition_penalty"),
        "max_tokens": config.get("max_new_tokens"),
        "logit_bias": dict.fromkeys(config.get("suppress_tokens") or (), -math.inf),
    }
    if config.get("do_sample") is not False:
        temperature, top_k = config.get("temperature"), config.get("top_k")
        top_p, min_p = config.get("top_p"), config.get("min_p")
        settings |= {
            "temperature": 1.0 if temperature is None and config.get("do_sample") else temperature,
            "top_k": None if top_k == 0 else top_k,
            "top_p": None if top_p == 0 else top_p,
            "min_p": None if min_p == 1 else min_p,
        }
    return {name: value for name, value in settings.items() if value is not None}


def _dry(
    request: ChatCompletionRequest | CompletionRequest,
    encode: Encode,
) -> DryParams | None:
    if not request.dry_multiplier:
        return None
    breakers = request.dry_sequence_breakers
    base, allowed_length = request.dry_base, request.dry_allowed_length
    return DryParams(
        multiplier=request.dry_multiplier,
        base=DRY_BASE if base is None else base,
        allowed_length=DRY_ALLOWED_LENGTH if allowed_length is None else allowed_length,
        breaker_ids=breaker_ids(DRY_SEQUENCE_BREAKERS if breakers is None else breakers, encode),
    )

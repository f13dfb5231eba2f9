"""`TextPipeline`: chat and completion with a language model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from attrs import evolve

from tramontane.api import (
    ChatCompletionChunkResponse,
    ChatCompletionRequest,
    ChatCompletionResponse,
    CompletionChunkResponse,
    CompletionRequest,
    CompletionResponse,
    ToolChoice,
)
from tramontane.engine.engine import Engine
from tramontane.engine.executor import LocalExecutor
from tramontane.engine.output import OutputQueue
from tramontane.engine.sequence import Sequence as TokenSequence
from tramontane.errors import PromptTooLongError, UnsupportedError, ValidationError
from tramontane.hooks.specs import ModelKind
from tramontane.loading.live_weights import CALIBRATION_CHUNK, LiveWeights, calibration_text
from tramontane.loading.loader import LoadedModel, load_text
from tramontane.loading.selection import text_request
from tramontane.nn.rope import rope_regime, rope_switch
from tramontane.pipeline.answers import ChatAnswer, CompletionAnswer, usage_of
from tramontane.pipeline.stream import Answer, GenerationStream
from tramontane.pipeline.turn_grammar import forces_call
from tramontane.pipeline.turns import Turns
from tramontane.protocols import InSituSettings
from tramontane.protocols.pipeline import PipelineOptions
from tramontane.sampling import SamplingParams
from tramontane.sampling.constraint import Constraint, Prelude
from tramontane.text.grammar import GrammarCompiler, answer_grammar

if TYPE_CHECKING:
    from tramontane.api import Usage

OnFinish = Callable[["Usage"], None]
ChatStream = GenerationStream[ChatCompletionChunkResponse, ChatCompletionResponse]
CompletionStream = GenerationStream[CompletionChunkResponse, CompletionResponse]


class TextPipeline:
    """A language model with its tokenizer, template and engine. Thread-safe.

    Args:
        model_id: shown in responses.
        loaded: weights, tokenizer and all that came with them.
        options: how to run it.
    """

    kind: ClassVar[ModelKind] = "text"

    def __init__(self, model_id: str, loaded: LoadedModel, options: PipelineOptions) -> None:
        self.model_id = model_id
        self._tokenizer = loaded.tokenizer
        self._config = loaded.config
        self._eos_token_ids = frozenset(loaded.eos_token_ids)
        self._grammars = GrammarCompiler(
            loaded.tokenizer, loaded.config.vocab_size, self._eos_token_ids
        )
        self._turns = Turns(
            model_id,
            loaded.chat_template,
            loaded.tokenizer,
            options.plugins,
            self._grammars.mark,
        )
        self._generation_config = loaded.generation_config
        self._facts = {
            "architecture": loaded.architecture.name,
            "weight_bytes": loaded.plan.weight_bytes,
            "cache_bytes": loaded.plan.cache_bytes,
            "cache_dtype": str(loaded.plan.cache_dtype).removeprefix("torch."),
            "devices": loaded.device_map.counts,
        }
        self.live_weights = LiveWeights(loaded, options.plugins)
        executor = LocalExecutor(
            loaded.model,
            loaded.config,
            num_blocks=loaded.plan.num_blocks,
            block_size=loaded.plan.block_size,
            max_seqs=options.max_seqs,
            dtype=loaded.plan.cache_dtype,
            device=loaded.device,
            layer_devices=loaded.device_map.layers,
        )
        self._engine = Engine(
            executor,
            tokenizer=loaded.tokenizer,
            eos_token_ids=loaded.eos_token_ids,
            max_seq_len=loaded.max_seq_len,
            max_seqs=options.max_seqs,
            prefix_cache=options.prefix_cache_n,
            no_kv_cache=options.no_kv_cache,
            block_size=loaded.plan.block_size,
            seed=options.seed,
            vocab_size=self._config.vocab_size,
            regime=partial(_key_regime, loaded.config),
            switch_len=rope_switch(loaded.config),
        )

    @classmethod
    def load(cls, which: Any, options: PipelineOptions) -> Self:
        """Bring up ``Which.Plain`` or ``Which.GGUF``."""
        request = text_request(which, options)
        text = getattr(which, "calibration_file", None)
        if text is None or request.in_situ is None:
            return cls(request.model_id, load_text(request), options)
        # Statistics come from the unquantized model, which must run first.
        in_situ, request = request.in_situ, evolve(request, in_situ=None)
        pipeline = cls(request.model_id, load_text(request), options)
        try:
            pipeline.calibrate(Path(text))
            pipeline.quantize_calibrated(in_situ)
        except BaseException:
            pipeline.close()
            raise
        return pipeline

    # Requests -----------------------------------------------------------------------------

    def chat(self, request: ChatCompletionRequest, *, on_finish: OnFinish) -> ChatStream:
        """Template → tokens → sequences → engine.

        Args:
            on_finish: called once with the usage when the engine has ended every choice,
                however it ended; not called if this raises.
        """
        self._refuse_unserved(request)
        turn = self._turns.of(request)
        prompt_ids = self._fitted(self._tokenizer.encode(turn.prompt), request)
        params = self._params(request)
        sequences, output = self._sequences(
            request,
            prompt_ids,
            params,
            request.n_choices,
            on_finish,
            new_text=True,
            shown=self._turns.shown(turn),
            grammar=turn.grammar,
            prelude=turn.prelude,
        )
        readers = [self._turns.reader(turn) for _ in range(request.n_choices)]
        answer = ChatAnswer(self.model_id, sequences, readers, logprobs=request.logprobs)
        return self._submit(sequences, output, answer)

    def complete(self, request: CompletionRequest, *, on_finish: OnFinish) -> CompletionStream:
        """As `chat`, for a text that is continued as it stands.

        With ``best_of`` above ``n_choices`` that many samples are drawn and the likeliest are
        returned, by mean log probability of a token, as in OpenAI's API.
        """
        self._refuse_unserved(request)
        offered = request.tool_schemas and request.tool_choice is not ToolChoice.NoTools
        if offered or forces_call(request):
            raise UnsupportedError(
                "a text is continued without tools: send a chat request, or leave out "
                "tool_schemas and tool_choice"
            )
        num_samples = max(request.best_of, request.n_choices)
        choosing = num_samples > request.n_choices
        if choosing and request.stream:
            raise ValidationError(
                f"best_of={request.best_of} chooses among finished answers, so it cannot stream "
                f"{request.n_choices}: leave out stream or best_of"
            )
        prompt_ids = self._fitted(self._tokenizer.encode(request.prompt), request)
        params = self._params(request, need_logprobs=choosing)
        sequences, output = self._sequences(
            request,
            prompt_ids,
            params,
            num_samples,
            on_finish,
            new_text=False,
            grammar=answer_grammar(request),
        )
        answer = CompletionAnswer(
            self.model_id,
            sequences,
            logprobs=request.logprobs,
            num_choices=request.n_choices,
            before=request.prompt if request.echo_prompt else "",
            after=request.suffix or "",
        )
        return self._submit(sequences, output, answer)

    def tokenize(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of ``text``."""
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def detokenize(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids.

        Raises:
            ValidationError: an id is not in the vocabulary.
        """
        unknown = next((t for t in tokens if not 0 <= t < self._config.vocab_size), None)
        if unknown is not None:
            last = self._config.vocab_size - 1
            raise ValidationError(f"token id {unknown} does not exist; this model has 0 to {last}")
        return self._tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens)

    def re_isq(self, type_name: str) -> None:
        """Quantize every weight anew. The caller sees to it that no request is running.

        Raises:
            ValidationError: there is no such type.
        """
        self._requantized(self.live_weights.requantize(InSituSettings(type_name=type_name)))

    def begin_calibration(self) -> None:
        """Collect statistics of what the model reads from now on; see `apply_calibration`."""
        self.live_weights.begin_calibration()

    def calibration_status(self) -> dict[str, Any]:
        """Whether statistics are being collected, and how much has been seen."""
        return self.live_weights.calibration_status()

    def apply_calibration(self, type_name: str) -> None:
        """Quantize by the statistics collected. The caller sees to it that no request is running.

        Raises:
            ValidationError: none were collected, or there is no such type.
        """
        self.quantize_calibrated(InSituSettings(type_name=type_name))

    def quantize_calibrated(self, settings: InSituSettings) -> None:
        """`apply_calibration` with all that can be said of it."""
        self._requantized(self.live_weights.apply_calibration(settings))

    def calibrate(self, path: Path) -> None:
        """Let the model read a text, in pieces, and collect statistics of it.

        Raises:
            SourceError: the file cannot be read, or holds no text.
        """
        self.begin_calibration()
        bos = self._tokenizer.bos_token_id
        ids = self._tokenizer.encode(calibration_text(path), add_special_tokens=False)
        size = min(CALIBRATION_CHUNK, self._engine.max_seq_len - 2)
        request = CompletionRequest(prompt=" ", max_tokens=1, temperature=0.0)
        params = self._params(request)
        for start in range(0, len(ids), size):
            piece = ids[start : start + size]
            piece = piece if bos is None else [bos, *piece]
            sequences, output = self._sequences(
                request, piece, params, 1, lambda usage: None, new_text=False
            )
            answer = CompletionAnswer(
                self.model_id, sequences, logprobs=False, num_choices=1, before="", after=""
            )
            self._submit(sequences, output, answer).collect()

    def _requantized(self, weight_bytes: int) -> None:
        self._facts["weight_bytes"] = weight_bytes
        self._engine.forget()

    # The pipeline protocol ----------------------------------------------------------------

    @property
    def max_sequence_length(self) -> int | None:
        return self._engine.max_seq_len

    @property
    def shows_tools(self) -> bool:
        """Whether the chat template shows the model tools."""
        return self._turns.shows_tools

    def stats(self) -> dict[str, Any]:
        return self._facts | self._engine.stats()

    def close(self) -> None:
        self._engine.close()

    # Steps of `chat` and `complete` ---------------------------------------------------------

    def _refuse_unserved(self, request: ChatCompletionRequest | CompletionRequest) -> None:
        if request.adapter is not None:
            raise UnsupportedError("adapters are not in this release: leave out adapter")

    def _constraint(self, grammar: str, prelude: Prelude | None) -> Constraint:
        return Constraint(
            self._grammars.matcher(grammar),
            vocab_size=self._config.vocab_size,
            token_bytes=self._tokenizer.token_bytes,
            encode=partial(self._tokenizer.encode, add_special_tokens=False),
            eos_token_ids=self._eos_token_ids,
            prelude=prelude,
        )

    def _fitted(
        self, prompt_ids: list[int], request: ChatCompletionRequest | CompletionRequest
    ) -> list[int]:
        """The prompt, or with ``truncate_sequence`` as much of its end as leaves room for the
        answer."""
        if not prompt_ids:
            raise ValidationError("the prompt is empty: it must hold at least one token")
        limit = self._engine.max_seq_len
        if len(prompt_ids) < limit:
            return prompt_ids
        if not request.truncate_sequence:
            raise PromptTooLongError(
                f"the prompt has {len(prompt_ids)} tokens, and the context holds {limit} with the "
                f"answer: shorten it, or set truncate_sequence=True to keep its end"
            )
        answer = min(request.max_tokens or 1, limit - 1)
        return prompt_ids[-(limit - answer) :]

    def _params(
        self, request: ChatCompletionRequest | CompletionRequest, *, need_logprobs: bool = False
    ) -> SamplingParams:
        return SamplingParams.resolve(
            request,
            self._generation_config,
            encode=self._tokenizer.encode,
            need_logprobs=need_logprobs,
        )

    def _sequences(
        self,
        request: ChatCompletionRequest | CompletionRequest,
        prompt_ids: list[int],
        params: SamplingParams,
        count: int,
        on_finish: OnFinish,
        *,
        new_text: bool,
        shown: frozenset[int] = frozenset(),
        grammar: str | None = None,
        prelude: Prelude | None = None,
    ) -> tuple[list[TokenSequence], OutputQueue]:
        """``count`` sequences that write to one queue."""
        sequences: list[TokenSequence] = []
        output = OutputQueue(
            count, stream=request.stream, on_end=lambda: on_finish(usage_of(sequences))
        )
        for index in range(count):
            sequences.append(
                self._engine.sequence(
                    prompt_ids,
                    params,
                    output=output,
                    index=index,
                    ignore_eos=request.ignore_eos,
                    new_text=new_text,
                    shown=shown,
                    constraint=None if grammar is None else self._constraint(grammar, prelude),
                )
            )
        return sequences, output

    def _submit(
        self,
        sequences: list[TokenSequence],
        output: OutputQueue,
        answer: Answer[Any, Any],
    ) -> GenerationStream[Any, Any]:
        self._engine.submit(sequences)
        engine = self._engine
        return GenerationStream(output, answer, lambda: engine.cancel(sequences))


def _key_regime(config: Any, num_tokens: int) -> bytes:
    return repr(rope_regime(config, num_tokens)).encode()

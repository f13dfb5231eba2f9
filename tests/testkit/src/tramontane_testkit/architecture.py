"""The contract of an architecture: equal to transformers, and the same however it is stepped."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from attrs import frozen
from safetensors.torch import load_file, save_file
from torch import Tensor

from tramontane.errors import CheckpointError, ConfigError
from tramontane.loading.loader import LoadRequest, load_text
from tramontane_testkit import llama_cpp
from tramontane_testkit.gguf_files import gguf_of
from tramontane_testkit.models import VOCAB_SIZE, hf_model, save_hf
from tramontane_testkit.serving import serving
from tramontane_testkit.stepping import Stepper

TOLERANCE = 1e-4
GREEDY_TOKENS = 64


@frozen(eq=False)
class Pair:
    """One case: transformers' model and ours, loaded from what it wrote.

    Attributes:
        reference: the transformers model.
        directory: where it was saved.
        model, config: ours.
        case: its name.
    """

    reference: Any
    directory: Path
    model: Any
    config: Any
    case: str = ""

    def stepper(self) -> Stepper:
        """A fresh run of our model."""
        weight = next(self.model.parameters())
        return Stepper(self.model, self.config, dtype=weight.dtype, device=weight.device)


class ArchitectureContract:
    """Subclass, name it ``Test…`` and fill in the attributes.

    Attributes:
        model_class: the class of transformers to compare with.
        base: config keys for every case, beyond `tramontane_testkit.models.TINY`.
        cases: name → config keys of that case.
        gguf_architecture: ``general.architecture`` of its GGUF files; empty where GGUF has none.
        gguf_cases: names of the cases that GGUF can express.
        llama_cpp_differs: case → why llama.cpp answers otherwise than the reference there.
        prompt_length: longer than any window and any ``original_max_position_embeddings`` of the
            cases, so that both sides of each limit are met.
    """

    model_class: ClassVar[str]
    base: ClassVar[Mapping[str, Any]] = {}
    cases: ClassVar[Mapping[str, Mapping[str, Any]]] = {"plain": {}}
    gguf_architecture: ClassVar[str] = ""
    gguf_cases: ClassVar[Sequence[str]] = ()
    llama_cpp_differs: ClassVar[Mapping[str, str]] = {}
    prompt_length: ClassVar[int] = 45

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Every test that takes ``pair`` runs for every case, those that take ``gguf_file`` too
        for the cases that GGUF can express, those that take ``first_pair`` for the first."""
        if "pair" in metafunc.fixturenames:
            cases = self.gguf_cases if "gguf_file" in metafunc.fixturenames else list(self.cases)
            if "first_pair" in metafunc.fixturenames:
                cases = cases[:1]
            metafunc.parametrize("pair", cases, indirect=True, scope="class")

    @pytest.fixture(scope="class")
    @classmethod
    def pair(cls, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
        """The case's models; made once, then run by every test."""
        keys = {**cls.base, **cls.cases[request.param]}
        reference = hf_model(cls.model_class, **keys)
        directory = save_hf(reference, tmp_path_factory.mktemp("model"))
        loaded = load_text(LoadRequest(model_id=str(directory), dtype="f32"))
        return Pair(reference, directory, loaded.model, loaded.config, request.param)

    @pytest.fixture
    def first_pair(self, pair: Pair) -> Pair:
        """The models of the first case, for what no option changes."""
        return pair

    @pytest.fixture
    def gguf_file(self, pair: Pair, tmp_path: Path) -> Path:
        """The case's model as a GGUF file."""
        return gguf_of(pair.directory, tmp_path / "model.gguf", self.gguf_architecture)

    # Equal to transformers ----------------------------------------------------------------

    def test_logits_equal_the_reference(self, pair: Pair) -> None:
        prompt = self._prompt()
        with torch.inference_mode():
            expected = pair.reference(torch.tensor([prompt])).logits[0].float()
        stepper = pair.stepper()
        stepper.add("a", prompt)
        _assert_close(stepper.finish("a"), expected)

    def test_greedy_continuation_equals_the_reference(self, pair: Pair) -> None:
        prompt = self._prompt()
        expected: list[int] = []
        ids, past = torch.tensor([prompt]), None
        with torch.inference_mode():
            for _ in range(GREEDY_TOKENS):
                out = pair.reference(ids, past_key_values=past, use_cache=True)
                expected.append(int(out.logits[0, -1].argmax()))
                ids, past = torch.tensor([expected[-1:]]), out.past_key_values
        stepper = pair.stepper()
        stepper.add("a", prompt)
        assert stepper.greedy("a", GREEDY_TOKENS) == expected

    # From GGUF ----------------------------------------------------------------------------

    def test_gguf_equals_safetensors(self, pair: Pair, gguf_file: Path) -> None:
        loaded = _from_gguf(gguf_file)
        assert type(loaded.model) is type(pair.model)
        prompt = self._prompt()
        _assert_close(self._whole(loaded, prompt), self._whole(pair, prompt))

    @pytest.mark.slow
    @pytest.mark.peer
    def test_greedy_continuation_equals_llama_cpp(self, pair: Pair, gguf_file: Path) -> None:
        if pair.case in self.llama_cpp_differs:
            pytest.skip(self.llama_cpp_differs[pair.case])
        prompt = self._prompt()
        expected = llama_cpp.greedy(gguf_file, prompt, GREEDY_TOKENS)
        loaded = _from_gguf(gguf_file)
        stepper = loaded.stepper()
        stepper.add("a", prompt)
        assert stepper.greedy("a", GREEDY_TOKENS) == expected

    # The same however it is stepped -------------------------------------------------------

    @pytest.mark.parametrize("size", [1, 7, 16])
    def test_chunks_equal_the_whole(self, pair: Pair, size: int) -> None:
        prompt = self._prompt()
        stepper = pair.stepper()
        stepper.add("a", prompt)
        parts = [
            stepper.step({"a": min(size, len(prompt) - start)})["a"]
            for start in range(0, len(prompt), size)
        ]
        _assert_close(torch.cat(parts), self._whole(pair, prompt))

    def test_strangers_in_the_batch_change_nothing(self, pair: Pair) -> None:
        """Decode steps, chunks and whole prompts of others in the same forward."""
        prompt = self._prompt()
        stepper = pair.stepper()
        for seed, length in ((1, 3), (2, self.prompt_length + 9), (3, 18), (4, 1)):
            stepper.add(f"stranger {seed}", self._prompt(seed, length))
        stepper.add("a", prompt)
        rest = len(prompt) - 12
        first = stepper.step({"stranger 1": 3, "stranger 2": 20, "a": 10, "stranger 3": 17})
        second = stepper.step({"a": 1, "stranger 2": 1, "stranger 3": 1, "stranger 4": 1})
        third = stepper.step({"stranger 2": 8, "a": 1})
        last = stepper.step({"stranger 2": self.prompt_length + 9 - 29, "a": rest})
        steps = torch.cat([first["a"], second["a"], third["a"], last["a"]])
        _assert_close(steps, self._whole(pair, prompt))

    def test_sequences_decoded_together_equal_those_alone(self, pair: Pair) -> None:
        _skip_if_recomputing_differs(pair)
        lengths = (2, 5, 16, 17, 33, self.prompt_length)
        known = {f"of {n}": self._prompt(n, n) for n in lengths}
        together, alone = pair.stepper(), pair.stepper()
        counts = {name: len(prompt) for name, prompt in known.items()}
        for name, prompt in known.items():
            together.add(name, prompt)
        for _ in range(3):
            logits = together.step(counts)
            for name, rows in logits.items():
                alone.add(name, known[name])
                _assert_close(rows[-1], alone.finish(name)[-1])
                alone.remove(name)
                token_id = int(rows[-1].argmax())
                together.append(name, token_id)
                known[name].append(token_id)
            counts = dict.fromkeys(known, 1)

    def test_preempted_sequence_resumes(self, pair: Pair) -> None:
        _skip_if_recomputing_differs(pair)
        prompt = self._prompt()
        stepper = pair.stepper()
        stepper.add("a", prompt)
        expected = stepper.greedy("a", 12)
        stepper.remove("a")

        stepper.add("a", prompt)
        begun = stepper.greedy("a", 5)
        tokens = stepper.remove("a")
        stepper.add("thief", self._prompt(7, 30))
        stepper.finish("thief")
        stepper.add("a", tokens)
        assert begun + stepper.greedy("a", 7) == expected

    # The same from the engine --------------------------------------------------------------

    def test_a_prefix_hit_gives_the_same_tokens(self, pair: Pair) -> None:
        _skip_if_recomputing_differs(pair)
        prompt = self._prompt()
        with serving(pair.model, pair.config) as served:
            first = served.greedy([prompt], 6)[0]
            longer = prompt + first + self._prompt(5, 9)
            assert served.greedy([prompt], 6) == [first]
            found = served.greedy([longer], 4)
            hits = served.engine.stats()["prefix_hit_tokens"]
            recurrent = served.recurrent
        with serving(pair.model, pair.config, prefix_cache=False) as served:
            assert served.greedy([prompt, longer], 4) == [first[:4], *found]
        # The state after a prefix is not kept, so a recurrent model has nothing to find.
        assert (hits == 0) if recurrent else (hits > 2 * (len(prompt) - 2 * served.block_size))

    def test_the_engine_preempts_and_resumes(self, first_pair: Pair) -> None:
        """Two that both find room, and then grow out of it."""
        model, config = first_pair.model, first_pair.config
        prompts = [self._prompt(1), self._prompt(2, self.prompt_length - 2)]
        with serving(model, config, prefix_cache=False) as served:
            alone = [served.greedy([prompt], 14)[0] for prompt in prompts]
        room = 2 * self.prompt_length + 10
        with serving(model, config, num_tokens=room, prefix_cache=False) as served:
            assert served.greedy(prompts, 14) == alone
            assert served.engine.stats()["preemptions"] > 0

    # Weights ------------------------------------------------------------------------------

    def test_a_misnamed_tensor_is_named_with_the_nearest(
        self, first_pair: Pair, tmp_path: Path
    ) -> None:
        directory = shutil.copytree(first_pair.directory, tmp_path / "model")
        tensors = load_file(directory / "model.safetensors")
        norms = [n for n in tensors if re.search(r"layers\.1\..*norm\.weight", n)]
        name = min(norms, key=lambda n: "input_layernorm" not in n)
        wrong = name.replace("weight", "weigth")
        tensors[wrong] = tensors.pop(name)
        save_file(tensors, directory / "model.safetensors")
        with pytest.raises(CheckpointError) as caught:
            load_text(LoadRequest(model_id=str(directory), dtype="f32"))
        message = str(caught.value)
        assert f"lacks '{name}' (it has '{wrong}')" in message
        assert f"no place for '{wrong}' (the model has '{name}')" in message

    # Configuration ------------------------------------------------------------------------

    def test_a_value_of_the_wrong_type_is_refused_by_key(self, first_pair: Pair) -> None:
        data = json.loads((first_pair.directory / "config.json").read_text("utf-8"))
        for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"):
            with pytest.raises(ConfigError, match=f"{key} is 'wide'"):
                type(first_pair.config).from_dict({**data, key: "wide"})

    def test_incomplete_configuration_is_refused_by_key(self, pair: Pair) -> None:
        data = json.loads((pair.directory / "config.json").read_text("utf-8"))
        for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"):
            with pytest.raises(ConfigError, match=key):
                type(pair.config).from_dict({k: v for k, v in data.items() if k != key})

    def test_unknown_activation_is_refused(self, pair: Pair) -> None:
        data = json.loads((pair.directory / "config.json").read_text("utf-8"))
        with pytest.raises(ConfigError, match="hidden_act is 'sine'"):
            type(pair.config).from_dict({**data, "hidden_act": "sine"})

    def test_unknown_rope_type_is_refused(self, pair: Pair) -> None:
        data = json.loads((pair.directory / "config.json").read_text("utf-8"))
        data["rope_parameters"] = {"rope_type": "spiral", "rope_theta": 1e4}
        with pytest.raises(ConfigError, match="spiral"):
            type(pair.config).from_dict(data)

    def _prompt(self, seed: int = 0, length: int | None = None) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        count = self.prompt_length if length is None else length
        ids: list[int] = torch.randint(0, VOCAB_SIZE, (count,), generator=generator).tolist()
        return ids

    def _whole(self, pair: Pair, prompt: list[int]) -> Tensor:
        stepper = pair.stepper()
        stepper.add("whole", prompt)
        return stepper.finish("whole")


def _from_gguf(file: Path) -> Pair:
    pytest.importorskip("tramontane_gguf", reason="tramontane-gguf is not installed")
    request = LoadRequest(model_id=str(file.parent), files=[file.name], dtype="f32")
    loaded = load_text(request)
    return Pair(None, file.parent, loaded.model, loaded.config)


def _skip_if_recomputing_differs(pair: Pair) -> None:
    rope = getattr(pair.config, "rope_parameters", None)
    if getattr(rope, "rope_type", None) == "dynamic":
        pytest.skip("dynamic RoPE gives each key the frequencies of the length it was written at")


def _assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)

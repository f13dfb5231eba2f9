"""DeepSeek through the runner: latents are shared, taken away and computed again like keys."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tramontane import CompletionRequest, CompletionResponse, Runner, Which
from tramontane_testkit.models import DEEPSEEK_V3, hf_model, save_hf

PROMPTS = [letter * 20 for letter in "abcd"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_hf(
        hf_model("DeepseekV3ForCausalLM", **DEEPSEEK_V3), tmp_path_factory.mktemp("model")
    )


@pytest.fixture
def tight(directory: Path) -> Iterator[Runner]:
    """Room for two sequences to end in, and for three to begin."""
    which = Which.Plain(model_id=str(directory))
    with Runner(which=which, pa_ctxt_len=96, pa_blk_size=8) as runner:
        yield runner


def ask(runner: Runner, prompt: str, n_choices: int = 1) -> list[str]:
    request = CompletionRequest(
        prompt=prompt, max_tokens=24, temperature=0.0, ignore_eos=True, n_choices=n_choices
    )
    response = runner.send_completion_request(request)
    assert isinstance(response, CompletionResponse)
    return [choice.text for choice in response.choices]


def test_preempted_and_cached_sequences_say_the_same(directory: Path, tight: Runner) -> None:
    with Runner(which=Which.Plain(model_id=str(directory)), pa_blk_size=8) as roomy:
        alone = [ask(roomy, prompt) for prompt in PROMPTS]
        assert roomy.stats()["preemptions"] == 0
        again = [ask(roomy, prompt) for prompt in PROMPTS]
        assert roomy.stats()["prefix_hit_tokens"] > 0
    assert again == alone
    # Choices of one request begin in the same step, however late the other requests come.
    thrice = [choices * 3 for choices in alone]
    assert ask(tight, PROMPTS[0], n_choices=3) == thrice[0]
    assert tight.stats()["preemptions"] > 0
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        together = list(pool.map(lambda prompt: ask(tight, prompt, n_choices=3), PROMPTS))
    assert together == thrice

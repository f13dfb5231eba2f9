"""A trained Llama, whose continuation is known."""

from tramontane.loading.loader import LoadRequest, load_text
from tramontane_testkit import Stepper, data_path

PROMPT = [1, 147, 201, 282, 215]
CONTINUATION = [
    286, 598, 1662, 356, 499, 826, 1363, 1145, 1652, 615,
    242, 1482, 951, 628, 499, 826, 872, 921, 318, 385,
]  # fmt: skip


def test_tiny_stories_goes_on_as_known() -> None:
    directory = data_path("models", "tinystories-656k")
    loaded = load_text(LoadRequest(model_id=str(directory), dtype="f32"))
    stepper = Stepper(loaded.model, loaded.config, device=loaded.device)
    stepper.add("story", PROMPT)
    assert stepper.greedy("story", len(CONTINUATION)) == CONTINUATION


def test_tied_head_shares_its_memory() -> None:
    directory = data_path("models", "tinystories-656k")
    model = load_text(LoadRequest(model_id=str(directory), dtype="f32")).model
    parameters = dict(model.named_parameters(remove_duplicate=False))
    assert parameters["lm_head.weight"] is parameters["model.embed_tokens.weight"]

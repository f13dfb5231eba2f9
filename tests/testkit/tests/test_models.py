"""The tiny models load, talk through their template, and hold the same weights in every format."""

from pathlib import Path

import pytest
import torch

from tramontane.loading.loader import LoadedModel, LoadRequest, load_text
from tramontane_testkit import Stepper, data
from tramontane_testkit.gguf_files import tiny_gguf
from tramontane_testkit.models import EOS, IM_END, VOCAB_SIZE, byte_tokenizer, tiny_llama

TEXT = "Grüße, 世界! <|im_end|>"


def test_tokenizer_knows_every_byte() -> None:
    tokenizer = byte_tokenizer()
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    ids = tokenizer.encode("aé").ids
    assert ids == [97, 0xC3, 0xA9]
    assert tokenizer.encode(TEXT).ids[-1] == IM_END
    assert tokenizer.decode(tokenizer.encode(TEXT).ids, skip_special_tokens=False) == TEXT


def logits(loaded: LoadedModel) -> torch.Tensor:
    stepper = Stepper(loaded.model, loaded.config, device=loaded.device)
    stepper.add("a", list(range(20, 40)))
    return stepper.finish("a")


def test_directory_is_complete(tmp_path: Path) -> None:
    loaded = load_text(LoadRequest(model_id=str(tiny_llama(tmp_path / "model"))))
    assert loaded.chat_template is not None
    rendered = loaded.chat_template.render([{"role": "user", "content": "hi"}])
    assert rendered == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert loaded.tokenizer.encode("hi") == [104, 105]
    assert EOS in loaded.eos_token_ids


@pytest.mark.parametrize("tied", [False, True])
def test_gguf_file_holds_the_same_model(tmp_path: Path, tied: bool) -> None:
    pytest.importorskip("tramontane_gguf", reason="tramontane-gguf is not installed")
    directory = tiny_llama(tmp_path / "model", seed=3, tie_word_embeddings=tied)
    file = tiny_gguf(tmp_path / "model.gguf", seed=3, tie_word_embeddings=tied)
    plain = load_text(LoadRequest(model_id=str(directory), dtype="f32"))
    from_gguf = load_text(LoadRequest(model_id=str(tmp_path), files=[file.name], dtype="f32"))
    torch.testing.assert_close(logits(from_gguf), logits(plain))
    assert from_gguf.tokenizer.encode("hé") == plain.tokenizer.encode("hé")


def test_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file.txt").write_text("x", encoding="utf-8")
    monkeypatch.setenv(data.ENVIRONMENT, str(tmp_path))
    assert data.data_path("file.txt") == tmp_path / "file.txt"
    with pytest.raises(pytest.skip.Exception, match=r"lack models/none"):
        data.data_path("models", "none")

from __future__ import annotations

import subprocess
import sys

import pytest

import mistralrs
import tramontane

NAMES = """
Runner Which Architecture VisionArchitecture DiffusionArchitecture EmbeddingArchitecture
IsqOrganization ModelDType TextAutoMapParams VisionAutoMapParams ChatCompletionRequest
CompletionRequest EmbeddingRequest McpServerConfigPy McpServerSourcePy McpClientConfigPy
ImageGenerationResponseFormat ToolChoice SpeechLoaderType MultimodalArchitecture
MultimodalAutoMapParams AnyMoeConfig AnyMoeExpertType LoraAdapter PagedCacheType
WebSearchOptions SearchContextSize WebSearchUserLocation ApproximateUserLocation
ResponseMessage Delta ResponseLogprob Logprobs Choice ChunkChoice Usage TopLogprob
ChatCompletionResponse ChatCompletionChunkResponse CompletionChoice CompletionResponse
SpeechGenerationResponse ImageGenerationResponse
"""
SDK = NAMES.split()


@pytest.mark.parametrize("name", SDK)
def test_names_of_the_sdk(name: str) -> None:
    assert getattr(mistralrs, name) is getattr(tramontane, name)


def test_everything_public_is_here() -> None:
    assert dir(mistralrs) == sorted(tramontane.__all__)
    assert set(SDK) <= set(mistralrs.__all__)
    for name in mistralrs.__all__:
        assert getattr(mistralrs, name) is getattr(tramontane, name)
    assert mistralrs.__version__ == tramontane.__version__


def test_star_import() -> None:
    names: dict[str, object] = {}
    exec("from mistralrs import *", names)
    assert set(SDK) <= set(names)


def test_unknown_names() -> None:
    with pytest.raises(AttributeError, match="module 'mistralrs' has no attribute 'Runer'"):
        mistralrs.Runer  # noqa: B018
    with pytest.raises(ImportError):
        from mistralrs import nothing  # noqa: F401


@pytest.mark.parametrize(
    "expression",
    [
        'Which.VisionPlain(model_id="google/gemma-3-4b-it", arch=VisionArchitecture.Gemma3)',
        'Which.GGUF(tok_model_id="a/b", quantized_model_id="c/d", quantized_filename="e.gguf")',
        'Which.Embedding(model_id="m", arch=EmbeddingArchitecture.Qwen3Embedding)',
        'Which.Speech(model_id="m", arch=DiffusionArchitecture.Dia)',
        'ChatCompletionRequest(messages=[{"role": "user", "content": "Hello!"}], max_tokens=100)',
        'EmbeddingRequest(input=["a", "b"], truncate_sequence=True)',
        'McpServerConfigPy(id="a", name="b", source=McpServerSourcePy.WebSocket('
        'url="wss://example.com/mcp", timeout_secs=60, headers=None), enabled=True, '
        'tool_prefix="rt", resources=None, bearer_token="t")',
    ],
)
def test_documented_calls(expression: str) -> None:
    names: dict[str, object] = {}
    exec("from mistralrs import *", names)
    assert eval(expression, names) is not None


def test_importing_it_loads_no_torch() -> None:
    code = "import sys, mistralrs; mistralrs.Which.Plain('m'); print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "False"

"""What the embedding pipeline does before and around its model."""

import pytest
import torch

from tramontane import MissingPluginError, Which
from tramontane.hooks import PluginManager
from tramontane.pipeline.embedding import EmbeddingPipeline, _by_length, _cut, pack
from tramontane.protocols.pipeline import PipelineOptions


def test_without_an_architecture_nothing_is_fetched() -> None:
    options = PipelineOptions(plugins=PluginManager(discover=False))
    with pytest.raises(MissingPluginError, match=r"tramontane\[embedding\]"):
        EmbeddingPipeline.load(Which.Embedding("nobody/nothing"), options)


def test_texts_lie_in_blocks_of_their_own() -> None:
    batch = pack([[1, 2, 3, 4, 5], [6], [7, 8]], 4, torch.device("cpu"))
    assert batch.token_ids.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert batch.positions.tolist() == [0, 1, 2, 3, 4, 0, 0, 1]
    assert batch.slots.tolist() == [0, 1, 2, 3, 4, 8, 12, 13]
    assert batch.block_tables.tolist() == [[0, 1], [2, -1], [3, -1]]
    assert batch.query_starts.tolist() == [0, 5, 6, 8]
    assert batch.query_lens == batch.kv_lens == [5, 1, 2]


def test_batches_hold_neighbours_in_length() -> None:
    batches = list(_by_length([2000, 3, 5000, 60, 3, 1990]))
    assert batches == [[1, 4, 3], [5], [0], [2]]


@pytest.mark.parametrize(
    ("ids", "plain", "limit", "expected"),
    [
        ([1, 5, 6, 7, 2], [5, 6, 7], 4, [1, 5, 6, 2]),
        ([5, 6, 7, 2], [5, 6, 7], 2, [5, 2]),
        ([5, 6, 7], [5, 6, 7], 2, [5, 6]),
        ([1, 5, 2], [5], 2, [1, 5]),  # no room for anything but special tokens
    ],
)
def test_a_text_is_cut_between_its_special_tokens(
    ids: list[int], plain: list[int], limit: int, expected: list[int]
) -> None:
    assert _cut(ids, plain, limit) == expected

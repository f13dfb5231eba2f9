from __future__ import annotations

from tramontane.cache import PrefixIndex, block_key


def chain(*blocks: list[int], root: bytes = b"") -> list[bytes]:
    keys = []
    for tokens in blocks:
        root = block_key(root, tokens)
        keys.append(root)
    return keys


def test_key_stands_for_the_whole_prefix():
    assert chain([1, 2], [3, 4]) == chain([1, 2], [3, 4])
    assert chain([1, 2], [3, 4])[1] != chain([2, 1], [3, 4])[1]
    assert chain([1, 2])[0] != chain([1, 2], root=b"adapter")[0]
    assert chain([1, 2])[0] != chain([1 + 2**32, 2])[0]
    assert chain([1, 2], [1, 2])[0] != chain([1, 2], [1, 2])[1]


def fill(index: PrefixIndex, keys: list[bytes], blocks: list[int]) -> None:
    for key, block in zip(keys, blocks, strict=True):
        index.add(key, block)


def test_match_stops_at_the_first_gap_and_at_the_limit():
    index = PrefixIndex()
    keys = chain([1], [2], [3], [4])
    fill(index, [keys[0], keys[1], keys[3]], [7, 8, 9])
    assert index.match(keys, 4) == [7, 8]
    assert index.match(keys, 1) == [7]
    assert index.match(chain([2]), 4) == []


def test_a_second_block_of_one_content_is_not_kept():
    index = PrefixIndex()
    (key,) = chain([1])
    index.add(key, 3)
    index.add(key, 4)
    assert index.match([key], 1) == [3]
    assert not index.put_back(4)
    assert index.put_back(3)


def test_least_recently_used_is_evicted_first():
    index = PrefixIndex()
    keys = chain([1], [2], [3])
    fill(index, keys, [0, 1, 2])
    for block in (2, 1, 0):
        assert index.put_back(block)
    index.take(2)
    assert index.is_idle(1)
    assert not index.is_idle(2)
    assert index.put_back(2)
    assert [index.evict() for _ in range(3)] == [1, 0, 2]
    assert (index.evictions, len(index), index.num_idle) == (3, 0, 0)


def test_only_so_many_finished_sequences_stay():
    index = PrefixIndex(max_finished=2)
    shared, mine = chain([1], [2])
    other = chain([1], [3])[1]
    third, fourth = chain([8])[0], chain([9])[0]
    fill(index, [shared, mine, other, third, fourth], [0, 1, 2, 3, 4])
    for block in range(5):
        index.put_back(block)
    assert index.finish([shared, mine]) == []
    assert index.finish([shared, other]) == []
    assert index.finish([third]) == [1]  # the first one's own block; the other is still claimed
    assert index.finish([fourth]) == [0, 2]
    assert (third in index, fourth in index, shared in index) == (True, True, False)


def test_a_block_in_use_is_not_forgotten():
    index = PrefixIndex(max_finished=1)
    (key,) = chain([1])
    index.add(key, 0)
    assert index.finish([key]) == []
    assert index.finish(chain([2])) == []  # somebody still runs on block 0
    assert index.match([key], 1) == [0]

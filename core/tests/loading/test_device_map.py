"""Placement on paper machines."""

from __future__ import annotations

from itertools import combinations_with_replacement

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tramontane.errors import ConfigError, MemoryPlanError
from tramontane.loading.device_map import (
    Budget,
    DeviceMap,
    Needs,
    check_fit,
    count_layers,
    map_layers,
)

GIB = 1 << 30
CPU = torch.device("cpu")


def cuda(index):
    return torch.device("cuda", index)


def machine(*gpus, cpu=64.0):
    """Budgets of GPUs and a CPU, in GiB."""
    listed = [Budget(cuda(i), int(size * GIB)) for i, size in enumerate(gpus)]
    return [*listed, Budget(CPU, int(cpu * GIB))]


def model(num_layers=32, layer=0.4, cache=0.02, fixed=1.0, activations=0.1):
    return Needs(
        layers=(int(layer * GIB),) * num_layers,
        caches=(int(cache * GIB),) * num_layers,
        fixed=int(fixed * GIB),
        activations=int(activations * GIB),
    )


def spread(found):
    """Layers on each device in use, in order."""
    return [(str(d), len(found.layers_on(d))) for d in found.devices]


# Paper machines -----------------------------------------------------------------------------


def test_without_an_accelerator_everything_is_on_the_cpu():
    found = map_layers(model(), machine())
    assert found == DeviceMap.single(CPU, 32)
    assert not found.is_split


def test_one_large_gpu_takes_everything():
    assert map_layers(model(), machine(24)) == DeviceMap.single(cuda(0), 32)


def test_one_small_gpu_leaves_the_last_layers_to_the_cpu():
    found = map_layers(model(), machine(6))
    assert found.main == cuda(0)
    # 6 - 1.0 - 0.1 = 4.9 GiB hold 11 layers of 0.42.
    assert spread(found) == [("cuda:0", 11), ("cpu", 21)]
    assert found.layers[:11] == (cuda(0),) * 11
    assert found.describe(model())[0].startswith("layers 0 to 10: cuda:0 (4.62 GiB)")


def test_a_gpu_too_small_for_head_and_embedding_still_takes_layers():
    found = map_layers(model(), machine(1))
    assert found.main == CPU
    assert spread(found) == [("cpu", 30), ("cuda:0", 2)]
    assert found.layers[:3] == (cuda(0), cuda(0), CPU)


def test_two_unequal_gpus():
    # Together they hold the model, alone neither does.
    assert spread(map_layers(model(), machine(4, 12))) == [("cuda:0", 6), ("cuda:1", 26)]
    # The second alone holds it: no transfers then.
    assert map_layers(model(), machine(4, 16)) == DeviceMap.single(cuda(1), 32)
    # The first has no room for what is outside the layers, the second has.
    assert spread(map_layers(model(), machine(1, 14))) == [("cuda:1", 30), ("cuda:0", 2)]


def test_eight_gpus():
    found = map_layers(model(80, 1.6, 0.05, 2.0, 0.2), machine(*[24] * 8))
    assert spread(found) == [(f"cuda:{i}", n) for i, n in enumerate([13, 14, 14, 14, 14, 11])]
    assert found.main == cuda(0)


def test_layers_of_very_different_sizes():
    needs = Needs(layers=(9, 1, 1, 50, 1, 9), caches=(0,) * 6, fixed=2)
    budgets = [Budget(cuda(0), 12), Budget(cuda(1), 20), Budget(CPU, 100)]
    found = map_layers(needs, budgets)
    assert [str(d) for d in found.layers] == ["cuda:0", "cuda:0", "cuda:1", "cpu", "cpu", "cpu"]


def test_a_model_that_fits_nowhere():
    with pytest.raises(MemoryPlanError) as info:
        map_layers(model(), machine(2, cpu=4), advice="Q4K (3.0 GiB)")
    message = str(info.value)
    assert "weights of 13.80 GiB, a cache of 0.64 GiB" in message
    assert "a model may take: cuda:0 2.00 GiB, cpu 4.00 GiB; 8.54 GiB are lacking" in message
    assert message.endswith("What would help: Q4K (3.0 GiB)")
    with pytest.raises(MemoryPlanError, match="no placement of whole layers in order fits"):
        map_layers(Needs(layers=(6, 6), caches=(0, 0)), [Budget(cuda(0), 7), Budget(CPU, 5)])


# Placements by hand ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "main", "expected"),
    [
        ([(0, 3), (1, 2)], "cuda:0", "000110" [:5] + "c"),
        ([(1, 2), (0, 1)], "cuda:1", "110ccc"),
        ([(0, 99)], "cuda:0", "000000"),
        ([(0, 4), (1, 99)], "cuda:0", "000011"),
        ([(0, 0)], "cpu", "cccccc"),
        ([(0, 0), (1, 1)], "cuda:1", "1ccccc"),
    ],
)  # fmt: skip
def test_num_device_layers(counts, main, expected):
    found = count_layers(counts, 6, [cuda(0), cuda(1)], CPU)
    assert str(found.main) == main
    assert "".join("c" if d == CPU else str(d.index) for d in found.layers) == expected


def test_num_device_layers_names_an_accelerator_that_is_not_there():
    with pytest.raises(ConfigError, match=r"accelerator 1; this machine has 1 \(cuda:0\)"):
        count_layers([(0, 2), (1, 2)], 6, [cuda(0)], CPU)
    with pytest.raises(ConfigError, match=r"this machine has 0 \(none\)"):
        count_layers([(0, 2)], 6, [], CPU)


def test_a_placement_by_hand_that_does_not_fit_says_how_much_would():
    wanted = DeviceMap(cuda(0), (cuda(0),) * 20 + (CPU,) * 12)
    with pytest.raises(MemoryPlanError) as info:
        check_fit(wanted, model(), machine(6), asked_by="num_device_layers", advice="use Q4K")
    assert "num_device_layers puts 20 layers on cuda:0, which take 9.50 GiB" in str(info.value)
    assert "6.00 GiB may be taken there, enough for 11 layers" in str(info.value)
    check_fit(wanted, model(), machine(10), asked_by="num_device_layers", advice="")


def test_some_layers_elsewhere():
    found = DeviceMap.single(cuda(0), 4).with_layers({1: CPU})
    assert found.layers == (cuda(0), CPU, cuda(0), cuda(0))
    assert found.devices == (cuda(0), CPU)


# Properties ---------------------------------------------------------------------------------

SIZES = st.integers(0, 40)
NEEDS = st.lists(st.tuples(SIZES, st.integers(0, 5)), min_size=1, max_size=7).flatmap(
    lambda layers: st.builds(
        Needs,
        layers=st.just(tuple(weights for weights, _ in layers)),
        caches=st.just(tuple(cache for _, cache in layers)),
        fixed=SIZES,
        activations=st.integers(0, 5),
    )
)
BUDGETS = st.lists(st.integers(0, 120), min_size=1, max_size=4).map(
    lambda sizes: [
        *(Budget(cuda(i), size) for i, size in enumerate(sizes[:-1])),
        Budget(CPU, sizes[-1]),
    ]
)


def fits(found, needs, budgets):
    return all(found.bytes_on(b.device, needs) <= b.nbytes for b in budgets)


def every_placement(needs, budgets):
    """All of them in order, by brute force."""
    devices = [budget.device for budget in budgets]
    for layers in combinations_with_replacement(devices, len(needs.layers)):
        for main in devices:
            yield DeviceMap(main, layers)


@settings(max_examples=150, deadline=None)
@given(NEEDS, BUDGETS)
def test_each_layer_has_one_place_in_order_and_no_device_is_over_its_budget(needs, budgets):
    possible = [p for p in every_placement(needs, budgets) if fits(p, needs, budgets)]
    try:
        found = map_layers(needs, budgets)
    except MemoryPlanError:
        assert not possible
        return
    order = [budget.device for budget in budgets]
    places = [order.index(device) for device in found.layers]
    assert len(places) == len(needs.layers)
    assert places == sorted(places)
    assert fits(found, needs, budgets)
    assert (found.main == CPU) == all(p.main == CPU for p in possible)
    rivals = [p for p in possible if p.main != CPU] or possible
    assert found.weights_on(CPU, needs) == min(p.weights_on(CPU, needs) for p in rivals)

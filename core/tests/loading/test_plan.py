"""Dtype, device memory and the size of the cache."""

from __future__ import annotations

import pytest
import torch

from tramontane.cache import FullAttention, RecurrentState
from tramontane.errors import ConfigError, MemoryPlanError
from tramontane.loading import device as device_module
from tramontane.loading import dtype as dtype_module
from tramontane.loading.device import Room, choose_device, memory_of
from tramontane.loading.dtype import Inventory, choose_cache_dtype, choose_dtype, survey
from tramontane.loading.plan import CacheRequest, Part, plan_memory

from .conftest import MemoryCheckpoint, RowPacked  # noqa: TID252

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)
MIB = 1 << 20
GIB = 1 << 30
BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32

SPECS = [FullAttention(8, 64)] * 16  # 32 KiB a token in two-byte dtypes


def inventory(elements=1_000_000_000, dtype=BF16, packed=0):
    return Inventory({dtype: elements} if elements else {}, packed, 0, 0)


def plan(
    total_gib=16.0, *, available=None, weights=None, device=CPU, max_positions=8192, **request
):
    total = int(total_gib * GIB)
    return plan_memory(
        inventory=weights or inventory(),
        specs=SPECS,
        max_positions=max_positions,
        request=CacheRequest(**request),
        dtype=BF16,
        device=device,
        room=Room(total, total if available is None else int(available * GIB)),
    )


# Dtype ------------------------------------------------------------------------------------


def test_survey_counts_what_there_is():
    tensors = {
        "a": torch.zeros(4, 8, dtype=BF16),
        "b": torch.zeros(5),
        "c": torch.zeros(3, dtype=torch.int32),
        "d": RowPacked.pack(torch.randn(4, 8)),
    }
    found = survey(MemoryCheckpoint(tensors))
    assert found == Inventory({BF16: 32, F32: 5}, 4 * 8 + 4 * 4, 12, 64)
    assert found.bytes_as(F32) == 37 * 4 + 48 + 12


@pytest.mark.parametrize("name", ["bf16", "BF16", "Bf16"])
def test_a_named_dtype_is_taken(name):
    assert choose_dtype(name, inventory(), CPU) is BF16


def test_an_unknown_dtype_is_refused():
    with pytest.raises(ConfigError, match="'int4' is unknown; use Auto, BF16, F16 or F32"):
        choose_dtype("int4", inventory(), CPU)


@pytest.mark.parametrize(
    ("able", "stored", "expected"),
    [
        ({BF16, F16, F32}, BF16, BF16),
        ({BF16, F16, F32}, F16, F16),
        ({BF16, F16, F32}, F32, F32),
        ({BF16, F16, F32}, torch.float64, BF16),
        ({F16, F32}, BF16, F16),
        ({F32}, BF16, F32),
        ({F32}, F16, F32),
    ],
)
def test_auto_keeps_the_checkpoints_dtype_where_it_multiplies(monkeypatch, able, stored, expected):
    monkeypatch.setattr(dtype_module, "multiplies", lambda dtype, device: dtype in able)
    monkeypatch.setattr(dtype_module, "multiplies_narrow", lambda stored, dtype, device: False)
    assert choose_dtype("Auto", inventory(dtype=stored), CPU) is expected


def test_auto_takes_f32_where_kernels_read_narrow_weights(monkeypatch):
    monkeypatch.setattr(dtype_module, "multiplies", lambda dtype, device: True)
    kernels = {("cpu", BF16, F32)}
    monkeypatch.setattr(
        dtype_module,
        "multiplies_narrow",
        lambda stored, dtype, device: (device.type, stored, dtype) in kernels,
    )
    assert choose_dtype("auto", inventory(dtype=BF16), CPU) is F32
    assert choose_dtype("auto", inventory(dtype=F16), CPU) is F16
    assert choose_dtype("auto", inventory(dtype=BF16), CUDA) is BF16
    assert choose_dtype("bf16", inventory(dtype=BF16), CPU) is BF16


def test_kept_weights_take_what_they_take_in_the_file():
    found = Inventory({BF16: 100, F32: 10}, 7, 3, 64, kept={BF16: 80})
    assert found.bytes_as(F32) == 80 * 2 + 30 * 4 + 7 + 3


@pytest.mark.parametrize(
    ("asked", "weights", "dtype", "device", "expected"),
    [
        ("Auto", inventory(packed=GIB), F32, CPU, F16),
        ("auto", Inventory({BF16: 100}, 0, 0, 64, kept={BF16: 80}), F32, CPU, F16),
        ("Auto", inventory(dtype=F32), F32, CPU, F32),
        ("F32", inventory(packed=GIB), F32, CPU, F32),
        ("Auto", inventory(packed=GIB), BF16, CPU, BF16),
        ("Auto", inventory(packed=GIB), F32, CUDA, F32),
    ],
)
def test_keys_and_values_are_narrower_where_weights_are(asked, weights, dtype, device, expected):
    assert choose_cache_dtype(asked, weights, dtype, device) is expected


def test_auto_with_packed_weights(monkeypatch):
    monkeypatch.setattr(dtype_module, "multiplies", lambda dtype, device: True)
    packed = inventory(1000, F32, packed=GIB)
    assert choose_dtype("auto", packed, CPU) is F32
    assert choose_dtype("auto", packed, CUDA) is BF16


@pytest.mark.parametrize(
    ("capability", "expected"), [((9, 0), BF16), ((8, 0), BF16), ((7, 5), F16), ((5, 2), F32)]
)
def test_what_cuda_devices_multiply(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_dtype("auto", inventory(dtype=torch.float64), CUDA) is expected


def test_this_cpu_answers():
    assert choose_dtype("auto", inventory(dtype=BF16), CPU) in (BF16, F16, F32)
    assert choose_dtype("auto", inventory(dtype=F32), CPU) is F32


# Device -----------------------------------------------------------------------------------


def test_the_device_of_this_machine():
    assert choose_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    room = memory_of(CPU)
    assert 0 < room.available <= room.total


@pytest.mark.parametrize("version", [1, 2])
def test_a_containers_limit_counts(tmp_path, monkeypatch, version):
    group = tmp_path / "a" / "b" if version == 2 else tmp_path / "memory" / "a" / "b"
    group.mkdir(parents=True)
    if version == 2:
        cgroup, names, stat = "0::/a/b\n", ("memory.max", "memory.current"), ("file", "shmem")
    else:
        cgroup = "4:cpu,cpuacct:/x\n3:memory:/a/b\n"
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        stat = ("total_cache", "total_shmem")
    # The inner group allows more than the one around it, which is what counts.
    for folder, limit in ((group, 900 * MIB), (group.parent, 800 * MIB)):
        (folder / names[0]).write_text(f"{limit}\n")
        (folder / names[1]).write_text(f"{500 * MIB}\n")
        (folder / "memory.stat").write_text(f"{stat[0]} {200 * MIB}\n{stat[1]} {50 * MIB}\n")
    (tmp_path / "proc").write_text(cgroup)
    real = device_module.Path

    def path(name):
        return tmp_path / "proc" if name == "/proc/self/cgroup" else real(name)

    monkeypatch.setattr(device_module, "Path", path)
    monkeypatch.setattr(device_module, "CGROUPS", tmp_path)
    room = memory_of(CPU)
    assert room.total == 800 * MIB
    assert room.available <= 450 * MIB  # 800 - (500 - (200 - 50))
    (group.parent / names[0]).write_text("max\n")
    assert memory_of(CPU).total == 900 * MIB


# Plan -------------------------------------------------------------------------------------


def test_unasked_there_is_room_for_max_seqs_and_for_one_long_sequence():
    found = plan(64, max_seqs=4)
    assert found.num_blocks == 4 * 4096 // 32
    assert found.cache_bytes == 4 * 4096 * 32 * 1024
    assert found.weight_bytes == 2_000_000_000
    assert found.max_seq_len == 8192
    assert plan(64, max_seqs=1).num_blocks == 8192 // 32


def test_unasked_it_shrinks_to_half_of_what_is_left():
    found = plan(4, max_seqs=16)
    free = 4 * GIB - 2_000_000_000 - 4 * GIB // 16
    assert found.num_blocks == free // 2 // (MIB)
    assert found.max_seq_len == min(8192, found.num_blocks * 32)
    on_gpu = plan(4, max_seqs=16, device=CUDA)
    assert on_gpu.num_blocks > found.num_blocks


def test_the_models_own_limit_bounds_a_sequence():
    assert plan(64, max_positions=512).max_seq_len == 512
    assert plan(64, max_seqs=2, max_positions=512).num_blocks == 2 * 512 // 32


def test_context_fraction_and_bytes_size_the_cache():
    assert plan(context_len=1000).num_blocks == 32  # 31.25
    assert plan(context_len=1000).max_seq_len == 1024
    assert plan(context_len=1000, block_size=8).num_blocks == 125
    assert plan(cache_bytes=100 * MIB).num_blocks == 100
    half = plan(16, cache_fraction=0.5)
    working = 512 * MIB
    assert half.num_blocks == (8 * GIB - 2_000_000_000 - working) // MIB
    # What others hold of the device is part of the share.
    assert plan(16, available=12, cache_fraction=0.5).num_blocks == half.num_blocks - 4096
    both = plan(context_len=64, cache_fraction=0.5, cache_bytes=GIB)
    assert both.num_blocks == 2


def test_a_cache_of_another_dtype():
    found = plan(cache_bytes=100 * MIB, dtype=torch.float8_e4m3fn)
    assert found.num_blocks == 188  # of heads of 64 numbers each vector has a scale of 4 bytes
    assert found.cache_dtype is torch.float8_e4m3fn


def recurrent_plan(total=16 * GIB, *, elements=1_000_000_000, **request):
    spec = RecurrentState((4, 128), (8, 64, 127))
    assert spec.bytes_per_seq(BF16) == 2 * 256 * 1024  # before a step and after it
    return plan_memory(
        inventory=inventory(elements),
        specs=[spec] * 20,
        max_positions=100,
        request=CacheRequest(max_seqs=8, **request),
        dtype=BF16,
        device=CPU,
        room=Room(total, total),
    )


def test_recurrent_state_is_counted_for_every_sequence():
    found = recurrent_plan()
    assert found.cache_bytes == 80 * MIB
    assert found.max_seq_len == 100


@pytest.mark.parametrize("request_", [{"cache_bytes": 4 * GIB}, {"cache_fraction": 0.9}])
def test_blocks_that_take_nothing_are_as_many_as_are_of_use(request_):
    assert recurrent_plan(**request_).num_blocks == 8 * 4  # eight sequences of 100 tokens


def test_states_that_do_not_fit_name_what_makes_them_fewer():
    with pytest.raises(MemoryPlanError, match=r"80.0 MiB for the states of 8 sequences \(max_seqs"):
        recurrent_plan(GIB, elements=480_000_000)


def test_weights_that_do_not_fit_name_formats_that_would():
    with pytest.raises(MemoryPlanError) as info:
        plan(8, weights=inventory(7_000_000_000))
    message = str(info.value)
    assert "the weights need 13.0 GiB in bfloat16" in message
    assert "8.0 GiB free of 8.0 GiB" in message
    assert "would fit: Q8_0 (6.9 GiB), Q4K (3.7 GiB)" in message
    with pytest.raises(MemoryPlanError, match="even smaller formats do not fit"):
        plan(2, weights=inventory(70_000_000_000))
    with pytest.raises(MemoryPlanError, match="file of a smaller quantization"):
        plan(2, weights=inventory(0, packed=3 * GIB))


def test_a_cache_that_does_not_fit_says_what_would():
    with pytest.raises(MemoryPlanError) as info:
        plan(4, context_len=1_000_000, max_positions=1_000_000)
    message = str(info.value)
    free = 4 * GIB - 2_000_000_000 - 4 * GIB // 16
    tokens = free // MIB * 32
    assert f"pa_ctxt_len={tokens}" in message
    assert f"{tokens // 4096} sequences of 4096 tokens" in message
    assert "Q4K" in message
    # What is promised holds.
    assert plan(4, context_len=tokens, max_positions=1_000_000).max_seq_len == tokens


def test_a_machine_too_small_for_one_sequence():
    with pytest.raises(MemoryPlanError, match=r"one sequence of \d+ tokens"):
        plan(2.1, planned_seq_len=8192)
    with pytest.raises(MemoryPlanError, match="for 32 tokens"):
        plan(cache_bytes=1000)
    with pytest.raises(MemoryPlanError):
        plan(cache_fraction=0.01)


def test_a_cache_nobody_asked_for_leaves_half_of_a_budget_to_other_models():
    def planned(left, **request):
        return plan_memory(
            inventory=inventory(),
            specs=SPECS,
            max_positions=8192,
            request=CacheRequest(**request),
            dtype=BF16,
            device=CPU,
            room=Room(16 * GIB, 16 * GIB),
            left=left,
        ).cache_bytes

    assert planned(GIB) == GIB // 2 < planned(None)
    least = planned(None, context_len=4096)
    assert planned(0) == least, "one sequence of the planned length: others make room for it"
    assert planned(0, context_len=8192) == 2 * least, "what is asked for is asked for"


# Several devices --------------------------------------------------------------------------------


def split_plan(*gpus, cpu=64.0, **request):
    """Twelve layers shared evenly by GPUs and the CPU, 0.5 GB of weights on each."""
    sizes = [*gpus, cpu]
    devices = [*(torch.device("cuda", i) for i in range(len(gpus))), CPU]
    count = 12 // len(sizes)
    parts = [
        Part(
            device=device,
            room=Room(int(size * GIB), int(size * GIB)),
            weight_bytes=500_000_000,
            specs=SPECS[:count],
        )
        for device, size in zip(devices, sizes, strict=True)
    ]
    return plan_memory(
        inventory=inventory(),
        specs=SPECS[:12],
        max_positions=1_000_000,
        request=CacheRequest(**request),
        dtype=BF16,
        device=devices[0],
        parts=parts,
    )


def test_the_device_with_the_least_room_decides_how_many_blocks_there_are():
    block = 4 * 2048 * 32  # of four of twelve layers
    free = int(1.5 * GIB) - 500_000_000 - int(1.5 * GIB) // 16
    assert split_plan(24, 1.5).num_blocks == free * 9 // 10 // block
    assert split_plan(1.5, 24).num_blocks == split_plan(24, 1.5).num_blocks
    # The share of memory is that of the accelerators.
    tight = split_plan(4, 2, cpu=3.0, cache_fraction=0.5).num_blocks
    assert tight == (GIB - 500_000_000 - 2 * GIB // 16) // block
    assert split_plan(24, 24, cache_bytes=120 * MIB).num_blocks == 120 * MIB // (3 * block)


def test_a_cache_too_large_for_one_of_several_devices_names_it():
    with pytest.raises(MemoryPlanError, match=r"cuda:1 has 1.5 GiB free of 1.5 GiB"):
        split_plan(24, 1.5, context_len=500_000)

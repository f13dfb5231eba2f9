"""Which device a model runs on, and how much memory there is on it."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch
from attrs import frozen

CGROUPS = Path("/sys/fs/cgroup")


@frozen
class Room:
    """Memory of a device, in bytes: all of it, and what may still be taken."""

    total: int
    available: int


def choose_device() -> torch.device:
    """The first accelerator, or the CPU. `tramontane.loading.placement` spreads a model over
    several."""
    return next(iter(accelerators()), torch.device("cpu"))


def accelerators() -> list[torch.device]:
    """Devices that layers are placed on before the CPU, in order."""
    if not torch.cuda.is_available():
        return []
    return [torch.device("cuda", index) for index in range(torch.cuda.device_count())]


def memory_of(device: torch.device) -> Room:
    """Memory of ``device``. On the CPU a container's limit counts, not the host's memory."""
    if device.type == "cuda":
        available, total = torch.cuda.mem_get_info(device)
        return Room(total, available)
    host = psutil.virtual_memory()
    rooms = [Room(host.total, host.available), *_cgroup_rooms()]
    return Room(min(r.total for r in rooms), min(r.available for r in rooms))


def _cgroup_rooms() -> list[Room]:
    """What every control group around this process leaves it; empty where there is no limit.

    Pages of files count as free, because the kernel drops them before it refuses memory.
    """
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return []
    rooms = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            base, limit, usage = CGROUPS, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            base = CGROUPS / "memory"
            limit, usage = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        group = base / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(base):
                rooms.append(_cgroup_room(folder, limit, usage))
    return [room for room in rooms if room is not None]


def _cgroup_room(folder: Path, limit: str, usage: str) -> Room | None:
    try:
        total = int((folder / limit).read_text(encoding="ascii"))
        used = int((folder / usage).read_text(encoding="ascii"))
        lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
    # "max" (no limit) is no number; a group without the controller has no such file.
    except (OSError, ValueError):
        return None
    stat = {key: int(value) for key, value in (line.split() for line in lines)}
    files = stat.get("file", stat.get("total_cache", 0))
    shared = stat.get("shmem", stat.get("total_shmem", 0))
    return Room(total, max(total - (used - (files - shared)), 0))

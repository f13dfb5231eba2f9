"""The examinations of ``tramontane doctor``. Each gives findings; none changes anything."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Literal

from attrs import frozen

from tramontane_cli.terminal import quiet

OLDEST_PYTHON = (3, 11)
OLDEST_TORCH = (2, 9)
LOW_MEMORY_BYTES = 2 << 30
LOW_DISK_BYTES = 5 << 30
HUB_TIMEOUT_SECS = 3.0
LIBRARIES = ("numpy", "tokenizers", "jinja2", "huggingface_hub")
ISA_FLAGS = (
    "avx2", "fma", "f16c", "avx512f", "avx512vnni", "avx512bf16", "avxvnni", "amxbf16",
    "amxint8", "neon", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip


@frozen
class Finding:
    """One thing looked at.

    Attributes:
        topic: what was looked at.
        status: ``"fail"`` makes the command fail; ``"warn"`` is worth knowing.
        found: what is there.
        mend: what to do about it; empty when all is well.
    """

    topic: str
    status: Literal["ok", "warn", "fail"]
    found: str
    mend: str = ""


def examine() -> list[Finding]:
    """Everything, in the order shown. A check that itself fails becomes a finding."""
    checks: list[Callable[[], Iterable[Finding]]] = [
        python, distributions, libraries, torch_build, devices, processor, kernels, memory, disk,
        hub, plug_ins,
    ]  # fmt: skip
    findings: list[Finding] = []
    for check in checks:
        try:
            findings.extend(check())
        # doctor is for broken machines: whatever breaks a check is what the user must see.
        except Exception as error:
            topic = check.__name__.replace("_", " ")
            findings.append(
                Finding(topic, "fail", f"{type(error).__name__}: {error}", "mend what it names")
            )
    return findings


def python() -> Iterator[Finding]:
    found = f"{platform.python_version()} ({sys.executable}), {platform.platform()}"
    if sys.version_info < OLDEST_PYTHON:
        yield Finding("Python", "fail", found, "install Python 3.11 or newer")
    else:
        yield Finding("Python", "ok", found)


def distributions() -> Iterator[Finding]:
    """Ours, which all belong to one release line."""
    ours = {
        dist.name: dist.version
        for dist in metadata.distributions()
        if dist.name and re.match(r"tramontane(-|$)", dist.name)
    }
    core = ours.get("tramontane", "")
    line = core.split(".")[:2]
    for name, version in sorted(ours.items()):
        if version.split(".")[:2] == line:
            yield Finding(name, "ok", version)
        else:
            mend = f"pip install --upgrade tramontane {name}"
            yield Finding(name, "fail", f"{version} beside tramontane {core}", mend)


def libraries() -> Iterator[Finding]:
    import importlib

    for name in LIBRARIES:
        try:
            importlib.import_module(name)
            yield Finding(name, "ok", metadata.version(name))
        except ImportError as error:
            yield Finding(name, "fail", str(error), f"pip install --force-reinstall {name}")


def torch_build() -> Iterator[Finding]:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding("torch", "fail", str(error), "pip install --force-reinstall 'torch>=2.9'")
        return
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    if torch.version.hip:
        build = f"ROCm {torch.version.hip}"
    found = f"{torch.__version__} ({build} build, {torch.get_num_threads()} threads)"
    if tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])) < OLDEST_TORCH:
        yield Finding("torch", "fail", found, "pip install --upgrade 'torch>=2.9'")
    else:
        yield Finding("torch", "ok", found)


def devices() -> Iterator[Finding]:
    import torch

    count = torch.cuda.device_count()
    for index in range(count):
        card = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        found = f"{card.name}, {_gib(free)} of {_gib(total)} free"
        yield Finding(f"cuda:{index}", "ok", found)
    if torch.backends.mps.is_available():
        yield Finding("mps", "ok", "available")
    if count == 0 and shutil.which("nvidia-smi"):
        mend = (
            "install the CUDA build of torch that suits the driver"
            if not torch.version.cuda
            else "update the NVIDIA driver; nvidia-smi shows its version"
        )
        yield Finding("cuda", "warn", "an NVIDIA driver is here, but torch sees no device", mend)
    elif count == 0 and not torch.backends.mps.is_available():
        yield Finding("device", "ok", "cpu only")


def processor() -> Iterator[Finding]:
    import psutil
    import torch

    from tramontane.kernels.features import features

    there = features(torch.device("cpu"))
    usable = [flag for flag in ISA_FLAGS if flag in there]
    found = (
        f"{platform.machine()}, {psutil.cpu_count(logical=False) or '?'} cores, "
        f"{os.cpu_count()} threads, torch uses {torch.backends.cpu.get_cpu_capability()}"
    )
    yield Finding("CPU", "ok", found + (f"; {' '.join(usable)}" if usable else ""))


def kernels() -> Iterator[Finding]:
    """Which implementation of each operator the CPU gets, and why not a faster one."""
    import torch

    from tramontane.kernels import dispatch
    from tramontane.kernels.reference import OPERATORS

    if os.environ.get(dispatch.ENVIRONMENT) == "reference":
        yield Finding("kernels", "ok", f"torch only, by {dispatch.ENVIRONMENT}")
        return
    for op in OPERATORS:
        first, *rest = dispatch.candidates(op, torch.device("cpu"))
        used = next(c for c in (first, *rest) if c.refusal is None)
        reasons = "; ".join(f"not {c.name}: {c.refusal}" for c in (first, *rest) if c.refusal)
        variant = f", {used.variant}" if used.variant else ""
        found = f"{op} through {used.name}{variant}" + (f" ({reasons})" if reasons else "")
        yield Finding("kernels", "ok", found)


def memory() -> Iterator[Finding]:
    import psutil

    now = psutil.virtual_memory()
    found = f"{_gib(now.available)} of {_gib(now.total)} available"
    if now.available < LOW_MEMORY_BYTES:
        mend = "close other programs, or choose a smaller or quantized model"
        yield Finding("memory", "warn", found, mend)
    else:
        yield Finding("memory", "ok", found)


def disk() -> Iterator[Finding]:
    """Where downloaded models are kept."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    there = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    found = f"{cache}, {_gib(free)} free"
    if not os.access(there, os.W_OK):
        mend = "make it writable, or set HF_HOME to a folder that is"
        yield Finding("model cache", "fail", f"{found}, not writable", mend)
    elif free < LOW_DISK_BYTES:
        mend = "delete models you no longer use (hf cache), or set HF_HOME to another disk"
        yield Finding("model cache", "warn", found, mend)
    else:
        yield Finding("model cache", "ok", found)


def hub() -> Iterator[Finding]:
    """Whether models can be downloaded. Not being able to is no defect: local ones still run."""
    from huggingface_hub import constants, get_token

    if constants.is_offline_mode():
        yield Finding("hub", "ok", "not asked: HF_HUB_OFFLINE is set, only local models are used")
        return
    token = "with a token" if get_token() else "without a token"
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=HUB_TIMEOUT_SECS):
            yield Finding("hub", "ok", f"{constants.ENDPOINT} answers ({token})")
    except urllib.error.HTTPError as error:
        # An answer, if not the wished one: the way there is open.
        yield Finding("hub", "ok", f"{constants.ENDPOINT} answers {error.code} ({token})")
    except (OSError, ValueError) as error:
        mend = "check network and proxy, or set HF_HUB_OFFLINE=1 to work with local models"
        yield Finding("hub", "warn", f"{constants.ENDPOINT} cannot be reached: {error}", mend)


def plug_ins() -> Iterator[Finding]:
    from tramontane.hooks import PluginManager

    # Not the process's manager: in strict mode that one stops at the first failure.
    with quiet("tramontane.hooks"):
        manager = PluginManager(strict=False)
    for info in manager.plugins():
        yield Finding(f"plug-in {info.name}", "ok", f"{info.distribution} {info.version}")
    for failure in manager.failures():
        mend = f"pip install --upgrade {failure.distribution}"
        if failure.distribution != "tramontane":
            mend += f", or remove it: pip uninstall {failure.distribution}"
        yield Finding(f"plug-in {failure.name}", "fail", str(failure), mend)
    if not manager.specs("architectures"):
        mend = "pip install 'tramontane[llama]' or another family"
        yield Finding("architectures", "fail", "no plug-in provides any", mend)
    if manager.default_model() is None:
        mend = "pip install 'tramontane[demo]', or always name a model with -m"
        yield Finding("default model", "warn", "none", mend)


def _gib(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB"

"""Contracts that plug-ins are tested by, and tiny models to test with."""

import pytest

pytest.register_assert_rewrite(
    "tramontane_testkit.architecture",
    "tramontane_testkit.hooks",
    "tramontane_testkit.kernels",
    "tramontane_testkit.latent_kernels",
)

from tramontane_testkit.architecture import ArchitectureContract  # noqa: E402
from tramontane_testkit.data import data_path  # noqa: E402
from tramontane_testkit.hooks import HooksContract  # noqa: E402
from tramontane_testkit.kernels import KernelContract  # noqa: E402
from tramontane_testkit.stepping import Stepper  # noqa: E402

__all__ = ["ArchitectureContract", "HooksContract", "KernelContract", "Stepper", "data_path"]

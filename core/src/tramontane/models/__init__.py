"""The models of one runner: names, states, memory, and who is using which right now."""

from tramontane.models.model import Lease, Model, ModelStatus
from tramontane.models.table import ModelTable

__all__ = ["Lease", "Model", "ModelStatus", "ModelTable"]

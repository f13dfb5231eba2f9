"""What plug-ins implement. One file a protocol; nothing here does any work."""

from tramontane.protocols.adapter import Adapter
from tramontane.protocols.architecture import (
    Architecture,
    Drop,
    ModelConfig,
    Rename,
    Split,
    Stack,
    Tie,
    Transpose,
    WeightRule,
)
from tramontane.protocols.batch import ForwardBatch
from tramontane.protocols.cache import CacheSpec, LayerCache
from tramontane.protocols.checkpoint import (
    Checkpoint,
    CheckpointFormat,
    CheckpointView,
    EmbeddedTokenizer,
)
from tramontane.protocols.executor import Executor
from tramontane.protocols.in_situ import (
    Calibration,
    InSituPlan,
    InSituQuantizer,
    InSituSettings,
)
from tramontane.protocols.pipeline import Pipeline
from tramontane.protocols.quantizer import (
    PackedWeight,
    QuantizedCheckpoints,
    Quantizer,
    ReadOnlyQuantizer,
    check_group_size,
    joined_parts,
)
from tramontane.protocols.transport import Transport

__all__ = [
    "Adapter",
    "Architecture",
    "CacheSpec",
    "Calibration",
    "Checkpoint",
    "CheckpointFormat",
    "CheckpointView",
    "Drop",
    "EmbeddedTokenizer",
    "Executor",
    "ForwardBatch",
    "InSituPlan",
    "InSituQuantizer",
    "InSituSettings",
    "LayerCache",
    "ModelConfig",
    "PackedWeight",
    "Pipeline",
    "QuantizedCheckpoints",
    "Quantizer",
    "ReadOnlyQuantizer",
    "Rename",
    "Split",
    "Stack",
    "Tie",
    "Transport",
    "Transpose",
    "WeightRule",
    "check_group_size",
    "joined_parts",
]

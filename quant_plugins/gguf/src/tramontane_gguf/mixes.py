"""File types of GGUF: which ggml type each tensor of a file gets.

A type such as Q4_K_M is a mixture: tensors whose error hurts most are finer. The choices are those
of llama.cpp's quantizer (``llama-quant.cpp``, ``llama_tensor_get_type``), so that a file made here
is laid out as one made there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from attrs import frozen

from tramontane.errors import ValidationError
from tramontane_gguf.types import BY_NAME, GgmlType

_FALLBACKS = {
    "q2_k": "q4_0", "q3_k": "q4_0", "iq4_xs": "iq4_nl",
    "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0",
}  # fmt: skip
"""What llama.cpp takes where rows are no multiple of 256; F16 where even that does not fit."""

_PLAIN = re.compile(
    r".*_norm\.weight|.*\.ffn_gate_inp(_shexp)?\.weight|.*\.(ssm_conv1d|shortconv\.conv)\.weight"
    r"|rope_.*|position_embd\.weight|token_types\.weight|.*\.attn_rel_b\.weight"
)
"""Tensors that stay as they are whatever the file type."""


@frozen(kw_only=True)
class ModelShape:
    """What the choices depend on.

    Attributes:
        family: value of ``general.architecture``.
        num_layers: of the model.
        num_heads, num_kv_heads: of attention in the first layer; 0 key-value heads where it has
            none.
        num_experts: 0 for a dense model.
        has_output: whether there is a head of its own.
        attention_layers: layers with a tensor ``attn_v``, ``attn_qkv`` or ``attn_kv_b``, in order.
        weighted: whether there is an importance matrix.
    """

    family: str
    num_layers: int
    num_heads: int
    num_kv_heads: int
    num_experts: int
    has_output: bool
    attention_layers: tuple[int, ...]
    weighted: bool = False

    @property
    def group_size(self) -> int:
        """Query heads that share a key-value head."""
        return self.num_heads // self.num_kv_heads if self.num_kv_heads else 0

    @property
    def is_70b(self) -> bool:
        """Whether it has the depth of the models that llama.cpp calls 70B."""
        if self.num_layers != 80:
            return False
        return self.family == "qwen2" or (self.family == "llama" and self.group_size != 1)


@frozen
class FileType:
    """One value of ``general.file_type``.

    Attributes:
        name: as users write it, ``"Q4_K_M"``.
        number: what the file stores.
        base: the ggml type of most tensors.
    """

    name: str
    number: int
    base: str


FILE_TYPES: dict[str, FileType] = {
    row.name: row
    for row in (
        FileType("F32", 0, "f32"), FileType("F16", 1, "f16"), FileType("BF16", 32, "bf16"),
        FileType("Q4_0", 2, "q4_0"), FileType("Q4_1", 3, "q4_1"), FileType("Q8_0", 7, "q8_0"),
        FileType("Q5_0", 8, "q5_0"), FileType("Q5_1", 9, "q5_1"), FileType("Q2_K", 10, "q2_k"),
        FileType("Q3_K_S", 11, "q3_k"), FileType("Q3_K_M", 12, "q3_k"),
        FileType("Q3_K_L", 13, "q3_k"), FileType("Q4_K_S", 14, "q4_k"),
        FileType("Q4_K_M", 15, "q4_k"), FileType("Q5_K_S", 16, "q5_k"),
        FileType("Q5_K_M", 17, "q5_k"), FileType("Q6_K", 18, "q6_k"),
        FileType("Q2_K_S", 21, "q2_k"), FileType("IQ4_NL", 25, "iq4_nl"),
        FileType("IQ4_XS", 30, "iq4_xs"), FileType("MXFP4_MOE", 38, "mxfp4"),
    )
}  # fmt: skip
_ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}


def file_type(name: str) -> FileType:
    """The file type of that name; ``Q4K`` and ``Q4_K`` mean ``Q4_K_M``.

    Raises:
        ValidationError: there is none; lists those there are.
    """
    upper = re.sub(r"^Q(\d)K", r"Q\1_K", name.strip().upper())
    found = FILE_TYPES.get(_ALIASES.get(upper, upper))
    if found is None:
        raise ValidationError(
            f"{name!r} is no file type of GGUF that can be written; choose one of "
            f"{', '.join(FILE_TYPES)}"
        )
    return found


def tensor_type(
    name: str, shape: tuple[int, ...], kind: FileType, model: ModelShape
) -> GgmlType | None:
    """The type of one tensor; None where it keeps its own precision.

    Args:
        name: GGUF name.
        shape: torch order.
    """
    if len(shape) < 2 or not name.endswith("weight") or _PLAIN.fullmatch(name):
        return None
    base = BY_NAME[kind.base]
    if base.dtype is not None:
        return base
    return _fitting(_chosen(name, shape, kind, model), shape[-1])


def _fitting(name: str, width: int) -> GgmlType:
    found = BY_NAME[name]
    if width % found.block_size:
        found = BY_NAME[_FALLBACKS.get(name, "f16")]
    return BY_NAME["f16"] if width % found.block_size else found


def _chosen(name: str, shape: tuple[int, ...], kind: FileType, model: ModelShape) -> str:
    """Before blocks are checked."""
    embedding = name in ("token_embd.weight", "per_layer_token_embd.weight")
    if name == "output.weight" or (embedding and not model.has_output):
        return "q8_0" if shape[-1] % 256 or kind.base in ("q8_0", "mxfp4") else "q6_k"
    if kind.base == "mxfp4":
        return kind.base if len(shape) == 3 and shape[0] > 1 else "q8_0"
    found = _LAYER.match(name)
    if embedding or found is None:
        return kind.base
    layer = int(found["layer"])
    for pattern, choose in _ROLES:
        if re.fullmatch(pattern, found["role"]):
            return choose(kind, layer, model) or kind.base
    return kind.base


_LAYER = re.compile(r"blk\.(?P<layer>\d+)\.(?P<role>.*)\.weight")


def _more(index: int, count: int) -> bool:
    """The first and last eighth, and every third between, get more bits."""
    return index < count // 8 or index >= 7 * count // 8 or (index - count // 8) % 3 == 2


def _value(kind: FileType, layer: int, model: ModelShape) -> str | None:
    index = _position(layer, model.attention_layers)
    count = len(model.attention_layers)
    grouped = model.group_size >= 4
    choice: str | None = None
    match kind.name:
        case "Q2_K":
            choice = "q4_k" if grouped else "q3_k"
        case "Q2_K_S" if grouped:
            choice = "q4_k"
        case "Q3_K_M":
            choice = "q5_k" if index < 2 else "q4_k"
        case "Q3_K_L":
            choice = "q5_k"
        case "IQ4_NL" | "IQ4_XS" if grouped:
            choice = "q5_k"
        case "Q4_K_M" | "Q5_K_M" if _more(index, count):
            choice = "q6_k"
        case "Q4_K_S" if index < 4:
            choice = "q5_k"
    # Models of that size share each value head among eight: it is worth more there.
    if model.is_70b and (choice or kind.base) in ("q3_k", "q4_k"):
        choice = "q5_k"
    return "q8_0" if model.num_experts == 8 else choice


def _key(kind: FileType, layer: int, model: ModelShape) -> str | None:
    return "q8_0" if model.num_experts == 8 else None


def _down(kind: FileType, layer: int, model: ModelShape) -> str | None:
    count = model.num_layers
    match kind.name:
        case "Q2_K":
            return "q3_k"
        case "Q2_K_S" if layer < count // 8:
            return "q4_k"
        case "Q3_K_M":
            return "q5_k" if layer < count // 16 else "q4_k"
        case "Q3_K_L":
            return "q5_k"
        case "Q4_K_M" | "Q5_K_M" if _more(layer, count):
            return "q6_k"
        case "IQ4_NL" | "IQ4_XS" if layer < count // 8 and not model.weighted:
            return "q5_k"
        case "Q4_K_S" if layer < count // 8:
            return "q5_k"
        case "Q4_0" | "Q5_0" if model.weighted and layer < count // 8:
            return {"Q4_0": "q4_1", "Q5_0": "q5_1"}[kind.name]
    return None


def _output(kind: FileType, layer: int, model: ModelShape) -> str | None:
    if model.num_experts == 8:
        small = ("Q2_K", "Q3_K_S", "Q3_K_M", "IQ4_NL", "IQ4_XS", "Q4_K_S", "Q4_K_M")
        return "q5_k" if kind.name in small else None
    return {"Q2_K": "q3_k", "Q3_K_M": "q4_k", "Q3_K_L": "q5_k"}.get(kind.name)


_ROLES: tuple[tuple[str, Callable[[FileType, int, ModelShape], str | None]], ...] = (
    (r"attn_(v|qkv|kv_b)", _value),
    (r"attn_k", _key),
    (r"ffn_down(_exps|_shexp)?", _down),
    (r"attn_output", _output),
)


def _position(layer: int, layers: Collection[int]) -> int:
    return sum(other < layer for other in layers)

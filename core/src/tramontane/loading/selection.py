"""Which weight files a ``Which`` variant means, and what reads them."""

from __future__ import annotations

from typing import Any

from tramontane.errors import ValidationError


def weight_files(which: Any) -> dict[str, Any]:
    """``files``, ``format`` and ``format_options`` of a `LoadRequest`.

    Raises:
        ValidationError: UQFF files together with what only concerns quantizing.
    """
    if which.uqff_files:
        for name in ("write_uqff", "imatrix", "calibration_file"):
            if getattr(which, name, None):
                raise ValidationError(
                    f"from_uqff loads weights that are quantized already, so {name} has nothing "
                    f"to do: give one of them"
                )
        return {"files": which.uqff_files, "format": "uqff"}
    if "GGML" in type(which).__name__:
        gqa = 1 if which.gqa is None else which.gqa
        return {"files": which.filenames, "format": "ggml", "format_options": {"gqa": gqa}}
    return {"files": which.filenames or None}

"""`tramontane` under the name of the SDK whose interface it serves.

Names are looked up when first used, as in `tramontane` itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tramontane
from tramontane import __version__ as __version__

if TYPE_CHECKING:
    from tramontane import *  # noqa: F403


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return __dir__()
    try:
        value = getattr(tramontane, name)
    except AttributeError:
        raise AttributeError(f"module 'mistralrs' has no attribute {name!r}") from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return dir(tramontane)

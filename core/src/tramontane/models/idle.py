"""Unloading models that nobody has used for a while."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tramontane.models.residents import Residents


class IdleWatch:
    """A daemon thread that unloads idle models. It holds no strong reference to them while it
    sleeps, so that a runner which is simply dropped ends like a closed one.

    Args:
        residents: asked ``unload_idle(idle_secs)``, which says when to ask again.
        idle_secs: how long a model may lie unused.
    """

    def __init__(self, residents: Residents, idle_secs: float) -> None:
        self._ended = threading.Event()
        weakref.finalize(residents, self._ended.set)
        threading.Thread(
            target=_watch,
            args=(weakref.ref(residents), idle_secs, self._ended),
            name="tramontane-idle-models",
            daemon=True,
        ).start()

    def end(self) -> None:
        """Returns at once; an unload under way is finished."""
        self._ended.set()


def _watch(residents: weakref.ref[Residents], idle_secs: float, ended: threading.Event) -> None:
    secs = idle_secs
    while not ended.wait(secs):
        there = residents()
        if there is None:
            return
        secs = there.unload_idle(idle_secs)
        del there

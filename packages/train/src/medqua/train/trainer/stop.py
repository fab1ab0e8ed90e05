"""A wish to stop, by Ctrl-C or SIGTERM: after the current step, with a checkpoint."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from medqua.train.processes import distributed

PATIENCE = 20.0
"""Seconds that a signal waits for a step to end; torchrun kills after 30."""


class StopRequest:
    """A wish to stop after the current optimiser step, with a checkpoint.

    Args:
        stuck: Called in a thread if no step ends within `PATIENCE` of the signal: another process
            has died, and this one waits for it until it is killed.
        patience: Seconds.
    """

    def __init__(
        self, stuck: Callable[[], None] = lambda: None, patience: float = PATIENCE
    ) -> None:
        self.wanted = False
        self._stuck = stuck
        self._patience = patience
        self._timer: threading.Timer | None = None

    def heard(self) -> None:
        """A step has ended since the signal: nobody is stuck."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Let Ctrl-C and SIGTERM ask to stop; a second Ctrl-C stops at once."""
        previous = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

        def ask(number: int, frame: FrameType | None) -> None:
            if self.wanted and number == signal.SIGINT and distributed.world_size() == 1:
                raise KeyboardInterrupt
            if not self.wanted:
                self._timer = threading.Timer(self._patience, self._stuck)
                self._timer.daemon = True
                self._timer.start()
            self.wanted = True

        for number in previous:
            signal.signal(number, ask)
        try:
            yield
        finally:
            self.heard()
            for number, handler in previous.items():
                signal.signal(number, handler)

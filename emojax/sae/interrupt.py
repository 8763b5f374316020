"""Ctrl-C and SIGTERM, taken at a moment when nothing is half done."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def requested() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether somebody asked the program to stop.

    The first signal is only noted, so that the loop can save before it raises KeyboardInterrupt;
    a second one is not waited for. Off the main thread signals are left as they are.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def note(signum, frame):
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, note) for number in signals]
    try:
        yield asked.is_set
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)

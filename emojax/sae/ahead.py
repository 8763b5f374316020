"""Host work done ahead, in a thread, and the seconds for which it was waited for all the same."""

import time
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
_END = object()


class Stopwatch:
    """Adds up the seconds spent inside `with`."""

    def __init__(self):
        self.seconds = 0.0

    def __enter__(self) -> None:
        self._since = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._since


def ahead(items: Iterator[T], depth: int, waiting: Stopwatch) -> Generator[T, None, None]:
    """The same items; a thread makes them, `depth` before they are asked for.

    What the thread raises is raised here, in its turn.

    Args:
      items: run in one thread, so that it needs no locks of its own.
      depth: how many items wait at most.
      waiting: runs while there is none.
    """
    worker = ThreadPoolExecutor(1, "ahead")
    try:
        under_way = deque(worker.submit(next, items, _END) for _ in range(depth))
        while True:
            with waiting:
                item = under_way.popleft().result()
            if item is _END:
                return
            under_way.append(worker.submit(next, items, _END))
            yield item  # pyrefly: ignore [invalid-yield]  # not _END
    finally:
        worker.shutdown(wait=True, cancel_futures=True)

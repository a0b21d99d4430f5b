"""Work on many images in threads, in bounded memory."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from rich.progress import track

from regard.say import console

Task = TypeVar("Task")
Result = TypeVar("Result")

AHEAD = 64  # images read before they are counted, at most: enough for as many cores as keep a disk busy


def in_threads(function: Callable[[Task], Result], tasks: Sequence[Task], doing: str) -> Iterator[Result]:
    """`function` of each task, in order, with a progress bar: decoding lets go of the interpreter's lock.

    Only the tasks that come next are begun, so that memory doesn't grow with their number.
    """
    with ThreadPoolExecutor() as pool:

        def results() -> Iterator[Result]:
            begun: deque[Future[Result]] = deque()
            for task in tasks:
                begun.append(pool.submit(function, task))
                if len(begun) == AHEAD:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()

        yield from track(results(), doing, len(tasks), transient=True, console=console())

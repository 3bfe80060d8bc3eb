"""CUDA devices: what is there, streams, events, graphs and memory.

Calls on a device run on the calling thread's current stream, the default one unless a `Stream` is
entered, and return before they are done; copying to the host waits. Memory of a tensor belongs to
the stream it was made on: before another stream uses it, that stream waits for an event.

    stream = Stream()
    with stream:
        y = ops.softmax(x)
    stream.synchronize()

A graph records what a stream is given, and runs it again at one call. The tensors that it read and
wrote stay in place: write new inputs into the old ones. What is uploaded meanwhile is a constant of
the graph, and nothing can be copied to the host.

    with capture(stream) as graph:
        y = ops.softmax(x)
    with stream:
        x.copy_(another)
        graph.launch()
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from softgate import _core
from softgate._core import Event, Stream, device_info, synchronize, transfers

__all__ = [
    "Event",
    "Graph",
    "Stream",
    "cached_bytes",
    "capture",
    "describe",
    "device_count",
    "device_info",
    "is_available",
    "release_cached",
    "synchronize",
    "transfers",
]


OLDEST = (7, 5)  # compute capability that kernels are built for


class Graph:
    """What `capture` recorded."""

    def __init__(self) -> None:
        self._graph: _core.Graph | None = None

    def launch(self) -> None:
        """Run it on the current stream."""
        if self._graph is None:
            raise RuntimeError("Graph.launch: the capture has not ended")
        self._graph.launch()


@contextmanager
def capture(stream: Stream) -> Iterator[Graph]:
    """Record what runs on `stream` instead of running it.

    Raises RuntimeError for what cannot be recorded, a copy to the host among it.
    """
    graph = Graph()
    with stream:
        stream.begin_capture()
        try:
            yield graph
        except BaseException:
            _discard(stream)
            raise
        graph._graph = stream.end_capture()


def _discard(stream: Stream) -> None:
    """End a capture that failed; the error that it failed with is the one to show."""
    with suppress(RuntimeError):
        stream.end_capture()


def device_count() -> int:
    """How many cards there are. Raises RuntimeError where there is no driver or no backend."""
    return _core.device_count("cuda")


def is_available() -> bool:
    """Is there a card that this build can use?"""
    try:
        infos = [device_info(f"cuda:{index}") for index in range(device_count())]
    except RuntimeError:
        return False
    return any(info["capability"] >= OLDEST for info in infos)


def describe() -> str:
    """One line: the cards there are, or why there are none."""
    try:
        count = device_count()
    except RuntimeError as error:
        return f"none ({error})"
    cards = []
    for index in range(count):
        info = device_info(f"cuda:{index}")
        major, minor = info["capability"]
        age = "" if (major, minor) >= OLDEST else ", too old"
        cards.append(f"{info['name']} ({major}.{minor}{age}, {info['memory'] / 2**30:.0f} GiB)")
    return ", ".join(cards) or "none"


def cached_bytes(device: str = "cuda") -> int:
    """Memory of a card that is kept for the next tensors."""
    return _core.device_cached_bytes(device)


def release_cached(device: str = "cuda") -> None:
    """Give the memory kept for the next tensors back to the card."""
    _core.device_release_cached(device)

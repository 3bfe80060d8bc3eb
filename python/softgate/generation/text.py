"""From tokens to text as it comes: whole characters, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from softgate.text import Tokenizer


class StopFinder:
    """Passes text on piece by piece up to the stop string that is complete first.

    What may yet turn out to be the beginning of one is held back until the text after it decides.
    So what is passed on does not depend on where pieces begin and end.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def push(self, piece: str) -> str:
        """What can be passed on now that `piece` has come."""
        text = self._held + piece
        found = [(at + len(s), at) for s in self._stops if (at := text.find(s)) >= 0]
        if found:
            self.found, self._held = True, ""
            _, start = min(found)
            return text[:start]
        length = len(text) - self._beginning(text)
        self._held = text[length:]
        return text[:length]

    def finish(self) -> str:
        """What was held back, once nothing follows."""
        held, self._held = self._held, ""
        return held

    def _beginning(self, text: str) -> int:
        """Length of the longest end of `text` that a stop string begins with."""
        longest = max(map(len, self._stops), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0


class TextStream:
    """The text of tokens that come one by one; without a tokenizer there is none."""

    def __init__(
        self, tokenizer: Tokenizer | None, stops: Sequence[str] = (), *, continues: bool = True
    ) -> None:
        """continues: as in `Tokenizer.decode_stream`."""
        self._decoder = None if tokenizer is None else tokenizer.decode_stream(continues=continues)
        self._finder = StopFinder(stops)

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come."""
        return self._finder.found

    def push(self, token: int) -> str:
        """The text that is certain now and was not before `token`, often none."""
        return "" if self._decoder is None else self._finder.push(self._decoder.feed(token))

    def finish(self) -> str:
        """What was held back, when no token follows; a character lacking bytes is left out."""
        return self._finder.finish()

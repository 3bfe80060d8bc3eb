"""Where a model looked: attention weights between named tokens, and their picture."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from softgate._files import atomic_write
from softgate.text import MarianTokenizer, Tokenizer

FloatArray = npt.NDArray[np.float32]

_INCHES_A_TOKEN, _MOST_INCHES = 0.28, 60.0
# It has a box for every character.
_LAST_RESORT = "Last Resort"


@dataclass(frozen=True)
class AttentionMap:
    """weights: float32 `[rows, columns]`, how much each row's token looked at each column's; rows,
    columns: the tokens, as people read them."""

    weights: FloatArray
    rows: list[str]
    columns: list[str]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Draw into a file, a picture of the kind that its name ends with: png, pdf, svg.

        Warns of characters that no installed font has. Raises ImportError without matplotlib, and
        ValueError for a kind that it does not know.
        """
        path = Path(path)
        kind = picture_kind(path)
        sides = (2 + _INCHES_A_TOKEN * len(tokens) for tokens in (self.columns, self.rows))
        figure = _matplotlib("figure").Figure([min(_MOST_INCHES, side) for side in sides])
        self.draw(figure.add_subplot())
        with atomic_write(path) as (file,), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # `draw` has said so
            figure.savefig(file, format=kind, bbox_inches="tight")

    def draw(self, axes: Any) -> None:
        """Draw on matplotlib's axes; warns of characters that no installed font has."""
        rows, columns = ([_label(token) for token in side] for side in (self.rows, self.columns))
        fonts, missing = _fonts("".join([*rows, *columns]))
        if missing:
            warnings.warn(
                f"no installed font has {' '.join(missing[:8])}: install one that has, such as "
                "Noto Sans CJK",
                stacklevel=2,
            )
        axes.imshow(self.weights, cmap="Blues", vmin=0, aspect="auto")
        axes.xaxis.tick_top()
        axes.set_xticks(range(len(columns)), columns, rotation=90)
        axes.set_yticks(range(len(rows)), rows)
        for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
            label.set(fontfamily=fonts, parse_math=False)


def picture_kind(path: Path) -> str:
    """What a file's name ends with; raises as `AttentionMap.save` does."""
    kind = path.suffix.removeprefix(".").lower()
    known = _matplotlib("backend_bases").FigureCanvasBase.get_supported_filetypes()
    if kind not in known:
        raise ValueError(f"{path}: ends with {kind!r}, expected one of {', '.join(known)}")
    return kind


def mean_weights(
    weights: Iterable[FloatArray],
    num_layers: int,
    num_heads: int,
    layer: int | None,
    head: int | None,
) -> FloatArray:
    """Of each layer's weights, `[num_heads, rows, columns]`, those of one layer and head; None
    takes the mean.

    Raises ValueError for a layer or a head that is not there.
    """
    for name, value, count in (("layer", layer, num_layers), ("head", head, num_heads)):
        if value is not None and not 0 <= value < count:
            raise ValueError(f"{name} is {value}, expected 0 to {count - 1}")
    chosen: Any = 0
    for index, part in enumerate(weights):
        if layer is None or index == layer:
            chosen = chosen + (part.mean(axis=0) if head is None else part[head])
        if index == layer:
            break
    mean: FloatArray = chosen / np.float32(num_layers if layer is None else 1)
    return mean


def pieces(tokenizer: Tokenizer | MarianTokenizer | None, ids: Sequence[int]) -> list[str]:
    """Names for tokens, their ids when there is no tokenizer."""
    return [str(index) for index in ids] if tokenizer is None else tokenizer.pieces(ids)


def _label(token: str) -> str:
    """A token in one line, where a space beside it says nothing and one alone is to be seen."""
    shown = token.strip(" ") or token.replace(" ", "\N{OPEN BOX}")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)


def _fonts(text: str) -> tuple[list[str], list[str]]:
    """Families that together have the characters of a text, and what none of them has."""
    manager = _matplotlib("font_manager")
    default = manager.FontProperties().get_name()
    files = {default: manager.findfont(manager.FontProperties())}
    for entry in manager.fontManager.ttflist:
        if not entry.name.startswith(_LAST_RESORT):
            files.setdefault(entry.name, entry.fname)
    wanted = set(map(ord, text))
    families = []
    for family, file in files.items():
        has = wanted & manager.get_font(file).get_charmap().keys()
        if has or family == default:
            families.append(family)
            wanted -= has
        if not wanted:
            break
    return families, [chr(code) for code in sorted(wanted)]


def _matplotlib(name: str) -> Any:
    try:
        import matplotlib.backend_bases
        import matplotlib.figure
        import matplotlib.font_manager
    except ImportError:
        raise ImportError("a picture needs matplotlib: pip install softgate[plot]") from None
    return getattr(matplotlib, name)

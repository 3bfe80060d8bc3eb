"""`softgate classify`: labels of texts, or scores of pairs of texts."""

from __future__ import annotations

import json
from typing import Any

import click

from softgate.cli.encoder import run, text_options


@click.command()
@text_options
@click.option("--pairs", is_flag=True, help="A text is two with a tab between them.")
@click.option(
    "--truncate/--no-truncate",
    default=True,
    show_default=True,
    help="Cut texts that are too long, or refuse them.",
)
def classify(pairs: bool, truncate: bool, **options: Any) -> None:
    """Label each of TEXTS, or of the lines of a file.

    A cross-encoder, which scores how well two texts fit, has one label, and wants --pairs.

    --output gets a line for each text: {"index": 0, "text": "...", "label": "...", "score": 0.9,
    "scores": {"...": 0.9}}; a pair is a list of two texts. Ctrl-C keeps the texts that are
    finished, and the exit status is 130.
    """

    def as_given(index: int, line: str) -> str | tuple[str, str]:
        if not pairs:
            return line
        first, tab, second = line.partition("\t")
        if not tab or "\t" in second:
            raise ValueError(f"texts[{index}] has {line.count(chr(9))} tabs, expected one")
        return first, second

    def work(model: Any, lines: list[str]) -> list[Any]:
        given = [as_given(index, line) for index, line in enumerate(lines)]
        if pairs and len(model.config.labels) == 1:
            (label,) = model.config.labels
            scores = model.score_pairs(given, truncate=truncate).tolist()
            return [(label, score, {label: score}) for score in scores]
        return [(c.label, c.score, c.scores) for c in model.classify(given, truncate=truncate)]

    def as_json(index: int, line: str, result: Any) -> str:
        label, score, scores = result
        row = {"index": index, "text": as_given(index, line), "label": label, "score": score}
        return json.dumps(row | {"scores": scores}, ensure_ascii=False)

    def show(line: str, result: Any) -> str:
        label, score, _ = result
        return f"{score:.4f}  {label}  {line}"

    run("classify", work, show, as_json, **options)

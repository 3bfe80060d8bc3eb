"""The command line: `softgate generate`, `chat`, `score`, `translate`, `embed`, `fill-mask`,
`classify`, `attention`, `tokens` and `info`."""

from __future__ import annotations

import click

from softgate.cli import (
    attention,
    chat,
    classify,
    embed,
    fill_mask,
    generate,
    info,
    score,
    tokens,
    translate,
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="softgate")
def main() -> None:
    """Sequence models on fused attention and recurrence kernels.

    Exit status: 0 done, 2 refused or failed, 130 ended by Ctrl-C, with what there was kept.
    """


main.add_command(generate.generate)
main.add_command(chat.chat)
main.add_command(score.score)
main.add_command(translate.translate)
main.add_command(embed.embed)
main.add_command(fill_mask.fill_mask)
main.add_command(classify.classify)
main.add_command(attention.attention)
main.add_command(tokens.tokens)
main.add_command(info.info)

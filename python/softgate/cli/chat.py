"""`softgate chat`: a conversation in the terminal or through a pipe."""

from __future__ import annotations

import sys
from typing import Any

import click

from softgate.cli.common import INTERRUPTED, failures
from softgate.cli.language import load, model_options, report, sampling_options
from softgate.generation import Conversation, Sampling

COMMANDS = "/reset forgets the conversation, /exit ends it"


@click.command()
@model_options
@click.option("--system", metavar="TEXT", help="A message to the model that sets the tone.")
@sampling_options(max_new_tokens=512)
def chat(
    spec: str,
    dtype: str | None,
    device: str | None,
    threads: int | None,
    system: str | None,
    **settings: Any,
) -> None:
    """Talk with a model: a line is a message, the reply is written as it comes.

    /reset forgets the conversation, /exit or the end of the input ends it. In a terminal, Ctrl-C
    ends a reply, which stays in the conversation as far as it came, and at the prompt the program
    (exit status 130); through a pipe it always ends the program.
    """
    with failures("interrupted"):
        sampling = Sampling(**settings)
        model = load(spec, dtype, device, threads)
        conversation = model.chat(system, sampling)
        is_terminal = _is_terminal()
        if is_terminal:
            click.echo(COMMANDS, err=True)
        while (line := _read(is_terminal)) is not None:
            match line.strip():
                case "":
                    continue
                case "/exit":
                    return
                case "/reset":
                    conversation.reset()
                case command if command.startswith("/") and " " not in command:
                    click.echo(f"{command} is no command: {COMMANDS}", err=True)
                case message:
                    _reply(conversation, message, is_terminal)


def _is_terminal() -> bool:
    return sys.stdin.isatty()


def _read(is_terminal: bool) -> str | None:
    """A line, None at the end of the input; ValueError when it is not UTF-8."""
    if is_terminal:
        try:
            return input("> ")
        except EOFError:
            return None
    return sys.stdin.readline() or None


def _reply(conversation: Conversation, message: str, is_terminal: bool) -> None:
    try:
        stream = conversation.say(message)
    except ValueError as error:
        if not is_terminal:
            raise
        click.echo(f"{error}; {COMMANDS}", err=True)
        return
    written = ""
    interrupted = False
    try:
        for piece in stream:
            click.echo(piece, nl=False)
            written += piece
    except KeyboardInterrupt:
        interrupted = True
    click.echo(stream.generation.text[len(written) :])
    report(stream.generation)
    if interrupted and not is_terminal:
        click.echo("interrupted", err=True)
        sys.exit(INTERRUPTED)

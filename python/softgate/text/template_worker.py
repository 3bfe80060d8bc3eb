"""Renders one chat template: a script that `template.py` runs in a process of its own.

Reads a request, a JSON object, from standard input and writes `[outcome, text]`: "rendered" and the
text, "refused" and what the template says of the messages, or "failed" and why.

The environment is the one that Hugging Face's templates are written for:
https://huggingface.co/docs/transformers/chat_templating_writing
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace


class RefusedError(TemplateError):
    """The template called raise_exception."""


class Generation(Extension):
    """`{% generation %}` marks what an assistant says, for training; here it is plain text."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class PublicNamespace(Namespace):
    """Jinja's namespace, without names that the sandbox hides."""

    def __init__(self, *mapping: Mapping[str, Any], **attributes: Any) -> None:
        super().__init__()
        for name, value in dict(*mapping, **attributes).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a namespace has no attribute {name!r}")
        super().__setitem__(name, value)


def raise_exception(message: str) -> None:
    raise RefusedError(message)


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own escapes what HTML would not show."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def limit(cpu_seconds: int, memory_bytes: int) -> None:
    """Have the system end this process, or refuse it memory, beyond these."""
    try:
        import resource
    except ImportError:  # not a POSIX system: the parent's clock remains
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))


def render(template: str, variables: dict[str, Any], output_characters: int) -> tuple[str, str]:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    environment.globals["namespace"] = PublicNamespace
    try:
        text = environment.from_string(template).render(variables)
    except RefusedError as error:
        return "refused", str(error)
    except MemoryError:
        return "failed", "it takes too much memory"
    except Exception as error:  # whatever a template can be made to raise
        return "failed", f"{type(error).__name__}: {error}"[:1000]
    if len(text) > output_characters:
        return "failed", f"it makes {len(text)} characters, at most {output_characters} are allowed"
    return "rendered", text


def main() -> None:
    request = json.load(sys.stdin.buffer)
    limit(request["cpu_seconds"], request["memory_bytes"])
    outcome = render(request["template"], request["variables"], request["output_characters"])
    sys.stdout.write(json.dumps(outcome))


if __name__ == "__main__":
    main()

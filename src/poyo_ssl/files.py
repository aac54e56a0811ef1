"""Folders of results: made whole or not at all, and never in the place of what is not ours."""

from __future__ import annotations

import dataclasses
import platform
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from poyo_ssl.errors import ConfigError

PACKAGES = ("poyo-ssl", "torch", "lightning", "numpy", "scipy", "h5py", "scikit-learn", "scikit-image", "safetensors")


def write_beside(path: Path, text: str) -> None:
    """Write a text file so that a reader, or a kill, never finds half of it."""
    beside = path.with_name(path.name + ".partial")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def plain(value: Any) -> Any:
    """Turn dataclasses, tuples, paths and numpy numbers into what JSON and YAML can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    return str(value) if isinstance(value, Path) else value


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def check_new(path: Path, *, overwrite: bool) -> None:
    """Refuse a folder that may not be written to.

    Raises
    ------
    ConfigError
        If it exists and holds anything, unless `overwrite`; a folder that holds neither a run nor results of ours
        is never removed.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not overwrite:
        raise ConfigError(f"output folder {path} exists", fix="choose another or pass --overwrite")
    if not path.is_dir() or not any((path / mark).exists() for mark in ("run.json", "results.json", "run")):
        raise ConfigError(f"{path} is no folder of a run", fix="choose another output folder")


def new_folder(path: Path, *, overwrite: bool) -> Path:
    """Make an empty folder for results, in place of an earlier one if `check_new` lets it pass."""
    path = Path(path)
    check_new(path, overwrite=overwrite)
    if path.exists():
        shutil.rmtree(path)
    path.mkdir(parents=True)
    return path

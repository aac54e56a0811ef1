"""Folders of results: made whole or not at all, and never in the place of what is not ours."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path, PurePath
from typing import Any, Literal

import numpy as np

from poyo_ssl.errors import CheckpointError, ConfigError, PoyoError

PACKAGES = ("poyo-ssl", "torch", "lightning", "numpy", "scipy", "h5py", "scikit-learn", "scikit-image", "safetensors")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write to, which takes its place when the block is done and goes if it fails."""
    beside = path.with_name(path.name + ".partial")
    beside.unlink(missing_ok=True)
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_beside(path: Path, content: str | bytes | memoryview) -> None:
    """Write a file so that a reader, a kill or a crash never leaves half of it."""
    with written_whole(path) as beside, beside.open("wb") as stream:
        stream.write(content.encode() if isinstance(content, str) else content)
        stream.flush()
        os.fsync(stream.fileno())


def read_json(folder: Path | str, name: str) -> Any:
    """Read one of a run's JSON files; raise `CheckpointError` if it is missing or damaged."""
    path = Path(folder) / name
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is not a complete run: no {name}", fix="give the folder of a run") from None
    except (ValueError, NotADirectoryError) as error:
        raise CheckpointError(f"{path} is damaged ({error})", fix="train again") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} is damaged (no object)", fix="train again")
    return found


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


RUN = (
    *("config.yaml", "run.json", "splits.json", "vocabulary.json", "recordings.json", "normalisation.safetensors"),
    *("normalisation", "model.safetensors", "model_unseen.safetensors", "checkpoints/*.ckpt"),
    *(f"log/{where}{name}" for where in ("", "resumed_*/") for name in ("metrics.csv", "hparams.yaml")),
)
SELECTION = ("selection.csv", "selection.json", "selection.png")
RESULTS = (
    *("results.json", "evaluation.json", "predictions/*.h5", "predictions/targets_*.npy", "report.html"),
    *(f"{where}leaderboard.{kind}" for where in ("", "predictions/") for kind in ("html", "csv", "md")),
)
DEMO = (
    *("run.json", "notes.json", *RESULTS, "data/observatory.json", "data/*.h5", "data/stimuli/*.npy"),
    *(f"selection/{name}" for name in SELECTION),
    *(f"runs/*/{name}" for name in RUN),
    *(f"evaluation-*/{name}" for name in RESULTS),
)
FolderKind = Literal["run", "results", "selection", "demo"]
FILES: dict[FolderKind, tuple[str, ...]] = {"run": RUN, "results": RESULTS, "selection": SELECTION, "demo": DEMO}
"""Every file that we write into a folder, by the command's kind; `*` stands for one name, not for a path."""
CHECKPOINT = "checkpoints/last.ckpt"
"""State of a training: a run that has one can be resumed."""


def paths_of(data: object) -> list[Path]:
    """Return where data lie: a path, or the files of recordings; what is in memory lies nowhere."""
    if isinstance(data, (str, Path)):
        return [Path(data)]
    found = [getattr(item, "path", None) for item in data] if isinstance(data, Sequence) else []
    return [path for path in found if path is not None]


def check_new(path: Path | str, kind: FolderKind, *, overwrite: bool, inputs: Iterable[Path | str | None] = ()) -> None:
    """Raise `ConfigError` unless the folder is new or empty, or may be replaced by one of the same kind.

    It may be replaced with `overwrite`, if all files in it are ours and none of the `inputs` lies in it.
    """
    path = Path(path)
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not overwrite:
        raise ConfigError(f"output folder {path} exists", fix="choose another or pass --overwrite")
    for given in inputs:
        if given is not None and Path(given).resolve().is_relative_to(path.resolve()):
            raise ConfigError(f"output folder {path} holds the input {given}", fix="choose another output folder")
    check_ours(path, kind)


def check_ours(folder: Path, kind: FolderKind) -> None:
    """Raise `ConfigError` if the folder is of another kind or holds a file that we did not write."""
    if not folder.is_dir() or not _is_kind(folder, kind):
        what = kind if kind == "results" else f"a {kind}"
        raise ConfigError(f"{folder} is no folder of {what}", fix="choose another output folder")
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        name = PurePath(str(inside).removesuffix(".partial"))
        known = any(len(name.parts) == pattern.count("/") + 1 and name.match(pattern) for pattern in FILES[kind])
        if path.is_symlink() or not (known or path.is_dir()):
            raise ConfigError(
                f"{folder} holds {inside}, which is not ours", fix="move it or choose another output folder"
            )


def _is_kind(folder: Path, kind: FolderKind) -> bool:
    mark = folder / {"results": "results.json", "selection": "selection.json"}.get(kind, "run.json")
    try:
        found = json.loads(mark.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if kind == "results":
        keys = {"arm", "task", "split", "metric", "value"}
        return isinstance(found, list) and all(isinstance(row, dict) and keys <= row.keys() for row in found)
    if not isinstance(found, dict):
        return False
    if kind == "selection":
        return {"config", "thresholds"} <= found.keys()
    return "state" in found and found.get("command") in (("demo",) if kind == "demo" else ("pretrain", "finetune"))


@contextmanager
def new_folder(
    path: Path | str, kind: FolderKind, *, overwrite: bool, inputs: Iterable[Path | str | None] = ()
) -> Iterator[Path]:
    """Give an empty folder for results, in place of an earlier one if `check_new` lets it pass.

    The earlier one waits beside it, and goes when the block has succeeded. If the block fails, the new folder goes and
    the earlier one comes back; a training that can be resumed stays, and so does its folder without an earlier one.
    """
    path = Path(path).resolve()
    check_new(path, kind, overwrite=overwrite, inputs=inputs)
    aside = path.with_name(f"{path.name}.old-{os.getpid()}")
    replaces = path.exists() and any(path.iterdir())
    if replaces:
        path.rename(aside)
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield path
    except BaseException as error:
        if not (path / CHECKPOINT).exists() and (replaces or kind != "run" or isinstance(error, PoyoError)):
            shutil.rmtree(path)
            if replaces:
                aside.rename(path)
        elif replaces:
            error.add_note(f"what {path} held before is in {aside}")
        raise
    if replaces:
        shutil.rmtree(aside)

"""Whether two checkouts give the same results: files, splits, weights, predictions, help texts and errors.

``python benchmarks/same_results.py BEFORE AFTER --out DIR [--only prepare|split|train|errors|help]`` runs the same
commands with the code of each and compares what they say and leave. BEFORE's tests make the inputs
(`same_results_inputs.py`). Only what a refactoring keeps is used: ``python -m poyo_ssl`` and its files. Inputs and
BEFORE's outcomes are kept in DIR for as long as BEFORE's commit stays the same. Exit code 1 if anything differs.
"""

from __future__ import annotations

import argparse
import atexit
import difflib
import gc
import hashlib
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import yaml

from same_results_jobs import SECTIONS, Job

HERE = Path(__file__).resolve().parent
SKIPPED = re.compile(r"(^|/)(events\.out\.tfevents[^/]*|inputs|said/.*)$")
"""Files that hold times and machines, and what is no output."""
ONLY_MADE = (".html", ".ckpt")
VOLATILE = {"started", "finished", "versions", "git_commit", "seconds", "duration_s"}
"""Keys of JSON files that differ between any two runs."""
EPOCH_NS = 10**18
"""Whole numbers above are times of files in nanoseconds."""
PRELOADED = (
    "h5py",
    "jsonargparse",
    "lightning",
    "matplotlib.pyplot",
    "pandas",
    "pynwb",
    "rich.progress",
    "scipy.stats",
    "skimage",
    "sklearn",
    "torch",
    "torchmetrics",
)


@dataclass(frozen=True)
class Checkout:
    """A checkout and where it runs."""

    name: str
    path: Path
    out: Path

    @property
    def commit(self) -> str:
        """What the results depend on: the commit, and a digest of what differs from it."""
        paths = ["--", "src", "tests"]
        head = self._git("rev-parse", "HEAD") or "no git"
        changed = self._git("diff", "HEAD", *paths) + self._git("ls-files", "--others", "--exclude-standard", *paths)
        return head.strip() + (f"+{digest(changed.encode())[:12]}" if changed else "")

    def _git(self, *arguments: str) -> str:
        return subprocess.run(["git", "-C", str(self.path), *arguments], capture_output=True, text=True).stdout

    def environment(self, *more: Path) -> dict[str, str]:
        """Return the environment of its commands: its source first, one thread, wide lines, no colours."""
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        terminal = {"COLUMNS": "2000", "NO_COLOR": "1", "TERM": "dumb"}
        path = os.pathsep.join(str(folder) for folder in (self.path / "src", *more))
        return os.environ | threads | terminal | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}


def digest(content: bytes) -> str:
    """Return SHA-256 as text."""
    return hashlib.sha256(content).hexdigest()


def say(text: str) -> None:
    """Write progress."""
    print(text, file=sys.stderr, flush=True)


# What a side does.


def serve_jobs(path: Path) -> None:
    """Run jobs one after the other, each in a process of its own that has the libraries loaded (`--jobs FILE`)."""
    for name in PRELOADED:
        import_module(name)
    gc.freeze()
    facts = {}
    for values in json.loads(path.read_text()):
        job, start = Job(**values), time.perf_counter()
        said = Path("said")
        said.mkdir(exist_ok=True)
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            _become(job, said)
        _, status = os.waitpid(pid, 0)
        out, err = ((said / name).read_bytes() for name in ("out", "err"))
        facts[job.name] = {
            "code": os.waitstatus_to_exitcode(status),
            "out": normalise(out.decode(errors="backslashreplace")) if job.text else digest(out),
            "err": normalise(err.decode(errors="backslashreplace")),
        }
        say(f"  {time.perf_counter() - start:5.1f} s  {job.name}")
        path.with_suffix(".said.json").write_text(json.dumps(facts))


def _become(job: Job, said: Path) -> None:
    """Turn this process into the command."""
    stream = os.open(job.stdin or os.devnull, os.O_RDONLY)
    os.dup2(stream, 0)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(said / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ |= job.env
    sys.argv = ["poyo-ssl", *job.arguments]
    sys.path = [place for place in sys.path if place != str(HERE)]
    code = 0
    try:
        runpy.run_module("poyo_ssl", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    # What an interpreter does at its end, but for freeing every object, which takes seconds.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def normalise(text: str) -> str:
    """Take times, addresses and places in the source out of what a command said."""
    text = re.sub(r"\b\d+:\d\d:\d\d(\.\d+)?\b|-:--:--", "<time>", text)
    text = re.sub(r"\S*/src/poyo_ssl/\S+?(:\d+|\", line \d+)", "<source>", text)
    text = re.sub(r"/tmp/\w*tmp\w*", "<tmp>", text)
    text = re.sub(r"\b0x[0-9a-f]{6,}\b", "<address>", text)
    text = re.sub(r"\b\d+(\.\d+)? (seconds|minutes|s per \w+)\b", "<duration>", text)
    text = re.sub(r"\b\d+(\.\d+)?(it/s|s/it)", "<speed>", text)
    text = re.sub(r"[━╸╺]+", "<bar>", text)
    return "\n".join(line.rstrip() for line in text.splitlines())


def run_section(section: str, jobs: list[dict[str, Any]], side: Checkout) -> dict[str, Any]:
    """Run a section's commands in an empty folder, the same for both sides; return what they said and left."""
    work = side.out / f"work_{section}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    (work / "inputs").symlink_to(side.out / "inputs")
    (work / "said").mkdir()
    (work / "said" / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, "-P", str(Path(__file__).resolve()), "--jobs", "said/jobs.json"]
    done = subprocess.run(command, cwd=work, env=side.environment(HERE))
    if done.returncode:
        sys.exit(f"the commands of {section} could not be run in {side.path}")
    said = json.loads((work / "said" / "jobs.said.json").read_text())
    found = {"jobs": jobs, "said": said, "files": dict(harvest(work, contents=section != "errors"))}
    shutil.rmtree(work)
    return json.loads(json.dumps(found, default=str))


# What it left.


def harvest(folder: Path, *, contents: bool) -> Iterator[tuple[str, Any]]:
    """Yield every file below a folder and what identifies it; names alone if `contents` is False."""
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and not SKIPPED.search(name):
            yield name, _facts(path) if contents else "made"


def _facts(path: Path) -> Any:
    if path.suffix in ONLY_MADE:
        return "made" if path.stat().st_size else "empty"
    if path.suffix in (".h5", ".nwb"):
        return {"bytes": digest(path.read_bytes()), "contents": dict(_hdf5(path))}
    if path.suffix == ".safetensors":
        return {"bytes": digest(path.read_bytes()), "contents": dict(_tensors(path))}
    if path.suffix == ".json":
        found = _stable(json.loads(path.read_text()))
        # Splits are promised to be the same to the byte.
        return {"sha256": digest(path.read_bytes()), **found} if path.name.startswith("split_") else found
    if path.suffix in (".yaml", ".yml"):
        return _stable(yaml.safe_load(path.read_text()))
    if path.suffix in (".csv", ".md", ".txt"):
        return path.read_text()
    return digest(path.read_bytes())


def _stable(value: Any) -> Any:
    """Leave volatile keys and times of files out."""
    if isinstance(value, dict):
        return {key: _stable(item) for key, item in value.items() if key not in VOLATILE}
    if isinstance(value, int) and value > EPOCH_NS:
        return "<time>"
    return [_stable(item) for item in value] if isinstance(value, list) else value


def _array(value: Any) -> str:
    values = np.asarray(value)
    content = repr(values.tolist()).encode() if values.dtype.hasobject else values.tobytes()
    return f"{values.dtype} {values.shape} {digest(content)[:16]}"


def _hdf5(path: Path) -> Iterator[tuple[str, str]]:
    """Yield every dataset and attribute of an HDF5 file with its type, shape and digest."""
    with h5py.File(path) as file:
        items: dict[str, Any] = {"/": file}
        file.visititems(lambda name, item: items.__setitem__(name, item))
        for name, item in items.items():
            yield name, _array(item[()]) if isinstance(item, h5py.Dataset) else "group"
            for key, value in item.attrs.items():
                yield f"{name}@{key}", str(value) if isinstance(value, str) else _array(value)


def _tensors(path: Path) -> Iterator[tuple[str, str]]:
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        for name in file.keys():  # noqa: SIM118 - not a mapping
            yield name, _array(file.get_tensor(name))


# Comparison.


def differences(before: Any, after: Any, place: str = "") -> Iterator[str]:
    """Yield one entry for every place at which two outcomes differ."""
    if place.startswith("/said") and isinstance(before, str) and isinstance(after, str):
        # Again: what an earlier version of this script kept may hold more than this one leaves.
        before, after = normalise(before), normalise(after)
    if before == after and repr(before) == repr(after):
        return
    if isinstance(before, dict) and isinstance(after, dict):
        if set(before) == {"bytes", "contents"} == set(after) and before["contents"] == after["contents"]:
            say(f"note: {place}: other bytes, same contents")
            return
        for key in dict.fromkeys([*before, *after]):
            if (key == "bytes") and "contents" in before:
                continue
            if key not in before or key not in after:
                yield f"{place}/{key}: only {'before' if key in before else 'after'}"
            else:
                yield from differences(before[key], after[key], f"{place}/{key}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, pair in enumerate(zip(before, after, strict=True)):
            yield from differences(*pair, f"{place}[{number}]")
    elif isinstance(before, str) and isinstance(after, str) and "\n" in before + after:
        lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
        yield "\n    ".join([place, *list(lines)[2:]])
    elif before != after or type(before) is not type(after):
        yield f"{place}\n    - {_short(before)}\n    + {_short(after)}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) < 2000 else text[:2000] + " ..."


def compare(section: str, before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Print whether a section is the same, or every difference."""
    found = list(differences({k: before[k] for k in ("said", "files")}, {k: after[k] for k in ("said", "files")}))
    count = f"{len(before['said'])} commands, {len(before['files'])} files"
    print(f"{section}: " + (f"same ({count})" if not found else f"{len(found)} differences ({count})"))
    for entry in found:
        print(f"  {entry.removeprefix('/')}")
    crashed = [name for name, one in before["said"].items() if one["code"] not in (0, 2) or "Traceback" in one["err"]]
    if crashed:
        say(f"note: {section}: unexpected ends before: {', '.join(crashed)}")
    return not found


def prepare_inputs(before: Checkout) -> None:
    """Make the inputs with BEFORE's code, and forget all outcomes, unless those of the same commit are there."""
    mark = before.out / "before" / "commit.txt"
    wanted = f"{before.commit} {digest((HERE / 'same_results_inputs.py').read_bytes())[:12]}"
    if mark.exists() and mark.read_text() == wanted:
        return
    for folder in ("inputs", "before"):
        shutil.rmtree(before.out / folder, ignore_errors=True)
    say("inputs")
    environment = before.environment(before.path, before.path / "tests" / "sources")
    command = [sys.executable, "-P", str(HERE / "same_results_inputs.py"), str(before.out / "inputs")]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    mark.parent.mkdir(parents=True)
    mark.write_text(wanted)


def main() -> None:
    """Run and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", choices=SECTIONS, nargs="+", default=list(SECTIONS))
    given = parser.parse_args()
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    before, after = (Checkout(n, p.resolve(), out) for n, p in (("before", given.before), ("after", given.after)))
    prepare_inputs(before)
    same = True
    for section in given.only:
        sides = []
        jobs = [asdict(job) for job in SECTIONS[section](out / "inputs")]
        for side in (before, after):
            kept = out / side.name / f"{section}.json"
            known = json.loads(kept.read_text()) if side is before and kept.exists() else {}
            if known.get("jobs") != jobs:
                start = time.perf_counter()
                say(f"{section} {side.name}")
                known = run_section(section, jobs, side)
                say(f"{section} {side.name}: {time.perf_counter() - start:.0f} s")
                kept.parent.mkdir(exist_ok=True)
                kept.write_text(json.dumps(known, indent=1))
            sides.append(known)
        same &= compare(section, *sides)
        sys.stdout.flush()
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--jobs"]:
        serve_jobs(Path(sys.argv[2]))
    else:
        main()

"""One self-contained page from a folder of results: tables, pictures, and what they do and do not show.

The page holds its pictures and needs no script and no network. Everything that comes from files is escaped. The same
folder gives the same page, byte for byte.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure

from poyo_ssl.errors import PoyoError
from poyo_ssl.evaluation.leaderboard import RESULTS_FILE, read_json
from poyo_ssl.evaluation.metrics import describe_metric, format_number, format_p
from poyo_ssl.evaluation.predictions import Predictions
from poyo_ssl.files import write_beside
from poyo_ssl.report.figures import (
    FRAME_COLUMNS,
    figure_confusion,
    figure_frames,
    rank_recordings,
    score_names,
    to_png,
)
from poyo_ssl.report.results import (
    NOTES_FILE,
    SPLITS,
    TASKS,
    Results,
    gain_tables,
    open_results,
    ordered_parts,
    outcome,
    score_tables,
    words,
)
from poyo_ssl.selection.picture import figure_selection

TITLE = "What the mouse saw: decoding results"
RUN_FILE = "run.json"
KNOWN_NOTES = ("headline", "arms")
"""Notes that have a place of their own; all others are listed under what the results show."""


def write_report(folder: Path | str, out: Path | str | None = None, *, title: str = TITLE) -> Path:
    """Write one self-contained page about a results folder.

    Parameters
    ----------
    folder : path
        What ``poyo-ssl evaluate`` or ``poyo-ssl demo`` leaves: ``results.json``, ``predictions/*.h5``, and if there are
        any ``selection/``, ``notes.json`` and the ``run.json`` of runs anywhere below. What is absent is left out, and
        the page says so.
    out : path, optional
        The page; ``report.html`` in the folder by default. A page that is there is replaced, once the new one
        is complete.
    title : str
        Its title.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    PoyoError
        If results.json is missing, or any file of the folder is damaged.

    Examples
    --------
    >>> import json, tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> row = {"arm": "ridge", "task": "frames", "split": "clip", "metric": "ssim_64x128", "value": 0.25,
    ...        "low": 0.2, "high": 0.3, "n": 5}
    >>> _ = (folder / "results.json").write_text(json.dumps([row]))
    >>> page = write_report(folder).read_text()
    >>> "0.250" in page and "[0.200, 0.300]" in page
    True
    """
    folder = Path(folder)
    page = render("report.html.jinja", title=title, **_content(open_results(folder)))
    out = folder / "report.html" if out is None else Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_beside(out, page)
    return out


def _task(name: str) -> str:
    return TASKS.get(name, name)


def render(template: str, **content: Any) -> str:
    """Fill in a template of this folder; everything that comes from files is escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"metric": describe_metric, "number": format_number, "p": format_p}
    environment.filters |= {"outcome": outcome, "words": words, "task": _task}
    text = (resources.files("poyo_ssl.report") / template).read_text(encoding="utf-8")
    return environment.from_string(text).render(**content)


def _content(results: Results) -> dict[str, Any]:
    parts = ordered_parts((row.task, row.split) for row in results.rows)
    splits = list(dict.fromkeys(split for _, split in parts))
    runs = _run_facts(results.folder)
    return {
        "headline": _sentences(results.notes.get("headline", [])),
        "arms": {str(arm): str(text) for arm, text in results.notes.get("arms", {}).items()},
        "scores": score_tables(results),
        "gains": gain_tables(results),
        "selection": results.selection,
        "lines": _lines(results),
        "scatter": _scatter(results),
        "confusions": list(_confusions(results)),
        "strips": list(_strips(results)),
        "splits": {split: SPLITS[split] for split in splits if split in SPLITS},
        "notes": {str(k): _sentences(v) for k, v in results.notes.items() if k not in KNOWN_NOTES},
        "remarks": results.remarks,
        "runs": [_run(results.folder, where, facts) for where, facts in runs],
        "files": _files(results.folder),
        "checksums": _data_checksums(runs),
        "version": metadata.version("poyo-ssl"),
    }


def _sentences(value: Any) -> list[str]:
    """Turn a note (text, number, list or mapping) into lines of text."""
    if isinstance(value, dict):
        return [f"{key}: {item}" for key, item in value.items()]
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


@dataclass(frozen=True)
class Picture:
    """A PNG in base64, its width on the page, its heading and caption, and a text for those who cannot see it."""

    png: str
    width_px: int
    heading: str
    caption: str
    alt: str

    @classmethod
    def of(cls, figure: Figure, *, caption: str, alt: str, heading: str = "") -> Picture:
        """Draw a figure; it is shown at 96 pixels per inch, so sharper than most screens need, as print does."""
        png = base64.b64encode(to_png(figure)).decode("ascii")
        return cls(png, round(figure.get_figwidth() * 96), heading, caption, alt)


def _scatter(results: Results) -> Picture | None:
    if results.selection is None:
        return None
    limits = ", ".join(f"{name} {value:.4g}" for name, value in results.selection.thresholds.items())
    caption = "One point per neuron; white circles are the means of the Cre lines"
    caption += f", dashed the thresholds ({limits}): predictable lies strictly below both." if limits else "."
    return Picture.of(
        figure_selection(results.selection), caption=caption, alt="Skewness and excess kurtosis of every neuron"
    )


def _lines(results: Results) -> list[dict[str, Any]]:
    if results.selection is None:
        return []
    return [
        {str(key): value for key, value in line.items()}
        | {name: format_number(line[name]) for name in ("skewness", "kurtosis")}
        for line in results.selection.lines.to_dict("records")
    ]


def _confusions(results: Results) -> Iterator[Picture]:
    for task, split in ordered_parts(results.files):
        if task != "gratings":
            continue
        arms = _pictured_arms(results, task, split, with_baseline=False)
        loaded = [Predictions.load(results.files[task, split][arm].path) for arm in arms]
        chance = 1 / len(loaded[0].class_values)
        caption = (
            f"Rows are the directions shown, columns those decoded; each row sums to 1. Guessing scores {chance:.3f}. "
            "Cells 180 degrees off the diagonal are right in orientation and wrong in direction."
        )
        names = " and ".join(arms)
        alt = f"Confusion matrix of {names} on {split}"
        yield Picture.of(figure_confusion(loaded), heading=f"Split {split}", caption=caption, alt=alt)


def _pictured_arms(results: Results, task: str, split: str, *, with_baseline: bool) -> list[str]:
    """Models with a predictions file and, if asked or if there are no models, the best baseline."""
    files = results.files[task, split]
    arms = [arm for arm in results.models if arm in files]
    best = results.best_baseline(task, split)
    return [*arms, best] if best is not None and (with_baseline or not arms) else arms


def _strips(results: Results) -> Iterator[Picture]:
    """Frames of the best and of the median recording, by the first arm."""
    for task, split in ordered_parts(results.files):
        if task != "frames":
            continue
        arms = _pictured_arms(results, task, split, with_baseline=True)
        loaded = [Predictions.load(results.files[task, split][arm].path) for arm in arms]
        ranking = rank_recordings(loaded[0])
        for place in dict.fromkeys((0, len(ranking) // 2)):
            recording, score = ranking[place]
            kind = _kind(place, len(ranking))
            names = score_names(loaded, recording)
            caption = (
                f"{kind.capitalize()} by the mean {names[0]} of '{arms[0]}' ({format_number(score)}, "
                f"place {place + 1} of {len(ranking)}). At most {FRAME_COLUMNS} frames, spread evenly over its test "
                f"part. Below each frame: {' | '.join(names)}. "
            )
            baseline = arms[-1] if arms[-1] not in results.models else None
            caption += f"Last row: the best baseline, '{baseline}'." if baseline else "There is no baseline to show."
            yield Picture.of(
                figure_frames(loaded, recording),
                heading=f"Split {split}: recording {recording}, {kind}",
                caption=caption,
                alt=f"True frames and reconstructions by {', '.join(arms)} on {split}, {kind}",
            )


def _kind(place: int, count: int) -> str:
    if count == 1:
        return "the only recording"
    if place == 0:
        return "the best recording"
    return "the median recording" if count > 2 else "the other recording"


def _run_facts(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Read every run.json in and below the folder: the run's folder and its facts, by path."""
    found = []
    for path in sorted(folder.rglob(RUN_FILE)):
        facts = read_json(path)
        if not isinstance(facts, dict):
            raise PoyoError(f"{path} is no mapping", fix="move it out of the folder")
        found.append((path.parent, facts))
    return found


def _run(folder: Path, where: Path, facts: dict[str, Any]) -> dict[str, Any]:
    shown = {name: facts.get(name) for name in ("command", "task", "seed", "state", "started", "git_commit")}
    texts = {name: "-" if value is None else str(value) for name, value in shown.items()}
    has_config = (where / "config.yaml").is_file()
    return texts | {
        "path": where.relative_to(folder).as_posix(),
        "versions": _sentences(facts.get("versions", [])),
        "has_config": has_config,
    }


def _data_checksums(runs: list[tuple[Path, dict[str, Any]]]) -> list[tuple[str, str]]:
    """List recording id and SHA-256 of all data that the runs name."""
    named = [item for _, facts in runs if isinstance(facts.get("data"), list) for item in facts["data"]]
    return sorted({(str(i.get("recording_id")), str(i.get("sha256"))) for i in named if isinstance(i, dict)})


def _files(folder: Path) -> list[tuple[str, str]]:
    """Name and SHA-256 of the files that this page was made from."""
    paths = [folder / RESULTS_FILE, folder / NOTES_FILE, *(folder / "selection").glob("selection.*")]
    paths += sorted(path for kind in ("*.h5", "*.npy") for path in (folder / "predictions").glob(kind))
    found = []
    for path in paths:
        if path.is_file():
            with path.open("rb") as file:
                found.append((path.relative_to(folder).as_posix(), hashlib.file_digest(file, "sha256").hexdigest()))
    return found

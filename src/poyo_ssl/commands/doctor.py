"""The command that says what is in a recording."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.progress import track
from rich.table import Table

from poyo_ssl.commands.console import console
from poyo_ssl.errors import RecordingError

if TYPE_CHECKING:
    from poyo_ssl.sources.doctor import Examination


def doctor(path: Path, workers: int | None = None) -> None:
    """Say what is in a recording (units, rate, stimuli, Cre line, moments), and everything that looks wrong.

    Finds out by itself what the path holds: a prepared recording, files of any source that 'poyo-ssl prepare' knows, or
    a folder of some, of which each gets one row. Nothing is written. A recording that cannot be read is named at the
    end; the exit code is then 2.

    Parameters
    ----------
    path : path
        File or folder.
    workers : int, optional
        Processes that examine a folder; all cores by default.
    """
    from poyo_ssl.sources.doctor import Examination, examine, examine_all, find_twins
    from poyo_ssl.sources.registry import recognise

    recognised = recognise(path)
    if len(recognised) == 1:
        kind, item = recognised[0]
        show_examination(examine(item, kind))
        return
    results = examine_all(recognised, workers=workers)
    shown = track(
        results, "examining", len(recognised), console=console, transient=True, disable=not console.is_terminal
    )
    # In the order of the paths, in whatever order they came.
    answers = [answer for _, answer in sorted(shown, key=lambda one: one[0])]
    found = [answer for answer in answers if isinstance(answer, Examination)]
    failed = []
    for (_, item), answer in zip(recognised, answers, strict=True):
        if isinstance(answer, str):
            failed.append(answer if str(item) in answer else f"{item}: {answer}")
    if found:
        show_examinations(found)
        _show_lines([f"{one.recording.recording_id}: {line}" for one in found for line in one.suspicions])
        _show_lines(find_twins(found))
    _show_lines(failed)
    if failed:
        raise RecordingError(
            f"{len(failed)} of {len(recognised)} recordings could not be read",
            fix="mend or remove them, see the lines above",
        )


def show_examination(found: Examination) -> None:
    """Show one recording on one screen."""
    console.print(f"[bold]{found.recording.recording_id}[/bold]  {found.path}", highlight=False, soft_wrap=True)
    facts = Table.grid(padding=(0, 2))
    for name, text in _facts(found).items():
        if text:
            facts.add_row(name, text)
    console.print(facts)
    if found.stimuli:
        table = Table()
        # On a narrow screen words break within the other columns.
        table.add_column("stimulus", no_wrap=True)
        for name in ("shown", "blanks", "content", "minutes", "pixels"):
            table.add_column(name, overflow="fold")
        for one in found.stimuli:
            shown, blanks = (str(number) if number else "" for number in (one.num_presentations, one.num_blanks))
            table.add_row(one.name, shown, blanks, one.content, f"{one.minutes:.1f}", one.pixels)
        console.print(table)
    show_moments(found)
    if found.suspicions:
        console.print("[bold]suspicious")
        _show_lines([f"- {line}" for line in found.suspicions])
    else:
        console.print("nothing suspicious")


def _facts(found: Examination) -> dict[str, str]:
    """Return who was recorded, where, for how long, and what there is beside the traces."""
    recording = found.recording
    about = recording.metadata
    age = None if about.age_days is None else f"{about.age_days:g} days old"
    depth = None if about.depth_um is None else f"{about.depth_um} um"
    masked = float((recording.masked_domain[:, 1] - recording.masked_domain[:, 0]).sum()) / 60
    beside = {
        "running": recording.running,
        "pupil": recording.pupil,
        "motion": recording.motion,
        "ROI masks": recording.roi_masks,
        "events": recording.events,
    }
    known = int((recording.cell_specimen_ids >= 0).sum())
    start = recording.timestamps[0]
    return {
        "kind": found.kind,
        "subject": _join(about.subject_id, about.sex, age, about.container_id and f"container {about.container_id}"),
        "Cre line": _join(about.cre_line, about.reporter_line, about.indicator),
        "place": _join(about.targeted_structure, depth, about.session_type, about.recording_date, about.device_id),
        "imaging": _join(
            f"{recording.duration_s / 60:.1f} min",
            f"{recording.num_frames} frames at {recording.rate_hz:.4g} Hz",
            f"from {start:.4g} s",
            f"{masked:.1f} min masked" if masked else None,
        ),
        "units": _join(str(recording.num_units), f"{known} with a cell specimen id" if known else None),
        "beside": ", ".join(name for name, value in beside.items() if value is not None),
        "origin": about.origin,
    }


def _join(*parts: str | None) -> str:
    return ", ".join(part for part in parts if part)


def show_moments(found: Examination) -> None:
    """Show what was measured of the units, and how many of them lie below the published thresholds."""
    from poyo_ssl import protocol

    measured = found.statistics
    usable = measured.status == "ok"
    table = Table("per unit", "median", "25 %", "75 %", "lowest", "highest")
    columns = {
        "skewness": measured.skewness,
        "excess kurtosis": measured.kurtosis,
        "signal-to-noise ratio": measured.snr,
        "event rate (Hz)": measured.event_rate_hz,
    }
    for name, values in columns.items():
        finite = values[usable & np.isfinite(values)]
        marks = np.quantile(finite, [0.5, 0.25, 0.75, 0, 1]) if len(finite) else []
        table.add_row(name, *[f"{mark:.2f}" for mark in marks])
    console.print(table)
    skewness, kurtosis = protocol.SKEWNESS_THRESHOLD, protocol.KURTOSIS_THRESHOLD
    regular = usable & (measured.skewness < skewness) & (measured.kurtosis < kurtosis)
    console.print(
        f"{int(usable.sum())} usable units, {int(regular.sum())} of them with skewness below {skewness} and excess "
        f"kurtosis below {kurtosis}",
        highlight=False,
        soft_wrap=True,
    )


def show_examinations(found: Sequence[Examination]) -> None:
    """Show many recordings, one row each."""
    table = Table("recording", "units", "min", "Hz", "Cre line", "stimuli", "skewness", "kurtosis", "suspicious")
    for one in found:
        recording, usable = one.recording, one.statistics.status == "ok"
        middle = [
            f"{np.median(values[usable]):.2f}" if usable.any() else "-"
            for values in (one.statistics.skewness, one.statistics.kurtosis)
        ]
        table.add_row(
            recording.recording_id,
            str(recording.num_units),
            f"{recording.duration_s / 60:.1f}",
            f"{recording.rate_hz:.4g}",
            recording.metadata.cre_line,
            ", ".join(sorted(recording.stimuli)),
            *middle,
            str(len(one.suspicions)),
        )
    console.print(table)
    kinds = Counter(one.kind for one in found)
    each = ", ".join(kind if len(kinds) == 1 else f"{number} {kind}" for kind, number in kinds.items())
    console.print(f"{len(found)} recordings, medians over units. {each}", highlight=False, soft_wrap=True)


def _show_lines(lines: Sequence[str]) -> None:
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

"""The commands: typed functions that `poyo_ssl.cli` turns into subcommands."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
    track,
)
from rich.table import Table

from poyo_ssl.config import FinetuneConfig, PretrainConfig, SelectionConfig, SplitConfig
from poyo_ssl.errors import ConfigError, PoyoError, RecordingError, StreamError

if TYPE_CHECKING:
    from poyo_ssl.sources import Source
    from poyo_ssl.sources.allen_list import Experiment, ExperimentFilter, Fetched
    from poyo_ssl.sources.arrays import ArraysSource
    from poyo_ssl.sources.companions import Companions
    from poyo_ssl.sources.doctor import Examination
    from poyo_ssl.sources.nwb import NwbSource
    from poyo_ssl.sources.run import Outcome
    from poyo_ssl.sources.suite2p import Suite2pSource


console = Console(stderr=True)


def split(data: Path, config: SplitConfig, out: Path | None = None, window_s: float = 1.0) -> None:
    """Write which presentations train, validate and test, in seconds, as a file beside the data.

    Parameters
    ----------
    data : path
        Data folder, or one recording.
    config : SplitConfig
        The splits.
    out : path, optional
        File to write; splits.json beside the recordings by default.
    window_s : float
        Window plus lag of the decoders, in seconds; clips keep this and three decay times on each side.
    """
    from poyo_ssl.data.recording import open_recordings
    from poyo_ssl.data.splits import save_splits

    if not window_s > 0:
        raise ConfigError(f"--window_s {window_s}", allowed="above 0", fix="give the window plus lag in seconds")
    recordings = open_recordings(data)
    path = out or (data if data.is_dir() else data.parent) / "splits.json"
    splits = save_splits(recordings, path, config, window_s=window_s)
    seconds: dict[tuple[str, str], list[float]] = {}
    for named in splits.values():
        for stimulus, found in named.items():
            for part, spans in found.parts.items():
                seconds.setdefault((stimulus, part), []).append(float((spans[:, 1] - spans[:, 0]).sum()))
    table = Table("stimulus", "part", "recordings", "seconds in each")
    for (stimulus, part), values in seconds.items():
        table.add_row(stimulus, part, str(len(values)), f"{min(values):.1f} to {max(values):.1f}")
    console.print(table)
    for (stimulus, part), values in seconds.items():
        if min(values) == 0:
            console.print(
                f"part '{part}' of {stimulus} is empty in {values.count(0.0)} of {len(values)} recordings: fewer "
                "or shorter clips (--num_clips, --clip_fraction, --valid_clip_fraction) or a shorter --window_s help",
                markup=False,
            )
    console.print(f"splits of {len(recordings)} recordings in {path}")


def audit(runs: list[Path], data: Path | None = None) -> None:
    """Check runs for leaks: whether anything of a test part reached training, as far as files can tell.

    Checks parts, inputs, frames and near-duplicates, statistics, vocabulary, selection, animals, and the runs that a
    run started from. Exits with code 2 if anything is found.

    Parameters
    ----------
    runs : list of path
        Run folders of 'poyo-ssl pretrain' or 'poyo-ssl finetune'.
    data : path, optional
        Where the recordings are now; by default where the runs found them.
    """
    from poyo_ssl.data.leaks import require_no_leaks
    from poyo_ssl.training.audit import audit_run

    audits = [audit_run(run, data) for run in runs]
    for found in audits:
        if found.leaks:
            table = Table("check", "recording", "problem", title=str(found.folder))
            for leak in found.leaks:
                table.add_row(leak.check, leak.recording_id, leak.problem)
            console.print(table)
        else:
            console.print(f"{found.folder}: no leak ({', '.join(found.checks)})")
    require_no_leaks([leak for found in audits for leak in found.leaks])


def convert_recordings(
    source: Source,
    input: Path,
    output: Path,
    *,
    workers: int | None,
    ray: str | None,
    overwrite: bool,
    only: Collection[str] | None = None,
    then: Callable[[list[Outcome]], None] | None = None,
) -> None:
    """Run a source with a progress bar and say every warning.

    Parameters
    ----------
    source, input, output, workers, ray, overwrite, only
        As for `poyo_ssl.sources.run.convert`.
    then : callable, optional
        What to do with the outcomes before a failed one is reported.

    Raises
    ------
    RecordingError
        If a recording could not be converted; the others are.
    """
    from poyo_ssl.sources.run import convert

    progress = Progress(console=console)
    task = progress.add_task(f"converting {source.name}", total=None)

    def show(outcome: Outcome, total: int) -> None:
        # Not before: an input that is not there is answered with one line.
        progress.start()
        progress.update(task, total=total, advance=1)
        for line in outcome.warnings:
            progress.console.print(f"{outcome.recording_id}: {line}", markup=False)

    try:
        outcomes = convert(
            source, input, output, workers=workers, ray=ray, overwrite=overwrite, only=only, progress=show
        )
    finally:
        if progress.live.is_started:
            progress.stop()
    if then:
        then(outcomes)
    if len(outcomes) == 1 and outcomes[0].status == "failed":
        raise RecordingError(outcomes[0].error)
    count = Counter(outcome.status for outcome in outcomes)
    console.print(f"{count['written']} written, {count['unchanged']} unchanged, {count['failed']} failed in {output}")
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    for outcome in failed:
        console.print(f"{outcome.input}: {outcome.error}", markup=False)
    if failed:
        raise RecordingError(
            f"{len(failed)} of {len(outcomes)} recordings could not be converted, {failed[0].recording_id} first",
            fix="see the lines above; run it again to continue",
        )


ALLEN_FILTERS = {
    "cre_line": "Only these Cre lines, in the Allen's spelling.",
    "area": "Only these areas: VISp, VISl, VISal, VISpm, VISam, VISrl.",
    "session_type": "Only these session types: A, B, C, C2.",
}
"""Flags that take several words, and what they mean."""


def prepare_allen(
    input: Path,
    output: Path | None = None,
    list: bool = False,
    download: bool = False,
    published: bool = False,
    cre_line: list[str] | None = None,
    area: list[str] | None = None,
    session_type: list[str] | None = None,
    min_depth_um: int | None = None,
    max_depth_um: int | None = None,
    address: str | None = None,
    max_trim_frames: int = 1,
    workers: int | None = None,
    ray: str | None = None,
    overwrite: bool = False,
) -> None:
    """List, fetch and convert Allen Brain Observatory files (NWB 1, as AllenSDK downloads them), without AllenSDK.

    A file that cannot be fetched or read is named at the end and does not stop the others; the exit code is then 2.
    What was fetched or converted before is left as it is.

    Parameters
    ----------
    input : path
        A .nwb file, or a folder of them as AllenSDK lays it out (files in its ophys_experiment_data).
    output : path, optional
        Data folder; without it nothing is converted.
    list : bool
        Show the experiments that the filters let pass, and do nothing else. The list is ophys_experiments.json or
        experiment_containers.json in the input folder, or fetched with --download.
    download : bool
        Fetch the files that are missing into the input folder first, and the list if a filter needs it.
    published : bool
        Only the 433 experiments of the published study. When they are converted, the arm of each, by its Cre line, is
        written to arms.csv in the data folder.
    cre_line, area, session_type : list of str, optional
        Only these.
    min_depth_um : int, optional
        Only imaging depths from here on.
    max_depth_um : int, optional
        Only imaging depths up to here.
    address : str, optional
        Where the files are: by default the Allen's public bucket,
        https://allen-brain-observatory.s3.us-west-2.amazonaws.com/visual-coding-2p, or a mirror of it.
    max_trim_frames : int
        dF/F and timestamps may differ by so many frames, which are trimmed with a warning.
    workers : int, optional
        Processes that convert; all cores by default.
    ray : str, optional
        Address of a Ray cluster to convert on, or 'local' (needs the extra 'ray').
    overwrite : bool
        Convert again what is there.
    """
    from poyo_ssl.sources.allen import AllenSource
    from poyo_ssl.sources.allen_list import ADDRESS, ExperimentFilter, published_experiments

    if output is None and not (list or download):
        raise ConfigError("prepare allen without an output", fix="give a data folder, or pass --list or --download")
    if download and input.is_file():
        raise ConfigError(f"{input} is a file", fix="give the folder to download to")
    wanted = ExperimentFilter(
        tuple(cre_line or ()), tuple(area or ()), tuple(session_type or ()), min_depth_um, max_depth_um
    )
    address = address or ADDRESS
    ids: Sequence[int] | None = published_experiments() if published else None
    if list or wanted or (download and not published):
        chosen = _choose(input, wanted, ids, address if download else None)
        if list:
            show_experiments(chosen)
            return
        ids = [one.experiment_id for one in chosen]
    lost = _fetch(ids or (), input, address) if download else []
    if output is not None:
        source = AllenSource(max_trim_frames=max_trim_frames)
        only = None if ids is None else {str(number) for number in ids}

        def finish(outcomes: Sequence[Outcome]) -> None:
            if only is not None and len(outcomes) < len(only):
                console.print(f"{len(only) - len(outcomes)} of {len(only)} experiments have no file in {input}")
            if published:
                made = [outcome.recording_id for outcome in outcomes if outcome.status != "failed"]
                _write_arms([output / f"{name}.h5" for name in made], output)

        convert_recordings(source, input, output, workers=workers, ray=ray, overwrite=overwrite, only=only, then=finish)
    if lost:
        raise RecordingError(
            f"{len(lost)} of {len(ids or ())} files could not be fetched, {lost[0].path.name} first",
            fix="see the lines above; run it again to continue",
        )


def _choose(input: Path, wanted: ExperimentFilter, ids: Sequence[int] | None, address: str | None) -> list[Experiment]:
    """Return the experiments of the list that are wanted; fetch the list first if there is an address."""
    from poyo_ssl.sources.allen_list import download_list, find_list, read_experiments, select_experiments

    path = find_list(input)
    if path is None and address is not None:
        with console.status("fetching the list of experiments"):
            path = download_list(input, address)
    if path is None:
        raise RecordingError(
            f"no list of experiments in {input}",
            allowed="ophys_experiments.json or experiment_containers.json",
            fix="put one there, or fetch it with --download",
        )
    experiments = read_experiments(path)
    if ids is not None:
        unknown = len(set(ids) - {one.experiment_id for one in experiments})
        if unknown:
            console.print(f"{unknown} of the {len(ids)} published experiments are not in {path}: left out")
    chosen = select_experiments(experiments, wanted, ids)
    if not chosen:
        raise RecordingError(f"none of {len(experiments)} experiments in {path} is wanted", fix="loosen the filters")
    return chosen


def show_experiments(experiments: Sequence[Experiment]) -> None:
    """Print one row per experiment, and how many there are of each line."""
    names = ("experiment", "container", "mouse", "Cre line", "area", "depth (um)", "session", "date")
    table = Table(*names)
    for one in experiments:
        session = one.session_type.removeprefix("three_session_")
        place = (one.cre_line, one.targeted_structure, str(one.depth_um), session, one.recording_date)
        table.add_row(str(one.experiment_id), one.container_id, one.subject_id, *place)
    console.print(table)
    count = Counter(one.cre_line for one in experiments)
    each = ", ".join(f"{line} {number}" for line, number in sorted(count.items()))
    mice = len({one.subject_id for one in experiments})
    console.print(f"{len(experiments)} experiments of {mice} mice ({each})")


def _fetch(ids: Sequence[int], folder: Path, address: str) -> list[Fetched]:
    """Fetch files with a progress bar each; say which could not be fetched, and return those."""
    from poyo_ssl.sources.allen_list import download_experiments

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    failed: list[Fetched] = []
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("fetching", total=None)
        settled = 0

        def show(number: int, there: int, size: int) -> None:
            progress.update(task, description=f"{number} ({settled + 1} of {len(ids)})", completed=there, total=size)

        def done(one: Fetched) -> None:
            nonlocal settled
            settled += 1
            if one.error:
                failed.append(one)
                progress.console.print(one.error, markup=False)

        download_experiments(ids, folder, address, progress=show, done=done)
    console.print(f"{len(ids) - len(failed)} of {len(ids)} files are in {folder}")
    return failed


def _write_arms(paths: Sequence[Path], output: Path) -> None:
    """Write and show which arm of the published study each recording belongs to, by the Cre line in its file."""
    from poyo_ssl.data.recording import Recording
    from poyo_ssl.files import write_beside
    from poyo_ssl.sources.allen_list import PUBLISHED_ARMS, published_arm

    lines = {path.stem: Recording.open(path).metadata.cre_line for path in paths}
    arms = {name: published_arm(line) or "unknown" for name, line in lines.items()}
    rows = [f"{name},{lines[name]},{arms[name]}" for name in sorted(lines)]
    write_beside(output / "arms.csv", "\n".join(["recording_id,cre_line,arm", *rows]) + "\n")
    count = Counter(arms.values())
    for arm, number in PUBLISHED_ARMS.items():
        console.print(f"{arm}: {count[arm]} of {number} published recordings")
    if count["unknown"]:
        console.print(f"{count['unknown']} recordings of an unknown Cre line, see arms.csv")


def prepare_nwb(
    input: Path,
    output: Path,
    source: NwbSource,
    companions: Companions,
    workers: int | None = None,
    ray: str | None = None,
    overwrite: bool = False,
) -> None:
    """Convert NWB 2 files: DANDI 000728 (Allen Visual Coding), or any laboratory's with traces of ROIs.

    Stimuli are the file's tables of intervals and index series, or a table beside it (stimuli.csv, recording.json and
    pixels, in a folder that the file has to itself or in one of its own name). Needs the extra 'nwb'. A file that
    cannot be read is named at the end.

    Parameters
    ----------
    input : path
        One .nwb file, or a folder that holds some at any depth.
    output : path
        Data folder to make, or to complete after an interruption.
    source : NwbSource
        What to take.
    companions : Companions
        What overrules the file.
    workers : int, optional
        Processes; all cores by default.
    ray : str, optional
        Address of a Ray cluster to run on, or 'local' (needs the extra 'ray').
    overwrite : bool
        Convert again what is there.
    """
    source = replace(source, companions=companions)
    convert_recordings(source, input, output, workers=workers, ray=ray, overwrite=overwrite)


def prepare_brainsets(
    input: Path,
    output: Path,
    how: Literal["link", "copy", "rewrite"] = "link",
    pixels: Path | None = None,
    workers: int | None = None,
    ray: str | None = None,
    overwrite: bool = False,
) -> None:
    """Take files of 'brainsets prepare allen_visual_coding_ophys_2016' as they are, and write our splits beside them.

    Files are checked, then linked to; they are never changed. A file that cannot be taken is named at the end.

    Parameters
    ----------
    input : path
        One .h5 file, or a folder that brainsets prepared.
    output : path
        Data folder to make, or to complete after an interruption.
    how : str
        'link' (hard links; a copy on another disk), 'copy', or 'rewrite', which writes recordings anew, for files that
        something has to be left out of.
    pixels : path, optional
        Folder with the pixels of the stimuli by name, as npy, mp4, gif or a folder of pictures, which brainsets does
        not keep.
    workers : int, optional
        Processes; all cores by default.
    ray : str, optional
        Address of a Ray cluster to run on, or 'local' (needs the extra 'ray').
    overwrite : bool
        Take again what is there.
    """
    from poyo_ssl.sources.brainsets import BrainsetsSource

    source = BrainsetsSource(how=how, pixels=pixels)

    def write_splits(outcomes: list[Outcome]) -> None:
        if all(outcome.status == "failed" for outcome in outcomes):
            return
        try:
            _write_splits(output)
        except PoyoError as error:
            console.print(f"no splits: {error}", markup=False)

    convert_recordings(source, input, output, workers=workers, ray=ray, overwrite=overwrite, then=write_splits)


def _write_splits(folder: Path) -> None:
    """Write splits.json of a data folder; one with other settings, which a user has written, is left alone."""
    from poyo_ssl.config import SplitConfig
    from poyo_ssl.data.recording import open_recordings
    from poyo_ssl.data.splits import load_split_settings, save_splits

    path = folder / "splits.json"
    if path.exists() and load_split_settings(path) != SplitConfig():
        console.print(f"{path} has settings of its own: write it again with 'poyo-ssl split' if need be", markup=False)
        return
    save_splits(open_recordings(folder), path, SplitConfig())
    console.print(f"splits in {path}", markup=False)


def prepare_observatory(
    output: Path,
    world: str = "allen_like",
    size: str = "small",
    seed: int = 0,
    dff_procedure: str = "allen_median",
    as_nwb: bool = False,
    workers: int | None = None,
    overwrite: bool = False,
) -> None:
    """Simulate a virtual Allen Brain Observatory with known truth.

    Parameters
    ----------
    output : path
        Data folder to make, or to complete after an interruption.
    world : str
        allen_like, regularity_helps, null or noise_confounded.
    size : str
        tiny (4 recordings), small (13, one per Cre line; minutes long), or with the real schedules medium (40:
        sessions A, B and C of each line) or paper (433 sessions A).
    seed : int
        Same seed, same bytes, whatever the number of workers.
    dff_procedure : str
        allen_median (the Allen's recent one, which takes out sustained activity), allen_mode (its earlier one), maximin
        or percentile.
    as_nwb : bool
        Write each recording as an Allen NWB 1 file too, into OUTPUT/ophys_experiment_data.
    workers : int, optional
        Processes; all cores by default.
    overwrite : bool
        Replace an observatory that is there.
    """
    from poyo_ssl.observatory import generate_observatory, get_size, get_world

    get_world(world)
    total = get_size(size).num_recordings
    with Progress(console=console) as progress:
        task = progress.add_task(f"simulating {world}", total=total)
        paths = generate_observatory(
            output,
            world=world,
            size=size,
            seed=seed,
            dff_procedure=dff_procedure,
            as_nwb=as_nwb,
            workers=(os.cpu_count() or 1) if workers is None else workers,
            overwrite=overwrite,
            progress=lambda _: progress.advance(task),
        )
    console.print(f"{len(paths)} recordings in {output}")


def prepare_events(
    input: Path,
    output: Path,
    seed: int = 0,
    workers: int | None = None,
    ray: str | None = None,
    overwrite: bool = False,
) -> None:
    """Turn folders of event files into recordings with simulated dF/F (GCaMP6f).

    A folder that cannot be read is named at the end and does not stop the others; the exit code is then 2. What was
    converted before is left as it is.

    Parameters
    ----------
    input : path
        Folder with events.npz, epochs.csv and drifting_gratings.csv, or a folder of such folders.
    output : path
        Data folder to make, or to complete after an interruption.
    seed : int
        Seed of the noise.
    workers : int, optional
        Processes; all cores by default.
    ray : str, optional
        Address of a Ray cluster to run on, or 'local' (needs the extra 'ray').
    overwrite : bool
        Convert again what is there.
    """
    from poyo_ssl.sources.events import EventsSource

    source = EventsSource(seed=seed)
    convert_recordings(source, input, output, workers=workers, ray=ray, overwrite=overwrite)


def prepare_suite2p(
    input: Path,
    output: Path,
    source: Suite2pSource,
    companions: Companions,
    workers: int | None = None,
    ray: str | None = None,
    overwrite: bool = False,
) -> None:
    """Convert output of suite2p (before and after 1.0) to dF/F of F - r Fneu; nothing unsafe is unpickled.

    Clock, stimuli, pixels and metadata are files beside the folder 'suite2p' (timestamps.npy, stimuli.csv, pixels,
    recording.json), or the settings of these names. A folder that cannot be read is named at the end.

    Parameters
    ----------
    input : path
        One folder 'suite2p' (or one plane), or a folder that holds some at any depth.
    output : path
        Data folder to make, or to complete after an interruption.
    source : Suite2pSource
        What to take.
    companions : Companions
        What belongs to the traces.
    workers : int, optional
        Processes; all cores by default.
    ray : str, optional
        Address of a Ray cluster to run on, or 'local' (needs the extra 'ray').
    overwrite : bool
        Convert again what is there.
    """
    source = replace(source, companions=companions)
    convert_recordings(source, input, output, workers=workers, ray=ray, overwrite=overwrite)


def prepare_arrays(
    input: Path,
    output: Path,
    source: ArraysSource,
    companions: Companions,
    workers: int | None = None,
    ray: str | None = None,
    overwrite: bool = False,
) -> None:
    """Convert arrays of dF/F, fluorescence or events (npy, npz, csv or mat) with a stimulus table.

    Clock, stimuli, pixels and metadata are files in the recording's folder (timestamps.npy, stimuli.csv, pixels,
    recording.json), or the settings of these names. A recording that cannot be read is named at the end.

    Parameters
    ----------
    input : path
        A file of arrays; a folder with dff.*, fluorescence.* (and neuropil.*) or events.*; or a folder of such
        folders.
    output : path
        Data folder to make, or to complete after an interruption.
    source : ArraysSource
        How to read them.
    companions : Companions
        What belongs to the traces.
    workers : int, optional
        Processes; all cores by default.
    ray : str, optional
        Address of a Ray cluster to run on, or 'local' (needs the extra 'ray').
    overwrite : bool
        Convert again what is there.
    """
    source = replace(source, companions=companions)
    convert_recordings(source, input, output, workers=workers, ray=ray, overwrite=overwrite)


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


def select(data: Path, out: Path, config: SelectionConfig, split: SplitConfig, overwrite: bool = False) -> None:
    """Score every neuron's dF/F by skewness and excess kurtosis and choose the predictable ones.

    Writes selection.csv (one row per neuron), selection.json and selection.png.

    Parameters
    ----------
    data : path
        Data folder, or one recording.
    out : path
        Folder to make.
    config : SelectionConfig
        Level and thresholds.
    split : SplitConfig
        Moments are taken outside of every validation and test part of this split.
    overwrite : bool
        Replace a selection that is there.
    """
    from poyo_ssl.data.recording import open_recordings
    from poyo_ssl.data.task import allowed_domain
    from poyo_ssl.files import check_new, new_folder
    from poyo_ssl.selection.picture import plot_selection
    from poyo_ssl.selection.table import fit_selection

    check_new(out, "selection", overwrite=overwrite, inputs=[data])
    recordings = open_recordings(data)
    with Progress(console=console) as progress:
        task = progress.add_task("measuring neurons", total=len(recordings))
        selection = fit_selection(
            recordings,
            intervals={r.recording_id: allowed_domain(r, split, window_s=1.0) for r in recordings},
            config=config,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    with new_folder(out, "selection", overwrite=overwrite, inputs=[data]) as folder:
        selection.save(folder)
        plot_selection(selection, folder / "selection.png")
    table = Table("Cre line", "neurons", "skewness", "kurtosis (excess)", "predictable")
    for row in selection.lines.to_dict("records"):
        chosen = f"{row['num_selected']} of {row['num_usable']}"
        table.add_row(
            row["cre_line"], str(row["num_usable"]), f"{row['skewness']:.2f}", f"{row['kurtosis']:.2f}", chosen
        )
    console.print(table)
    unusable = selection.table[selection.table["status"] != "ok"]
    if len(unusable):
        named = ", ".join(f"{r}/{u} ({s})" for r, u, s in unusable[["recording_id", "unit_id", "status"]].values[:10])
        console.print(f"{len(unusable)} neurons left out: {named}{' ...' if len(unusable) > 10 else ''}")
    console.print(f"selection in {out}")


def pretrain(
    data: Path,
    out: Path,
    config: PretrainConfig,
    selection: Path | None = None,
    devices: int = 1,
    nodes: int = 1,
    overwrite: bool = False,
) -> None:
    """Pretrain an encoder by masked latent reconstruction on the predictable neurons.

    Parameters
    ----------
    data : path
        Data folder, or one recording.
    out : path
        Run folder to make.
    config : PretrainConfig
        Settings.
    selection : path, optional
        Folder of 'poyo-ssl select'; needed unless window.units is all.
    devices : int
        GPUs, or CPU processes where there is no GPU.
    nodes : int
        Machines.
    overwrite : bool
        Replace a run that is there.
    """
    from poyo_ssl.training.run_folder import read_json
    from poyo_ssl.training.train import pretrain as train

    run = train(data, out, config=config, selection=selection, devices=devices, nodes=nodes, overwrite=overwrite)
    if read_json(run, "run.json").get("collapsed"):
        console.print("[bold red]the latents have collapsed: do not fine-tune from this run; see its log/")
    console.print(f"pretrained encoder in {run}")


def finetune(
    data: Path,
    out: Path,
    config: FinetuneConfig,
    pretrained: Path | None = None,
    selection: Path | None = None,
    devices: int = 1,
    nodes: int = 1,
    overwrite: bool = False,
) -> None:
    """Fine-tune an encoder with a readout on one task, or train both from scratch.

    Parameters
    ----------
    data : path
        Data folder, or one recording.
    out : path
        Run folder to make.
    config : FinetuneConfig
        Settings.
    pretrained : path, optional
        Run of 'poyo-ssl pretrain'; without it the encoder starts from random weights.
    selection : path, optional
        Folder of 'poyo-ssl select'; needed unless window.units is all.
    devices : int
        GPUs, or CPU processes where there is no GPU.
    nodes : int
        Machines.
    overwrite : bool
        Replace a run that is there.
    """
    from poyo_ssl.training.run_folder import read_json
    from poyo_ssl.training.train import finetune as train

    run = train(
        data,
        out,
        config=config,
        pretrained=pretrained,
        selection=selection,
        devices=devices,
        nodes=nodes,
        overwrite=overwrite,
    )
    loaded = read_json(run, "run.json").get("loaded")
    if loaded:
        console.print(
            f"encoder from {loaded['from']}: {loaded['tensors']} tensors, {loaded['parameters']:,} parameters; "
            f"fresh: {', '.join(loaded['fresh'])}"
        )
    console.print(f"fine-tuned model in {run}")


def resume(run: Path) -> None:
    """Go on with a run that was stopped; the result equals that of an uninterrupted run.

    Parameters
    ----------
    run : path
        Run folder.
    """
    from poyo_ssl.training.train import resume as go_on

    console.print(f"finished {go_on(run)}")


def evaluate(
    runs: list[Path],
    out: Path | None = None,
    arms: list[str] | None = None,
    data: Path | None = None,
    baselines: Literal["all", "core", "none", "with_cebra"] = "all",
    controls: bool = True,
    devices: int = 1,
    nodes: int = 1,
    seed: int = 0,
    margin: float = 0.02,
    overwrite: bool = False,
) -> None:
    """Score fine-tuned runs beside the simple baselines, or predictions files without any model.

    Writes predictions/*.h5 and results.json.

    Parameters
    ----------
    runs : list of path
        Run folders of 'poyo-ssl finetune', or predictions files of any decoder. With files alone neither models nor
        data are needed.
    out : path, optional
        Folder to make; with files alone it may be left out, and the tables are only shown.
    arms : list of str, optional
        Name of each run in the tables; the folder's name by default. Runs of one name are seeds of one arm.
    data : path, optional
        Where the recordings are now; by default where the runs found them. With files alone, a data folder with
        splits.json ('poyo-ssl split'): every target of every file is checked against it.
    baselines : {'all', 'core', 'none', 'with_cebra'}
        Baselines to fit beside runs; 'core' leaves the slower ones and the controls of the data out, 'with_cebra' adds
        CEBRA's embedding (needs 'poyo-ssl[cebra]').
    controls : bool
        Predict with shuffled neurons, shifted activity and untrained weights of every run, too: they should fail.
    devices : int
        GPUs, or CPU processes where there is no GPU.
    nodes : int
        Machines.
    seed : int
        Seed of the controls, and of the bootstrap over ten or more animals.
    margin : float
        Largest difference between scores of 0 to 1 that counts as none, for 'equivalent' and 'no worse'.
    overwrite : bool
        Replace results that are there.
    """
    if arms and len(arms) != len(runs):
        raise ConfigError(f"{len(arms)} arms for {len(runs)} runs", fix="name every run, or none")
    for run in runs:
        if not run.exists():
            raise ConfigError(f"no run or predictions file {run}", fix="check the path")
    if all(run.is_file() for run in runs):
        if arms:
            raise ConfigError("--arms for predictions files", fix="leave it out: each file names its arm")
        from poyo_ssl.evaluation.leaderboard import evaluate_files

        scores = evaluate_files(runs, out, data=data, seed=seed, margin=margin, overwrite=overwrite)
    else:
        from poyo_ssl.evaluation.evaluate import evaluate as score

        if out is None:
            raise ConfigError("evaluate of runs without --out", fix="name the folder that predictions go to")
        named: dict[str, list[Path]] = {}
        for arm, run in zip(arms or [], runs, strict=False):
            named.setdefault(arm, []).append(run)
        with console.status("evaluating") as status:
            scores = score(
                named or runs,
                out,
                data=data,
                baselines=baselines,
                controls=controls,
                devices=devices,
                nodes=nodes,
                seed=seed,
                margin=margin,
                overwrite=overwrite,
                progress=status.update,
            )
    print_scores(scores.rows)
    print_comparisons(scores.rows)
    if out is not None:
        console.print(f"results in {out}")


def print_scores(rows: list[dict]) -> None:
    """Show the scores of every arm, a table for each task and split."""
    scores = [row for row in rows if " minus " not in row["metric"]]
    for task, split in dict.fromkeys((row["task"], row["split"]) for row in scores):
        table = _table(f"{task} on {split}: scores", "metric", "arm", "kind", "value", "95 % interval", "n")
        for row in sorted(scores, key=lambda r: r["metric"]):
            if (row["task"], row["split"]) == (task, split):
                numbers = (f"{row['value']:.3f}", _interval(row), f"{row['n']} {row['unit']}")
                table.add_row(row["metric"], escape(row["arm"]), row["kind"], *numbers)
        console.print(table)


def print_comparisons(rows: list[dict]) -> None:
    """Show how the models differ from the other arms, in the metric that ranks them."""
    from poyo_ssl.evaluation.metrics import headline_metric

    columns = ("model", "minus", "difference", "95 % interval", "effect size", "p (Holm)", "verdict")
    for task, split in dict.fromkeys((row["task"], row["split"]) for row in rows):
        own = [row for row in rows if (row["task"], row["split"]) == (task, split)]
        headline = headline_metric(task, split, [row["metric"] for row in own if " minus " not in row["metric"]])
        table = _table(f"{task} on {split}: comparisons in {headline}", *columns)
        for row in own:
            metric, _, other = row["metric"].partition(" minus ")
            if other and metric == headline:
                numbers = ["-" if row[k] is None else f"{row[k]:.3f}" for k in ("effect_size", "p_holm")]
                marked = f"{other} (best baseline)" if row["best_baseline"] else other
                first = (escape(row["arm"]), escape(marked), f"{row['value']:+.3f}", _interval(row))
                table.add_row(*first, *numbers, row["verdict"])
        if table.row_count:
            console.print(table)


def _table(title: str, *columns: str) -> Table:
    """Make a table that breaks long words on a narrow terminal: an ellipsis in their place would hide digits."""
    table = Table(title=escape(title))
    for column in columns:
        table.add_column(escape(column), overflow="fold")
    return table


def _interval(row: dict) -> str:
    return "-" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}"


def leaderboard(
    folder: Path,
    out: Path | None = None,
    task: Literal["gratings", "frame_number", "frames"] | None = None,
    split: str | None = None,
    data: Path | None = None,
    seed: int = 0,
    margin: float = 0.02,
) -> None:
    """Rank all predictions files of a folder, with the gain over the best simple baseline.

    Writes leaderboard.html, leaderboard.csv and leaderboard.md: one table per task and split.

    Parameters
    ----------
    folder : path
        Predictions files (*.h5) of one data set, of any decoders, in and below it.
    out : path, optional
        Folder for the leaderboard; that of the predictions by default. An earlier leaderboard is replaced.
    task : {'gratings', 'frame_number', 'frames'}, optional
        Only this task.
    split : str, optional
        Only this split.
    data : path, optional
        Data folder with splits.json ('poyo-ssl split'): every target of every file is checked against it.
    seed : int
        Seed of the bootstrap over ten or more animals.
    margin : float
        Largest difference between scores of 0 to 1 that counts as none, for 'equivalent' and 'no worse'.
    """
    from poyo_ssl.evaluation.leaderboard import find_predictions, make_leaderboards
    from poyo_ssl.report.leaderboard import SEVERAL, cells, header, write_leaderboard

    paths, others = find_predictions(folder)
    if others:
        console.print(f"left out {len(others)} HDF5 files that hold no predictions, first {others[0]}", markup=False)
    with console.status(f"scoring {len(paths)} predictions files"):
        boards = make_leaderboards(paths, task=task, split=split, data=data, seed=seed, margin=margin)
    if len(boards) > 1:
        console.print(SEVERAL.format(len(boards)))
    for board in boards:
        # On a terminal the headline is enough; the files have the other metrics.
        shown = _table(f"{board.task} on {board.split}", *header(board)[:9])
        for entry in board.entries:
            shown.add_row(*(escape(text) for text in cells(board, entry)[:9]))
        console.print(shown)
        for note in board.notes:
            console.print(note, markup=False)
    for path in write_leaderboard(boards, out or folder):
        console.print(f"wrote {path}", markup=False)


def report(results: Path, out: Path | None = None) -> None:
    """Write a self-contained report.html from a results folder.

    Parameters
    ----------
    results : path
        Folder of 'poyo-ssl evaluate' or 'poyo-ssl demo'.
    out : path, optional
        File to write; report.html in the folder by default.
    """
    from poyo_ssl.report import write_report

    console.print(f"wrote {write_report(results, out)}")


def demo(out: Path = Path("runs/demo"), seed: int = 0, overwrite: bool = False) -> None:
    """Run the whole method on a small virtual observatory and write a report.

    Parameters
    ----------
    out : path
        Folder to make.
    seed : int
        Seed of the observatory and of every training.
    overwrite : bool
        Replace a demo that is there.
    """
    from poyo_ssl.demo import run_demo

    page = run_demo(out, seed=seed, overwrite=overwrite, console=console)
    console.print(f"open {page}")


def serve(
    run: Path,
    recording: str | None = None,
    port: int = 5005,
    pipe: bool = False,
    min_coverage: float = 0.5,
    threads: int = 1,
) -> None:
    """Decode imaging frames as they come, from a loopback socket or a pipe; docs/online.md has the messages.

    Parameters
    ----------
    run : path
        Run folder of 'poyo-ssl finetune'.
    recording : str, optional
        Id of the recording whose neurons are coming; needed if the run knows several.
    port : int
        Port on 127.0.0.1 to listen on; 0 takes a free one and says which.
    pipe : bool
        Read frames from standard input and write predictions to standard output instead.
    min_coverage : float
        Share of a window's values that must be there for a prediction.
    threads : int
        Cores to compute on.
    """
    if threads < 1:
        raise ConfigError(f"--threads of {threads}", allowed="1 or more", fix="change it")
    import torch

    from poyo_ssl.online import Decoder
    from poyo_ssl.online.serve import LOOPBACK, Server, warm_up

    torch.set_num_threads(threads)
    if pipe:
        _serve_pipe(run, recording, min_coverage)
        return
    decoder = Decoder(run, recording, min_coverage=min_coverage)
    warm_up(decoder)
    # What supervises a rig's programs stops them by SIGTERM, and a script's background job does not hear Ctrl-C.
    former = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with Server(decoder, port, report=lambda line: console.print(line, markup=False, highlight=False)) as server:
            console.print(
                f"decoding {decoder.recording_id} ({len(decoder.unit_ids)} neurons) on {LOOPBACK}:{server.port}; "
                "stop with Ctrl-C",
                highlight=False,
                soft_wrap=True,
            )
            server.serve_forever()
    except KeyboardInterrupt:
        console.print("stopped")
    finally:
        signal.signal(signal.SIGTERM, former)


def _serve_pipe(run: Path, recording: str | None, min_coverage: float) -> None:
    from poyo_ssl.online import Decoder
    from poyo_ssl.online.serve import answer, warm_up

    # Whatever a library prints must not end up among the predictions.
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as sink, os.fdopen(os.dup(sys.stdin.fileno()), "rb") as source:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        decoder = Decoder(run, recording, min_coverage=min_coverage)
        warm_up(decoder)
        try:
            answer(decoder, source, sink)
        except BrokenPipeError:
            # What is still in the buffer has no reader either.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sink.fileno())
            raise StreamError("nobody reads the predictions", fix="keep the pipe's other end open") from None

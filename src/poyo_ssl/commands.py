"""The commands: typed functions that `poyo_ssl.cli` turns into subcommands.

Help of a flag stands in its annotation, with the least value that it takes behind it. Whatever needs seconds to import
(torch, pandas, matplotlib, rich) is imported within the functions: help and mistakes are answered at once.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from poyo_ssl.config import (
    ArraysConfig,
    CompanionPaths,
    ConversionConfig,
    FinetuneConfig,
    NwbConfig,
    PretrainConfig,
    SelectionConfig,
    SplitConfig,
    Suite2pConfig,
    check_selection,
)
from poyo_ssl.errors import ConfigError, PoyoError, RecordingError, StreamError

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

    from poyo_ssl.evaluation.leaderboard import Row
    from poyo_ssl.sources.allen_list import Experiment, ExperimentFilter, Fetched
    from poyo_ssl.sources.base import Source
    from poyo_ssl.sources.doctor import Examination
    from poyo_ssl.sources.run import Outcome

Data = Annotated[Path, "Data folder, or one recording."]
MovedData = Annotated[Path | None, "Where the recordings are now; by default where the runs found them."]
RunFolder = Annotated[Path, "Run folder to make."]
Chosen = Annotated[Path | None, "Folder of 'poyo-ssl select'; needed unless --window.units is all."]
Words = list[str] | None
Output = Annotated[Path, "Data folder to make, or to complete after an interruption."]
Overwrite = Annotated[bool, "Replace an earlier result of this command; a folder with any other file in it is refused."]
Unfinished = Annotated[bool, "Also take runs whose training was stopped or still goes on."]
Devices = Annotated[int, "GPUs per machine, or CPU processes if there is no GPU.", 1]
Nodes = Annotated[int, "Machines.", 1]
Workers = Annotated[int | None, "Parallel processes; all cores by default."]
BootstrapSeed = Annotated[int, "Seed of the controls and of the bootstrap over ten or more animals.", 0]
Margin = Annotated[float, "Largest difference of scores in 0-1 that counts as none, for 'equivalent' and 'no worse'."]


@cache
def console() -> Console:
    """Return the terminal that commands report on."""
    from rich.console import Console

    return Console(stderr=True)


def say(*lines: str) -> None:
    """Show lines as they are."""
    for line in lines:
        console().print(line, markup=False, highlight=False, soft_wrap=True)


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Show a table, if it has rows; long words are broken, because an ellipsis would hide digits."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title) or None)
    for column in columns:
        # Names of stimuli stay whole on a narrow screen.
        table.add_column(escape(column), overflow="fold", no_wrap=column == "stimulus")
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    if table.row_count:
        console().print(table)


@contextmanager
def progress(text: str, total: int | None) -> Iterator[Callable[[], None]]:
    """Show a progress bar; gives a function that advances it."""
    from rich.progress import Progress

    with Progress(console=console()) as bar:
        task = bar.add_task(text, total=total)
        yield lambda: bar.advance(task)


def prepare_observatory(
    output: Output,
    *,
    world: Annotated[str, "allen_like, regularity_helps, null or noise_confounded."] = "allen_like",
    size: Annotated[
        str,
        "tiny (4 recordings) or small (13: one per Cre line), minutes long; with real schedules medium (40: sessions "
        "A, B and C of each line) or paper (433 sessions A).",
    ] = "small",
    seed: Annotated[int, "The same seed gives the same bytes with any number of workers.", 0] = 0,
    dff_procedure: Annotated[
        str, "allen_median, allen_mode (the Allen's earlier one), maximin or percentile."
    ] = "allen_median",
    as_nwb: Annotated[bool, "Also write Allen NWB 1 files, into OUTPUT/ophys_experiment_data."] = False,
    workers: Workers = None,
    overwrite: Annotated[bool, "Replace an observatory that is there."] = False,
) -> None:
    """Simulate a virtual Allen Brain Observatory with known truth."""
    from poyo_ssl.observatory import generate_observatory, get_size, get_world

    get_world(world)
    with progress(f"simulating {world}", get_size(size).num_recordings) as advance:
        paths = generate_observatory(
            output,
            world=world,
            size=size,
            seed=seed,
            dff_procedure=dff_procedure,
            as_nwb=as_nwb,
            workers=(os.cpu_count() or 1) if workers is None else workers,
            overwrite=overwrite,
            progress=lambda _: advance(),
        )
    say(f"{len(paths)} recordings in {output}")


def prepare_allen(
    input: Annotated[Path, "A .nwb file, or a folder of them as AllenSDK arranges it (ophys_experiment_data)."],
    output: Annotated[Path | None, "Data folder to make or to complete; without it nothing is converted."] = None,
    *,
    list: Annotated[
        bool,
        "Only show which experiments of ophys_experiments.json or experiment_containers.json in the input folder pass "
        "the filters.",
    ] = False,
    download: Annotated[bool, "First fetch missing files, and the list if needed, into the input folder."] = False,
    published: Annotated[bool, "Only the 433 experiments of the study; write their arms to arms.csv."] = False,
    cre_line: Annotated[Words, "Only these Cre lines, in the Allen's spelling."] = None,
    area: Annotated[Words, "Only these areas: VISp, VISl, VISal, VISpm, VISam, VISrl."] = None,
    session_type: Annotated[Words, "Only these session types: A, B, C, C2."] = None,
    min_depth_um: Annotated[int | None, "Least imaging depth."] = None,
    max_depth_um: Annotated[int | None, "Largest imaging depth."] = None,
    address: Annotated[str | None, "Address of the files, if not the Allen's public bucket."] = None,
    max_trim_frames: Annotated[int, "Excess frames of dF/F or timestamps that are trimmed, with a warning."] = 1,
    conversion: ConversionConfig,
) -> None:
    """List, fetch and convert Allen Brain Observatory files (NWB 1), without AllenSDK.

    A file that cannot be fetched or read does not stop the others: it is named at the end, and the exit code is 2.
    Files and recordings that are complete are kept.
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
        chosen = _choose_experiments(input, wanted, ids, address if download else None)
        if list:
            _show_experiments(chosen)
            return
        ids = [one.experiment_id for one in chosen]
    lost = _fetch(ids or (), input, address) if download else []
    if output is not None:
        only = None if ids is None else {str(number) for number in ids}

        def finish(outcomes: Sequence[Outcome]) -> None:
            if only is not None and len(outcomes) < len(only):
                say(f"{len(only) - len(outcomes)} of {len(only)} experiments have no file in {input}")
            if published:
                made = [outcome.recording_id for outcome in outcomes if outcome.status != "failed"]
                _write_arms([output / f"{name}.h5" for name in made], output)

        _convert(AllenSource(max_trim_frames=max_trim_frames), input, output, conversion, only=only, then=finish)
    if lost:
        raise RecordingError(
            f"{len(lost)} of {len(ids or ())} files could not be fetched, {lost[0].path.name} first",
            fix="see the lines above; run it again to continue",
        )


def _choose_experiments(
    input: Path, wanted: ExperimentFilter, ids: Sequence[int] | None, address: str | None
) -> list[Experiment]:
    """Return the experiments of the list that are wanted; fetch the list first if there is an address."""
    from poyo_ssl.sources.allen_list import download_list, find_list, read_experiments, select_experiments

    path = find_list(input)
    if path is None and address is not None:
        with console().status("fetching the list of experiments"):
            path = download_list(input, address)
    if path is None:
        raise RecordingError(
            f"no list of experiments in {input}",
            allowed="ophys_experiments.json or experiment_containers.json",
            fix="put one there, or fetch it with --download",
        )
    experiments = read_experiments(path)
    unknown = len(set(ids or ()) - {one.experiment_id for one in experiments})
    if unknown:
        say(f"{unknown} of the {len(ids or ())} published experiments are not in {path}: left out")
    chosen = select_experiments(experiments, wanted, ids)
    if not chosen:
        raise RecordingError(f"none of {len(experiments)} experiments in {path} is wanted", fix="loosen the filters")
    return chosen


def _show_experiments(experiments: Sequence[Experiment]) -> None:
    """Show one row per experiment, and how many there are of each line."""
    columns = ("experiment", "container", "mouse", "Cre line", "area", "depth (um)", "session", "date")
    rows = []
    for one in experiments:
        place = (one.cre_line, one.targeted_structure, one.depth_um)
        session = one.session_type.removeprefix("three_session_")
        rows.append((one.experiment_id, one.container_id, one.subject_id, *place, session, one.recording_date))
    show_table("", columns, rows)
    count = Counter(one.cre_line for one in experiments)
    each = ", ".join(f"{line} {number}" for line, number in sorted(count.items()))
    say(f"{len(experiments)} experiments of {len({one.subject_id for one in experiments})} mice ({each})")


def _fetch(ids: Sequence[int], folder: Path, address: str) -> list[Fetched]:
    """Fetch files with a progress bar; say which could not be fetched, and return those."""
    from rich import progress as bars

    from poyo_ssl.sources.allen_list import download_experiments

    columns = (bars.TextColumn("{task.description}"), bars.BarColumn(), bars.DownloadColumn())
    failed: list[Fetched] = []
    settled = 0
    with bars.Progress(*columns, bars.TransferSpeedColumn(), bars.TimeRemainingColumn(), console=console()) as bar:
        task = bar.add_task("fetching", total=None)

        def show(number: int, there: int, size: int) -> None:
            bar.update(task, description=f"{number} ({settled + 1} of {len(ids)})", completed=there, total=size)

        def done(one: Fetched) -> None:
            nonlocal settled
            settled += 1
            if one.error:
                failed.append(one)
                say(one.error)

        download_experiments(ids, folder, address, progress=show, done=done)
    say(f"{len(ids) - len(failed)} of {len(ids)} files are in {folder}")
    return failed


def _write_arms(paths: Sequence[Path], output: Path) -> None:
    """Write and show which arm of the study each recording belongs to, by the Cre line in its file."""
    from poyo_ssl.data.recording import Recording
    from poyo_ssl.files import write_beside
    from poyo_ssl.sources.allen_list import PUBLISHED_ARMS, published_arm

    lines = {path.stem: Recording.open(path).metadata.cre_line for path in paths}
    arms = {name: published_arm(line) or "unknown" for name, line in lines.items()}
    rows = [f"{name},{lines[name]},{arms[name]}" for name in sorted(lines)]
    write_beside(output / "arms.csv", "\n".join(["recording_id,cre_line,arm", *rows]) + "\n")
    count = Counter(arms.values())
    say(*(f"{arm}: {count[arm]} of {number} published recordings" for arm, number in PUBLISHED_ARMS.items()))
    if count["unknown"]:
        say(f"{count['unknown']} recordings of an unknown Cre line, see arms.csv")


def prepare_nwb(
    input: Annotated[Path, "An NWB 2 file, or a folder with some at any depth."],
    output: Output,
    *,
    source: NwbConfig,
    companions: CompanionPaths,
    conversion: ConversionConfig,
) -> None:
    """Convert NWB 2 files: DANDI 000728 (Allen Visual Coding), or any with traces of ROIs.

    Stimuli come from the file's interval tables and index series, or from a table beside it: stimuli.csv,
    recording.json and pixels in a folder of the file's own, or in one of its name. Needs 'poyo-ssl[nwb]'. A file that
    cannot be read is named at the end.
    """
    from poyo_ssl.sources.nwb import NwbSource
    from poyo_ssl.sources.tables import Companions

    _convert(NwbSource(**asdict(source), companions=Companions(**asdict(companions))), input, output, conversion)


def prepare_brainsets(
    input: Annotated[Path, "A .h5 file, or a folder that brainsets prepared."],
    output: Output,
    *,
    how: Annotated[
        Literal["link", "copy", "rewrite"],
        "Hard links (copies on another disk), copies, or new recordings where something has to be omitted.",
    ] = "link",
    pixels: Annotated[
        Path | None, "Folder with the pixels of each stimulus under its name, which brainsets does not keep."
    ] = None,
    conversion: ConversionConfig,
) -> None:
    """Take files of 'brainsets prepare allen_visual_coding_ophys_2016' and write our splits beside them.

    Files are checked, then linked to; they are never changed. A file that cannot be taken is named at the end.
    """
    from poyo_ssl.sources.brainsets import BrainsetsSource

    def write_splits(outcomes: Sequence[Outcome]) -> None:
        if any(outcome.status != "failed" for outcome in outcomes):
            try:
                _write_splits(output)
            except PoyoError as error:
                say(f"no splits: {error}")

    _convert(BrainsetsSource(how=how, pixels=pixels), input, output, conversion, then=write_splits)


def _write_splits(folder: Path) -> None:
    """Write splits.json of a data folder; one with other settings is the user's and stays."""
    from poyo_ssl.data.recording import open_recordings
    from poyo_ssl.data.splits import load_split_settings, save_splits

    path = folder / "splits.json"
    if path.exists() and load_split_settings(path) != SplitConfig():
        say(f"{path} has settings of its own and stays; 'poyo-ssl split' replaces it")
        return
    save_splits(open_recordings(folder), path, SplitConfig())
    say(f"splits in {path}")


def prepare_suite2p(
    input: Annotated[Path, "A folder 'suite2p' (or one plane), or a folder with some at any depth."],
    output: Output,
    *,
    source: Suite2pConfig,
    companions: CompanionPaths,
    conversion: ConversionConfig,
) -> None:
    """Convert output of suite2p (before and after 1.0) to dF/F of F - r Fneu; nothing unsafe is unpickled.

    Clock, stimuli, pixels and metadata are files beside the folder 'suite2p' (timestamps.npy, stimuli.csv, pixels,
    recording.json), or the settings of these names. A folder that cannot be read is named at the end.
    """
    from poyo_ssl.sources.suite2p import Suite2pSource
    from poyo_ssl.sources.tables import Companions

    _convert(Suite2pSource(**asdict(source), companions=Companions(**asdict(companions))), input, output, conversion)


def prepare_arrays(
    input: Annotated[
        Path, "A file of arrays; a folder with dff.*, fluorescence.* (and neuropil.*) or events.*; or a folder of such."
    ],
    output: Output,
    *,
    source: ArraysConfig,
    companions: CompanionPaths,
    conversion: ConversionConfig,
) -> None:
    """Convert arrays of dF/F, fluorescence or events (npy, npz, csv or mat) with a stimulus table.

    Clock, stimuli, pixels and metadata are files in the recording's folder (timestamps.npy, stimuli.csv, pixels,
    recording.json), or the settings of these names. A recording that cannot be read is named at the end.
    """
    from poyo_ssl.sources.arrays import ArraysSource
    from poyo_ssl.sources.tables import Companions

    _convert(ArraysSource(**asdict(source), companions=Companions(**asdict(companions))), input, output, conversion)


def prepare_events(
    input: Annotated[
        Path, "Folder with events.npz, epochs.csv and drifting_gratings.csv, or a folder of such folders."
    ],
    output: Output,
    *,
    seed: Annotated[int, "Seed of the noise."] = 0,
    conversion: ConversionConfig,
) -> None:
    """Turn folders of event files into recordings with simulated dF/F (GCaMP6f).

    A folder that cannot be read does not stop the others: it is named at the end, and the exit code is 2. Recordings
    that are complete are kept.
    """
    from poyo_ssl.sources.events import EventsSource

    _convert(EventsSource(seed=seed), input, output, conversion)


def _convert(
    source: Source,
    input: Path,
    output: Path,
    conversion: ConversionConfig,
    *,
    only: Collection[str] | None = None,
    then: Callable[[list[Outcome]], None] | None = None,
) -> None:
    """Run a source with a progress bar; show warnings; do `then`; raise `RecordingError` if a recording failed."""
    from rich.progress import Progress

    from poyo_ssl.sources.run import convert

    bar = Progress(console=console())
    task = bar.add_task(f"converting {source.name}", total=None)

    def show(outcome: Outcome, total: int) -> None:
        # Not started before: a missing input is answered with one line.
        bar.start()
        bar.update(task, total=total, advance=1)
        say(*(f"{outcome.recording_id}: {line}" for line in outcome.warnings))

    try:
        outcomes = convert(source, input, output, **asdict(conversion), only=only, progress=show)
    finally:
        if bar.live.is_started:
            bar.stop()
    if then:
        then(outcomes)
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    if len(outcomes) == 1 and failed:
        raise RecordingError(failed[0].error)
    count = Counter(outcome.status for outcome in outcomes)
    say(f"{count['written']} written, {count['unchanged']} unchanged, {count['failed']} failed in {output}")
    say(*(f"{outcome.input}: {outcome.error}" for outcome in failed))
    if failed:
        raise RecordingError(
            f"{len(failed)} of {len(outcomes)} recordings could not be converted, {failed[0].recording_id} first",
            fix="see the lines above; run it again to continue",
        )


def doctor(path: Annotated[Path, "File or folder."], *, workers: Workers = None) -> None:
    """Show what is in a recording (units, rate, stimuli, Cre line, moments), and what looks wrong.

    The path may hold a prepared recording, files of any source of 'poyo-ssl prepare', or a folder of some, one row
    each. Nothing is written. A recording that cannot be read is named at the end; the exit code is then 2.
    """
    from rich.progress import track

    from poyo_ssl.sources.doctor import Examination, examine, examine_all, find_twins
    from poyo_ssl.sources.registry import recognise

    recognised = recognise(path)
    if len(recognised) == 1:
        kind, item = recognised[0]
        _show_examination(examine(item, kind))
        return
    results = examine_all(recognised, workers=workers)
    quiet = not console().is_terminal
    shown = track(results, "examining", len(recognised), console=console(), transient=True, disable=quiet)
    # In the order of the paths, not of arrival.
    answers = [answer for _, answer in sorted(shown, key=lambda one: one[0])]
    found = [answer for answer in answers if isinstance(answer, Examination)]
    failed = [
        answer if str(item) in answer else f"{item}: {answer}"
        for (_, item), answer in zip(recognised, answers, strict=True)
        if isinstance(answer, str)
    ]
    if found:
        _show_examinations(found)
        say(*(f"{one.recording.recording_id}: {line}" for one in found for line in one.suspicions), *find_twins(found))
    say(*failed)
    if failed:
        raise RecordingError(
            f"{len(failed)} of {len(recognised)} recordings could not be read",
            fix="repair or remove them, see the lines above",
        )


def _show_examination(found: Examination) -> None:
    """Show one recording on one screen."""
    from rich.table import Table

    console().print(f"[bold]{found.recording.recording_id}[/bold]  {found.path}", highlight=False, soft_wrap=True)
    facts = Table.grid(padding=(0, 2))
    for name, text in _facts(found).items():
        if text:
            facts.add_row(name, text)
    console().print(facts)
    rows = [
        (one.name, one.num_presentations or "", one.num_blanks or "", one.content, f"{one.minutes:.1f}", one.pixels)
        for one in found.stimuli
    ]
    show_table("", ("stimulus", "shown", "blanks", "content", "minutes", "pixels"), rows)
    _show_moments(found)
    say(*(["suspicious", *(f"- {line}" for line in found.suspicions)] if found.suspicions else ["nothing suspicious"]))


def _facts(found: Examination) -> dict[str, str]:
    """Return who was recorded, where, for how long, and what there is beside the traces."""
    recording, about = found.recording, found.recording.metadata
    masked = float((recording.masked_domain[:, 1] - recording.masked_domain[:, 0]).sum()) / 60
    known = int((recording.cell_specimen_ids >= 0).sum())
    beside = {"running": "running", "pupil": "pupil", "motion": "motion", "roi_masks": "ROI masks", "events": "events"}

    def join(*parts: str | None) -> str:
        return ", ".join(part for part in parts if part)

    return {
        "kind": found.kind,
        "subject": join(
            about.subject_id,
            about.sex,
            None if about.age_days is None else f"{about.age_days:g} days old",
            about.container_id and f"container {about.container_id}",
        ),
        "Cre line": join(about.cre_line, about.reporter_line, about.indicator),
        "place": join(
            about.targeted_structure,
            None if about.depth_um is None else f"{about.depth_um} um",
            *(about.session_type, about.recording_date, about.device_id),
        ),
        "imaging": join(
            f"{recording.duration_s / 60:.1f} min",
            f"{recording.num_frames} frames at {recording.rate_hz:.4g} Hz",
            f"from {recording.timestamps[0]:.4g} s",
            f"{masked:.1f} min masked" if masked else None,
        ),
        "units": join(str(recording.num_units), f"{known} with a cell specimen id" if known else None),
        "beside": join(*(text for name, text in beside.items() if getattr(recording, name) is not None)),
        "origin": about.origin,
    }


def _show_moments(found: Examination) -> None:
    """Show what was measured of the units, and how many of them lie below the published thresholds."""
    import numpy as np

    from poyo_ssl import protocol

    measured = found.statistics
    usable = measured.status == "ok"
    columns = {
        "skewness": measured.skewness,
        "excess kurtosis": measured.kurtosis,
        "signal-to-noise ratio": measured.snr,
        "event rate (Hz)": measured.event_rate_hz,
    }
    rows = []
    for name, values in columns.items():
        finite = values[usable & np.isfinite(values)]
        marks = np.quantile(finite, [0.5, 0.25, 0.75, 0, 1]) if len(finite) else []
        rows.append([name, *(f"{mark:.2f}" for mark in marks)])
    show_table("", ("per unit", "median", "25 %", "75 %", "lowest", "highest"), rows)
    skewness, kurtosis = protocol.SKEWNESS_THRESHOLD, protocol.KURTOSIS_THRESHOLD
    regular = usable & (measured.skewness < skewness) & (measured.kurtosis < kurtosis)
    say(
        f"{int(usable.sum())} usable units, {int(regular.sum())} of them with skewness below {skewness} and excess "
        f"kurtosis below {kurtosis}"
    )


def _show_examinations(found: Sequence[Examination]) -> None:
    """Show many recordings, one row each."""
    import numpy as np

    def middle(values: np.ndarray, usable: np.ndarray) -> str:
        return f"{np.median(values[usable]):.2f}" if usable.any() else "-"

    rows = []
    for one in found:
        recording, measured = one.recording, one.statistics
        size = (recording.num_units, f"{recording.duration_s / 60:.1f}", f"{recording.rate_hz:.4g}")
        shown = (recording.metadata.cre_line, ", ".join(sorted(recording.stimuli)))
        moments = (middle(values, measured.status == "ok") for values in (measured.skewness, measured.kurtosis))
        rows.append((recording.recording_id, *size, *shown, *moments, len(one.suspicions)))
    columns = ("recording", "units", "min", "Hz", "Cre line", "stimuli", "skewness", "kurtosis", "suspicious")
    show_table("", columns, rows)
    kinds = Counter(one.kind for one in found)
    each = ", ".join(kind if len(kinds) == 1 else f"{number} {kind}" for kind, number in kinds.items())
    say(f"{len(found)} recordings, medians over units. {each}")


def select(
    *,
    data: Data,
    out: Annotated[Path, "Folder to make, with selection.csv (one row per neuron), selection.json and selection.png."],
    config: SelectionConfig,
    split: SplitConfig,
    overwrite: Overwrite = False,
) -> None:
    """Score every neuron's dF/F by skewness and excess kurtosis and choose the predictable ones.

    Moments are taken outside every validation and test part of the split.
    """
    from poyo_ssl.data.recording import open_recordings
    from poyo_ssl.files import check_new, new_folder

    check_new(out, "selection", overwrite=overwrite, inputs=[data])
    recordings = open_recordings(data)

    from poyo_ssl.data.task import allowed_domain
    from poyo_ssl.selection.picture import plot_selection
    from poyo_ssl.selection.table import fit_selection

    with progress("measuring neurons", len(recordings)) as advance:
        selection = fit_selection(
            recordings,
            intervals={r.recording_id: allowed_domain(r, split, window_s=1.0) for r in recordings},
            config=config,
            progress=lambda *_: advance(),
        )
    with new_folder(out, "selection", overwrite=overwrite, inputs=[data]) as folder:
        selection.save(folder)
        plot_selection(selection, folder / "selection.png")
    rows = [
        (line, usable, f"{skewness:.2f}", f"{kurtosis:.2f}", f"{chosen} of {usable}")
        for line, usable, skewness, kurtosis, chosen in selection.lines[
            ["cre_line", "num_usable", "skewness", "kurtosis", "num_selected"]
        ].itertuples(index=False)
    ]
    show_table("", ("Cre line", "neurons", "skewness", "kurtosis (excess)", "predictable"), rows)
    unusable = selection.table[selection.table["status"] != "ok"]
    if len(unusable):
        named = ", ".join(f"{r}/{u} ({s})" for r, u, s in unusable[["recording_id", "unit_id", "status"]].values[:10])
        say(f"{len(unusable)} neurons left out: {named}{' ...' if len(unusable) > 10 else ''}")
    say(f"selection in {out}")


def split(
    data: Data,
    *,
    config: SplitConfig,
    out: Annotated[Path | None, "File to write; splits.json beside the recordings by default."] = None,
    window_s: Annotated[float, "Window plus lag of the decoders in seconds; clips keep it on each side."] = 1.0,
) -> None:
    """Write which presentations train, validate and test, in seconds, as a file beside the data."""
    from poyo_ssl.data.recording import open_recordings
    from poyo_ssl.data.splits import save_splits

    if not window_s > 0:
        raise ConfigError(f"--window_s {window_s}", allowed="above 0", fix="give the window plus lag in seconds")
    recordings = open_recordings(data)
    path = out or (data if data.is_dir() else data.parent) / "splits.json"
    seconds: dict[tuple[str, str], list[float]] = {}
    for named in save_splits(recordings, path, config, window_s=window_s).values():
        for stimulus, found in named.items():
            for part, spans in found.parts.items():
                seconds.setdefault((stimulus, part), []).append(float((spans[:, 1] - spans[:, 0]).sum()))
    rows = [(*key, len(values), f"{min(values):.1f} to {max(values):.1f}") for key, values in seconds.items()]
    show_table("", ("stimulus", "part", "recordings", "seconds in each"), rows)
    for (stimulus, part), values in seconds.items():
        if min(values) == 0:
            say(
                f"part '{part}' of {stimulus} is empty in {values.count(0.0)} of {len(values)} recordings: fewer "
                "or shorter clips (--num_clips, --clip_fraction, --valid_clip_fraction) or a shorter --window_s help"
            )
    say(f"splits of {len(recordings)} recordings in {path}")


def _check_training(
    units: str, data: Path, out: Path, selection: Path | None, pretrained: Path | None, overwrite: bool
) -> None:
    """Refuse before torch is imported what the training would refuse: folders that are missing or may not be made."""
    from poyo_ssl.files import SELECTION, check_new, read_json

    check_new(out, "run", overwrite=overwrite, inputs=[data, selection, pretrained])
    if not data.is_file() and not any(data.glob("*.h5")):
        from poyo_ssl.data.recording import open_recordings

        open_recordings(data)
    check_selection(units, selection)
    if selection is not None and not all((selection / name).is_file() for name in SELECTION[:2]):
        from poyo_ssl.selection.table import Selection

        Selection.load(selection)
    if pretrained is not None:
        read_json(pretrained, "run.json")


def pretrain(
    *,
    data: Data,
    out: RunFolder,
    config: PretrainConfig,
    selection: Chosen = None,
    devices: Devices = 1,
    nodes: Nodes = 1,
    overwrite: Overwrite = False,
) -> None:
    """Pretrain an encoder by masked latent reconstruction on the predictable neurons."""
    _check_training(config.window.units, data, out, selection, None, overwrite)
    from poyo_ssl.files import read_json
    from poyo_ssl.training.train import pretrain as train

    run = train(data, out, config=config, selection=selection, devices=devices, nodes=nodes, overwrite=overwrite)
    if read_json(run, "run.json").get("collapsed"):
        console().print("[bold red]the latents have collapsed: do not fine-tune from this run; see its log/")
    say(f"pretrained encoder in {run}")


def finetune(
    *,
    data: Data,
    out: RunFolder,
    config: FinetuneConfig,
    pretrained: Annotated[
        Path | None, "Run of 'poyo-ssl pretrain'; without it the encoder starts from random weights."
    ] = None,
    selection: Chosen = None,
    devices: Devices = 1,
    nodes: Nodes = 1,
    overwrite: Overwrite = False,
    allow_unfinished: Unfinished = False,
) -> None:
    """Fine-tune an encoder with a readout on one task, or train both from scratch."""
    # Embeddings are adapted with the settings of the fine-tuned run, whatever these say.
    units = "all" if config.adapt == "embeddings" else config.window.units
    _check_training(units, data, out, selection, pretrained, overwrite)
    from poyo_ssl.files import read_json
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
        allow_unfinished=allow_unfinished,
    )
    loaded = read_json(run, "run.json").get("loaded")
    if loaded:
        say(
            f"encoder from {loaded['from']}: {loaded['tensors']} tensors, {loaded['parameters']:,} parameters; "
            f"fresh: {', '.join(loaded['fresh'])}"
        )
    say(f"fine-tuned model in {run}")


def resume(run: Annotated[Path, "Run folder."]) -> None:
    """Go on with a run that was stopped; the result equals that of an uninterrupted run."""
    from poyo_ssl.files import read_json

    read_json(run, "run.json")
    from poyo_ssl.training.train import resume as go_on

    say(f"finished {go_on(run)}")


def evaluate(
    runs: Annotated[list[Path], "Folders of 'poyo-ssl finetune', or predictions files of any decoder."],
    *,
    out: Annotated[
        Path | None, "Folder to make, with predictions/*.h5 and results.json; not needed for predictions files."
    ] = None,
    arms: Annotated[Words, "Names of the runs in the tables; runs of one name are seeds of one arm."] = None,
    data: Annotated[
        Path | None,
        "Where the recordings are now; by default where the runs found them. For predictions files: data folder with "
        "splits.json, against which every target is checked.",
    ] = None,
    baselines: Annotated[
        Literal["all", "core", "none", "with_cebra"],
        "'core' omits slow baselines and controls of the data; 'with_cebra' adds CEBRA (needs 'poyo-ssl[cebra]').",
    ] = "all",
    controls: Annotated[
        bool, "Also predict with shuffled neurons, shifted activity and untrained weights; these should fail."
    ] = True,
    devices: Devices = 1,
    nodes: Nodes = 1,
    seed: BootstrapSeed = 0,
    margin: Margin = 0.02,
    overwrite: Overwrite = False,
    allow_unfinished: Unfinished = False,
) -> None:
    """Score fine-tuned runs beside the simple baselines, or predictions files without any model.

    With predictions files alone neither models nor data are needed.
    """
    from poyo_ssl.files import check_new, read_json

    if arms and len(arms) != len(runs):
        raise ConfigError(f"{len(arms)} arms for {len(runs)} runs", fix="name every run, or none")
    for run in runs:
        if not run.exists():
            raise ConfigError(f"no run or predictions file {run}", fix="check the path")
    if all(run.is_file() for run in runs):
        if arms:
            raise ConfigError("--arms for predictions files", fix="omit it: each file names its arm")
        from poyo_ssl.evaluation.leaderboard import evaluate_files

        scores = evaluate_files(runs, out, data=data, seed=seed, margin=margin, overwrite=overwrite)
    else:
        if out is None:
            raise ConfigError("evaluate of runs without --out", fix="name the folder that predictions go to")
        check_new(out, "results", overwrite=overwrite, inputs=[*runs, data])
        for run in runs:
            if run.is_dir():
                read_json(run, "run.json")
        from poyo_ssl.evaluation.evaluate import evaluate as score

        named: dict[str, list[Path]] = {}
        for arm, run in zip(arms or [], runs, strict=False):
            named.setdefault(arm, []).append(run)
        with console().status("evaluating") as status:
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
                allow_unfinished=allow_unfinished,
                progress=status.update,
            )
    show_scores(scores.rows)
    if out is not None:
        say(f"results in {out}")


def show_scores(rows: list[Row]) -> None:
    """Show the scores of every arm, a table for each task and split, and how the models differ from the other arms."""
    from poyo_ssl.evaluation.metrics import headline_metric

    def interval(row: Row) -> str:
        return f"{row.low:.3f} to {row.high:.3f}" if row.has_interval else "-"

    parts = {(row.task, row.split): f"{row.task} on {row.split}" for row in rows}
    plain = [row for row in rows if not row.minus]
    for part, title in parts.items():
        cells = [
            (row.metric, row.arm, row.kind, f"{row.value:.3f}", interval(row), f"{row.n} {row.unit}")
            for row in sorted(plain, key=lambda r: r.metric)
            if (row.task, row.split) == part
        ]
        show_table(f"{title}: scores", ("metric", "arm", "kind", "value", "95 % interval", "n"), cells)
    for part, title in parts.items():
        headline = headline_metric(*part, [row.metric for row in plain if (row.task, row.split) == part])
        compared: list[Sequence[str]] = []
        for row in rows:
            if row.minus and row.metric == headline and (row.task, row.split) == part:
                numbers = [f"{x:.3f}" if isfinite(x) else "-" for x in (row.effect_size, row.p_holm)]
                minus = f"{row.minus} ({row.marks})" if row.marks else row.minus
                compared.append((row.arm, minus, f"{row.value:+.3f}", interval(row), *numbers, row.verdict))
        columns = ("model", "minus", "difference", "95 % interval", "effect size", "p (Holm)", "verdict")
        show_table(f"{title}: comparisons in {headline}", columns, compared)


def leaderboard(
    folder: Annotated[Path, "Predictions files (*.h5) of one data set, of any decoders, in it and below."],
    *,
    out: Annotated[Path | None, "Folder for the leaderboard; that of the predictions by default."] = None,
    task: Annotated[Literal["gratings", "frame_number", "frames"] | None, "Only this task."] = None,
    split: Annotated[str | None, "Only this split."] = None,
    data: Annotated[Path | None, "Data folder with splits.json, against which every target is checked."] = None,
    seed: BootstrapSeed = 0,
    margin: Margin = 0.02,
) -> None:
    """Rank all predictions files of a folder, with the gain over the best simple baseline.

    Writes leaderboard.html, leaderboard.csv and leaderboard.md, with one table per task and split; earlier ones are
    replaced.
    """
    if not folder.is_dir():
        raise ConfigError(f"no folder {folder}", fix="check the path")
    from poyo_ssl.evaluation.leaderboard import find_predictions, make_leaderboards
    from poyo_ssl.report.leaderboard import HEADLINE_COLUMNS, SEVERAL, cells, header, write_leaderboard

    paths, others = find_predictions(folder)
    if others:
        say(f"left out {len(others)} HDF5 files that hold no predictions, first {others[0]}")
    with console().status(f"scoring {len(paths)} predictions files"):
        boards = make_leaderboards(paths, task=task, split=split, data=data, seed=seed, margin=margin)
    if len(boards) > 1:
        say(SEVERAL.format(len(boards)))
    for board in boards:
        # The terminal shows the headline metric; the files have the others.
        rows = [cells(board, entry)[:HEADLINE_COLUMNS] for entry in board.entries]
        show_table(f"{board.task} on {board.split}", header(board)[:HEADLINE_COLUMNS], rows)
        say(*board.notes)
    say(*(f"wrote {path}" for path in write_leaderboard(boards, out or folder)))


def audit(
    runs: Annotated[list[Path], "Folders of 'poyo-ssl pretrain' or 'poyo-ssl finetune'."],
    *,
    data: MovedData = None,
    allow_unfinished: Unfinished = False,
) -> None:
    """Check runs for leaks: whether anything of a test part reached training, as far as files can tell.

    Checks parts, inputs, frames and near-duplicates, statistics, vocabulary, selection, animals, and the runs that a
    run started from. Exits with code 2 if anything is found.
    """
    from poyo_ssl.files import read_json

    for run in runs:
        read_json(run, "run.json")
    from poyo_ssl.data.leaks import require_no_leaks
    from poyo_ssl.training.audit import audit_run

    audits = [audit_run(run, data, allow_unfinished=allow_unfinished) for run in runs]
    for found in audits:
        rows = [(leak.check, leak.recording_id, leak.problem) for leak in found.leaks]
        show_table(str(found.folder), ("check", "recording", "problem"), rows)
        if not rows:
            say(f"{found.folder}: no leak ({', '.join(found.checks)})")
    require_no_leaks([leak for found in audits for leak in found.leaks])


def report(
    results: Annotated[Path, "Folder of 'poyo-ssl evaluate' or 'poyo-ssl demo'."],
    *,
    out: Annotated[Path | None, "File to write; report.html in the folder by default."] = None,
) -> None:
    """Write a self-contained report.html from a results folder."""
    from poyo_ssl.report import write_report

    say(f"wrote {write_report(results, out)}")


def demo(
    *,
    out: Annotated[Path, "Folder to make."] = Path("runs/demo"),
    seed: Annotated[int, "Seed of the observatory and of every training.", 0] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Run the whole method on a small virtual observatory and write a report."""
    from poyo_ssl.files import check_new

    check_new(out, "demo", overwrite=overwrite)
    from poyo_ssl.demo import run_demo

    say(f"open {run_demo(out, seed=seed, overwrite=overwrite, console=console())}")


def serve(
    run: Annotated[Path, "Run folder of 'poyo-ssl finetune'."],
    *,
    recording: Annotated[str | None, "Id of the recording with these neurons, if the run has several."] = None,
    port: Annotated[int, "Port on 127.0.0.1 to listen on; 0 takes a free one and names it."] = 5005,
    pipe: Annotated[bool, "Read frames from standard input and write predictions to standard output."] = False,
    min_coverage: Annotated[float, "Share of a window's values that a prediction needs."] = 0.5,
    threads: Annotated[int, "Cores to compute on.", 1] = 1,
) -> None:
    """Decode imaging frames as they come, from a loopback socket or a pipe; docs/online.md has the messages."""
    from poyo_ssl.files import read_json

    read_json(run, "run.json")
    import torch

    from poyo_ssl.online import Decoder
    from poyo_ssl.online.serve import LOOPBACK, Server, warm_up

    torch.set_num_threads(threads)
    if pipe:
        _serve_pipe(run, recording, min_coverage)
        return
    decoder = Decoder(run, recording, min_coverage=min_coverage)
    warm_up(decoder)
    try:
        with Server(decoder, port, report=say) as server:
            units = f"{decoder.recording_id} ({len(decoder.unit_ids)} neurons)"
            say(f"decoding {units} on {LOOPBACK}:{server.port}; stop with Ctrl-C")
            server.serve_forever()
    except KeyboardInterrupt:
        say("stopped")


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

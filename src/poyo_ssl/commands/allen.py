"""The command that lists, fetches and converts files of the Allen Brain Observatory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from poyo_ssl.commands.console import console
from poyo_ssl.commands.conversion import convert_recordings
from poyo_ssl.errors import ConfigError, RecordingError

if TYPE_CHECKING:
    from poyo_ssl.sources.allen.bucket import Fetched
    from poyo_ssl.sources.allen.experiments import Experiment, ExperimentFilter
    from poyo_ssl.sources.convert import Outcome

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
    from poyo_ssl.sources.allen.bucket import ADDRESS
    from poyo_ssl.sources.allen.experiments import ExperimentFilter, published_experiments

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
    from poyo_ssl.sources.allen.bucket import download_list
    from poyo_ssl.sources.allen.experiments import find_list, read_experiments, select_experiments

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
    from poyo_ssl.sources.allen.bucket import download_experiments

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
    from poyo_ssl.folders import write_beside
    from poyo_ssl.sources.allen.experiments import PUBLISHED_ARMS, published_arm

    lines = {path.stem: Recording.open(path).metadata.cre_line for path in paths}
    arms = {name: published_arm(line) or "unknown" for name, line in lines.items()}
    rows = [f"{name},{lines[name]},{arms[name]}" for name in sorted(lines)]
    write_beside(output / "arms.csv", "\n".join(["recording_id,cre_line,arm", *rows]) + "\n")
    count = Counter(arms.values())
    for arm, number in PUBLISHED_ARMS.items():
        console.print(f"{arm}: {count[arm]} of {number} published recordings")
    if count["unknown"]:
        console.print(f"{count['unknown']} recordings of an unknown Cre line, see arms.csv")

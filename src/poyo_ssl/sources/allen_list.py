"""Which experiments there are: the Allen's lists of metadata, the published study's choice, and its two arms."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from poyo_ssl import protocol
from poyo_ssl.data.hdf5 import open_hdf5
from poyo_ssl.errors import RecordingError, check, choose
from poyo_ssl.sources.allen import DATA_FOLDER, SESSION_TYPES, UNKNOWN_LINE, parse_cre_line, parse_indicator
from poyo_ssl.sources.download import check_address, download

EXPERIMENTS_FILE, CONTAINERS_FILE = "ophys_experiments.json", "experiment_containers.json"
MANIFEST_FILE, MANIFEST_VERSION = "manifest.json", "1.3"
MAX_LIST_BYTES = 1 << 28
SESSION_PREFIX = "three_session_"
AREAS = ("VISp", "VISl", "VISal", "VISpm", "VISam", "VISrl")
PRETRAINING, FINETUNING = "pretraining", "fine-tuning"
PUBLISHED_ARMS = {PRETRAINING: 134, FINETUNING: 299}
"""Sessions of the published study in each arm (METHOD: section "Data")."""

ADDRESS = "https://allen-brain-observatory.s3.us-west-2.amazonaws.com/visual-coding-2p"
"""The Allen Institute's public bucket ``allen-brain-observatory`` in the region ``us-west-2``."""

MAX_ID_DIGITS = 12


@dataclass(frozen=True)
class Experiment:
    """One imaging session in the Allen's lists."""

    experiment_id: int  # names the file
    container_id: str
    subject_id: str
    session_type: str  # three_session_A, _B, _C or _C2; other texts are of another project
    cre_line: str  # driver with "Cre" in its name, or "unknown"
    reporter_line: str
    targeted_structure: str
    depth_um: int
    recording_date: str = ""  # YYYY-MM-DD
    sex: str = ""
    age_days: float | None = None  # on the day of recording
    failed: bool = False  # whether the container was not released

    def metadata(self) -> dict[str, Any]:
        """Return what a recording says of itself, as fields of `RecordingMetadata`."""
        taken = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("experiment_id", "failed")}
        return taken | {"indicator": parse_indicator(self.reporter_line)}


@dataclass(frozen=True)
class ExperimentFilter:
    """Which experiments to take: any of the given lines, areas and session types (A, B, C, C2), depths included."""

    cre_line: tuple[str, ...] = ()
    area: tuple[str, ...] = ()
    session_type: tuple[str, ...] = ()
    min_depth_um: int | None = None
    max_depth_um: int | None = None

    def __post_init__(self) -> None:
        for line in self.cre_line:
            choose("Cre line", line, protocol.CRE_LINES)
        for area in self.area:
            choose("area", area, AREAS)
        for name in self.session_type:
            known = (kind.removeprefix(SESSION_PREFIX) for kind in SESSION_TYPES)
            choose("session type", name.removeprefix(SESSION_PREFIX), known)
        low, high = self.min_depth_um, self.max_depth_um
        ordered = low is None or high is None or low <= high
        check(ordered, f"depths from {low} to {high} um", fix="give the lesser one as min_depth_um")

    def __bool__(self) -> bool:
        """Tell whether anything is asked for."""
        return self != ExperimentFilter()

    def passes(self, experiment: Experiment) -> bool:
        """Tell whether an experiment is wanted."""
        sessions = {SESSION_PREFIX + name.removeprefix(SESSION_PREFIX) for name in self.session_type}
        return (
            (not self.cre_line or experiment.cre_line in self.cre_line)
            and (not self.area or experiment.targeted_structure in self.area)
            and (not sessions or experiment.session_type in sessions)
            and (self.min_depth_um is None or experiment.depth_um >= self.min_depth_um)
            and (self.max_depth_um is None or experiment.depth_um <= self.max_depth_um)
        )


def find_list(folder: Path) -> Path | None:
    """Return the list of experiments of a folder as AllenSDK lays it out, or None; a file is taken as it is."""
    if folder.is_file():
        return folder
    if (folder / MANIFEST_FILE).is_file():
        check_manifest(folder / MANIFEST_FILE)
    return next((path for name in (EXPERIMENTS_FILE, CONTAINERS_FILE) if (path := folder / name).is_file()), None)


def check_manifest(path: Path) -> None:
    """Refuse an AllenSDK cache of another layout than that of the Visual Coding experiments."""
    fix = "give the cache of the Visual Coding experiments, or remove the manifest"
    manifest = _read_json(path)
    records = manifest.get("manifest") if isinstance(manifest, Mapping) else None
    if not isinstance(records, list):
        raise RecordingError(f"{path} has no list 'manifest'", fix=fix)
    entries = [one for one in records if isinstance(one, Mapping) and one.get("type") == "manifest_version"]
    if not entries:
        raise RecordingError(f"{path} has no record of type 'manifest_version'", fix=fix)
    version = entries[0].get("value")
    if version != MANIFEST_VERSION:
        problem = f"{path}: record 'manifest_version' has '{str(version)[:40]}' as 'value'"
        raise RecordingError(problem, allowed=MANIFEST_VERSION, fix=fix)


def _read_json(path: Path) -> Any:
    try:
        if path.stat().st_size > MAX_LIST_BYTES:
            raise ValueError(f"{path.stat().st_size / 1e9:.1f} GB")
        return json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise RecordingError(f"{path} is not JSON ({error})", fix="download it again") from None


def read_experiments(path: Path) -> list[Experiment]:
    """Return every experiment of ``ophys_experiments.json`` or ``experiment_containers.json``, sorted by id.

    A record that is not as it must be is refused by file, id and field.
    """
    records = _read_json(path)
    if not isinstance(records, list):
        raise RecordingError(f"{path} holds no list of records", fix=f"give {EXPERIMENTS_FILE} or {CONTAINERS_FILE}")
    found = {one.experiment_id: one for one in (_read_record(record, path) for record in _flatten(records, path))}
    return [found[key] for key in sorted(found)]


def _flatten(records: list[Any], path: Path) -> Iterator[Any]:
    """Give the records of experiments; those inside a container get what they share with it."""
    for record in records:
        if not (isinstance(record, Mapping) and "ophys_experiments" in record):
            yield record
            continue
        shared = {key: record.get(key) for key in ("specimen", "targeted_structure", "imaging_depth", "failed")}
        shared["experiment_container_id"] = record.get("id")
        for inner in _field(record, "ophys_experiments", list, path, record):
            yield shared | dict(inner) if isinstance(inner, Mapping) else inner


def _read_record(record: Any, path: Path) -> Experiment:
    def take(holder: Any, name: str, kind: type) -> Any:
        return _field(holder, name, kind, path, record)

    donor = take(take(record, "specimen", Mapping), "donor", Mapping)
    lines = take(donor, "transgenic_lines", list)
    drivers = [name for name in _names(lines, "driver") if "Cre" in name]
    container = record.get("experiment_container")
    date, birth = (str(text or "")[:10] for text in (record.get("date_of_acquisition"), donor.get("date_of_birth")))
    return Experiment(
        experiment_id=take(record, "id", int),
        container_id=str(take(record, "experiment_container_id", int)),
        subject_id=str(take(donor, "external_donor_name", str)),
        session_type=str(record.get("stimulus_name") or ""),
        # A second driver (Camk2a-tTA) only passes the first one on.
        cre_line=drivers[0] if drivers else UNKNOWN_LINE,
        reporter_line=next(iter(_names(lines, "reporter")), ""),
        targeted_structure=take(take(record, "targeted_structure", Mapping), "acronym", str),
        depth_um=take(record, "imaging_depth", int),
        recording_date=date,
        sex=str(donor.get("sex") or ""),
        age_days=_age_days(date, birth, donor),
        failed=bool(container.get("failed") if isinstance(container, Mapping) else record.get("failed")),
    )


def _field(holder: Any, name: str, kind: type, path: Path, record: Any) -> Any:
    """Return a field of a record, of the type that it must have."""
    value = holder.get(name) if isinstance(holder, Mapping) else None
    if value is None or not isinstance(value, kind) or isinstance(value, bool):
        identity = record.get("id", "without id") if isinstance(record, Mapping) else repr(record)[:40]
        found = "no" if value is None else f"'{str(value)[:40]}' as"
        raise RecordingError(f"{path}: record {identity} has {found} '{name}'", fix="download the list again")
    return value


def _names(lines: list[Any], kind: str) -> list[str]:
    named = [line for line in lines if isinstance(line, Mapping) and line.get("transgenic_line_type_name") == kind]
    return [str(line.get("name") or "") for line in named]


def _age_days(date: str, birth: str, donor: Mapping[str, Any]) -> float | None:
    """Return the age on the day of recording, or else what the list says of the animal at large."""
    try:
        return float((datetime.fromisoformat(date) - datetime.fromisoformat(birth)).days)
    except ValueError:
        age = donor.get("age")
        days = age.get("days") if isinstance(age, Mapping) else None
        return float(days) if isinstance(days, (int, float)) else None


def select_experiments(
    experiments: Iterable[Experiment], wanted: ExperimentFilter, ids: Iterable[int] | None = None
) -> list[Experiment]:
    """Return the released Visual Coding experiments that pass a filter and are among `ids`, if given."""
    among = None if ids is None else set(ids)
    released = (one for one in experiments if one.session_type in SESSION_TYPES and not one.failed)
    return [one for one in released if wanted.passes(one) and (among is None or one.experiment_id in among)]


def published_experiments() -> tuple[int, ...]:
    """Return the ids of the 433 experiments of the published study."""
    text = (files("poyo_ssl") / "sources" / "published_experiments.csv").read_text("utf-8")
    return tuple(int(line) for line in text.split()[1:])


def published_arm(cre_line: str) -> str:
    """Return the arm of the published study that a recording of a Cre line belongs to; empty for an unknown line."""
    line = parse_cre_line(cre_line)
    if line == UNKNOWN_LINE:
        return ""
    return PRETRAINING if line in protocol.PUBLISHED_PREDICTABLE_LINES else FINETUNING


@dataclass(frozen=True)
class Fetched:
    """What became of a file: where it is or would be, and why it is not there."""

    experiment_id: int
    path: Path
    error: str = ""


def experiment_path(folder: Path, experiment_id: int) -> Path:
    """Return where the file of an experiment belongs."""
    number = int(experiment_id)
    # Only digits make a name or an address, so that no list of ids can lead out of the folder.
    if number < 0 or len(str(number)) > MAX_ID_DIGITS:
        problem = f"experiment id {number}"
        raise RecordingError(problem, allowed=f"up to {MAX_ID_DIGITS} digits", fix="download the list again")
    return folder / DATA_FOLDER / f"{number}.nwb"


def download_list(folder: Path, address: str = ADDRESS) -> Path:
    """Fetch the list of all experiments, unless it is there; `address` is of ``visual-coding-2p`` or a mirror of it."""
    url = f"{check_address(address)}/{EXPERIMENTS_FILE}"
    return download(url, folder / EXPERIMENTS_FILE, check=read_experiments)


def download_experiments(
    ids: Sequence[int],
    folder: Path,
    address: str = ADDRESS,
    *,
    progress: Callable[[int, int, int], None],
    done: Callable[[Fetched], None],
) -> None:
    """Fetch the files of experiments one after the other, unless they are there.

    A file that the server does not have, or does not send whole, does not stop the others. `progress` is called with
    the experiment, the bytes that are there and the size, `done` after every file.
    """
    address = check_address(address)
    for number in ids:
        path = experiment_path(folder, number)
        url = f"{address}/{DATA_FOLDER}/{path.name}"
        try:
            download(url, path, check=_check_hdf5, progress=partial(progress, number))
            done(Fetched(number, path))
        except RecordingError as error:
            done(Fetched(number, path, str(error)))


def _check_hdf5(path: Path) -> None:
    """Open a file: HDF5 compares its size with its header, which tells a file that was cut short at its source."""
    with open_hdf5(path):
        pass

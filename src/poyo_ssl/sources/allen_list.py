"""Which experiments there are: the Allen's lists of metadata, the published study's choice, and its two arms."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from poyo_ssl import protocol
from poyo_ssl.data.hdf5 import open_hdf5
from poyo_ssl.errors import ConfigError, RecordingError, suggest
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


@dataclass(frozen=True)
class Experiment:
    """One imaging session in the Allen's lists.

    Attributes
    ----------
    experiment_id : int
        Names the file.
    container_id, subject_id : str
        Field of view and mouse.
    session_type : str
        ``three_session_A``, ``_B``, ``_C`` or ``_C2``; other texts are of another project.
    cre_line, reporter_line : str
        Driver with "Cre" in its name, or ``unknown``; reporter, or empty.
    targeted_structure : str
        Area.
    depth_um : int
        Imaging depth.
    recording_date : str
        ``YYYY-MM-DD``, or empty.
    sex : str
        As the list has it.
    age_days : float, optional
        On the day of recording.
    failed : bool
        Whether the container was not released.
    """

    experiment_id: int
    container_id: str
    subject_id: str
    session_type: str
    cre_line: str
    reporter_line: str
    targeted_structure: str
    depth_um: int
    recording_date: str = ""
    sex: str = ""
    age_days: float | None = None
    failed: bool = False

    @property
    def indicator(self) -> str:
        """Indicator that the reporter line expresses; empty if not known."""
        return parse_indicator(self.reporter_line)

    def metadata(self) -> dict[str, Any]:
        """Return what a recording says of itself, as fields of `RecordingMetadata`."""
        taken = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("experiment_id", "failed")}
        return taken | {"indicator": self.indicator}


@dataclass(frozen=True)
class ExperimentFilter:
    """Which experiments to take; what is not given lets all pass.

    Attributes
    ----------
    cre_line, area, session_type : tuple of str
        Any of these. Session types are A, B, C and C2.
    min_depth_um, max_depth_um : int, optional
        Imaging depths from and to, both included.

    Raises
    ------
    ConfigError
        If one of them is none of the Allen's, or the depths are in the wrong order.

    Examples
    --------
    >>> ExperimentFilter(cre_line=("Sst-IRES-Kre",))
    Traceback (most recent call last):
    poyo_ssl.errors.ConfigError: Cre line 'Sst-IRES-Kre', did you mean 'Sst-IRES-Cre'? (allowed: Cux2-CreERT2, ...
    """

    cre_line: tuple[str, ...] = ()
    area: tuple[str, ...] = ()
    session_type: tuple[str, ...] = ()
    min_depth_um: int | None = None
    max_depth_um: int | None = None

    def __post_init__(self) -> None:
        known = tuple(name.removeprefix(SESSION_PREFIX) for name in SESSION_TYPES)
        given = tuple(name.removeprefix(SESSION_PREFIX) for name in self.session_type)
        for what, values, allowed in (
            ("Cre line", self.cre_line, protocol.CRE_LINES),
            ("area", self.area, AREAS),
            ("session type", given, known),
        ):
            for value in values:
                if value not in allowed:
                    raise ConfigError(
                        f"{what} '{value}'{suggest(value, allowed)}", allowed=", ".join(allowed), fix="correct it"
                    )
        if self.min_depth_um is not None and self.max_depth_um is not None and self.min_depth_um > self.max_depth_um:
            raise ConfigError(
                f"depths from {self.min_depth_um} to {self.max_depth_um} um", fix="give the lesser one as min_depth_um"
            )

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
    """Return the list of experiments of a folder as AllenSDK lays it out, or None; a file is taken as it is.

    Raises
    ------
    RecordingError
        If the folder's manifest is of another layout; `check_manifest` says more.
    """
    if folder.is_file():
        return folder
    if (folder / MANIFEST_FILE).is_file():
        check_manifest(folder / MANIFEST_FILE)
    return next((path for name in (EXPERIMENTS_FILE, CONTAINERS_FILE) if (path := folder / name).is_file()), None)


def check_manifest(path: Path) -> None:
    """Refuse an AllenSDK cache of another layout than that of the Visual Coding experiments.

    Raises
    ------
    RecordingError
        If its manifest is no JSON, has no version, or one other than 1.3; file, record and field are named.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "manifest.json"
    >>> _ = path.write_text('{"manifest": [{"type": "manifest_version", "value": "1.3"}]}')
    >>> check_manifest(path)
    """
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
        raise RecordingError(
            f"{path}: record 'manifest_version' has '{str(version)[:40]}' as 'value'", allowed=MANIFEST_VERSION, fix=fix
        )


def _read_json(path: Path) -> Any:
    try:
        if path.stat().st_size > MAX_LIST_BYTES:
            raise ValueError(f"{path.stat().st_size / 1e9:.1f} GB")
        return json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise RecordingError(f"{path} is not JSON ({error})", fix="download it again") from None


def read_experiments(path: Path) -> list[Experiment]:
    """Return every experiment of ``ophys_experiments.json`` or ``experiment_containers.json``, sorted by id.

    Raises
    ------
    RecordingError
        If it is no list of such records; file, record and field are named.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "ophys_experiments.json"
    >>> _ = path.write_text('[{"id": 501574836}]')
    >>> read_experiments(path)
    Traceback (most recent call last):
    poyo_ssl.errors.RecordingError: ...ophys_experiments.json: record 501574836 has no 'specimen'; ...
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
    donor = _field(_field(record, "specimen", Mapping, path, record), "donor", Mapping, path, record)
    lines = _field(donor, "transgenic_lines", list, path, record)
    drivers = [name for name in _names(lines, "driver") if "Cre" in name]
    container = record.get("experiment_container")
    date, birth = (str(text or "")[:10] for text in (record.get("date_of_acquisition"), donor.get("date_of_birth")))
    area = _field(record, "targeted_structure", Mapping, path, record)
    return Experiment(
        experiment_id=_field(record, "id", int, path, record),
        container_id=str(_field(record, "experiment_container_id", int, path, record)),
        subject_id=str(_field(donor, "external_donor_name", str, path, record)),
        session_type=str(record.get("stimulus_name") or ""),
        # A second driver (Camk2a-tTA) only passes the first one on.
        cre_line=drivers[0] if drivers else UNKNOWN_LINE,
        reporter_line=next(iter(_names(lines, "reporter")), ""),
        targeted_structure=_field(area, "acronym", str, path, record),
        depth_um=_field(record, "imaging_depth", int, path, record),
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
    """Return the released experiments of the Visual Coding sessions that pass a filter and, if given, are among `ids`.

    Examples
    --------
    >>> made = [Experiment(number, "7", "m", "three_session_A", "Sst-IRES-Cre", "", "VISp", 275) for number in (1, 2)]
    >>> [one.experiment_id for one in select_experiments(made, ExperimentFilter(area=("VISp",)), ids=[2, 3])]
    [2]
    """
    among = None if ids is None else set(ids)
    return [
        one
        for one in experiments
        if one.session_type in SESSION_TYPES
        and not one.failed
        and wanted.passes(one)
        and (among is None or one.experiment_id in among)
    ]


def published_experiments() -> tuple[int, ...]:
    """Return the ids of the 433 experiments of the published study.

    Examples
    --------
    >>> len(published_experiments()), 501574836 in published_experiments()
    (433, True)
    """
    text = (files("poyo_ssl") / "sources" / "published_experiments.csv").read_text("utf-8")
    return tuple(int(line) for line in text.split()[1:])


def published_arm(cre_line: str) -> str:
    """Return the arm of the published study that a recording of a Cre line belongs to; empty for an unknown line.

    Examples
    --------
    >>> published_arm("Vip-IRES-Cre"), published_arm("Cux2-CreERT2"), published_arm("unknown")
    ('pretraining', 'fine-tuning', '')
    """
    line = parse_cre_line(cre_line)
    if line == UNKNOWN_LINE:
        return ""
    return PRETRAINING if line in protocol.PUBLISHED_PREDICTABLE_LINES else FINETUNING


ADDRESS = "https://allen-brain-observatory.s3.us-west-2.amazonaws.com/visual-coding-2p"
"""The Allen Institute's public bucket ``allen-brain-observatory`` in the region ``us-west-2``."""

MAX_ID_DIGITS = 12


@dataclass(frozen=True)
class Fetched:
    """What became of one file.

    Attributes
    ----------
    experiment_id : int
        Of the experiment.
    path : Path
        Where it is, or would be.
    error : str
        Why it is not there; empty if it is.
    """

    experiment_id: int
    path: Path
    error: str = ""


def experiment_path(folder: Path, experiment_id: int) -> Path:
    """Return where the file of an experiment belongs.

    Examples
    --------
    >>> experiment_path(Path("cache"), 501574836).as_posix()
    'cache/ophys_experiment_data/501574836.nwb'
    """
    number = int(experiment_id)
    # Only digits make a name or an address, so that no list of ids can lead out of the folder.
    if number < 0 or len(str(number)) > MAX_ID_DIGITS:
        raise RecordingError(f"experiment id {number}", allowed=f"up to {MAX_ID_DIGITS} digits", fix="correct the list")
    return folder / DATA_FOLDER / f"{number}.nwb"


def download_list(folder: Path, address: str = ADDRESS, **settings: Any) -> Path:
    """Fetch the list of all experiments, unless it is there.

    Parameters
    ----------
    folder : path
        Folder to write to; made if it is not there.
    address : str
        Of the folder ``visual-coding-2p``, or of a mirror of it.
    **settings
        As for `poyo_ssl.sources.download.download`.

    Raises
    ------
    RecordingError, ConfigError, ResourceError
        As `download`.
    """
    url = f"{check_address(address)}/{EXPERIMENTS_FILE}"
    return download(url, folder / EXPERIMENTS_FILE, check=_check_list, **settings)


def download_experiments(
    ids: Sequence[int],
    folder: Path,
    address: str = ADDRESS,
    *,
    progress: Callable[[int, int, int], None] | None = None,
    done: Callable[[Fetched], None] | None = None,
    **settings: Any,
) -> list[Fetched]:
    """Fetch the files of experiments, one after the other; those that are there are left alone.

    A file that the server does not have, or does not send whole, does not stop the others.

    Parameters
    ----------
    ids : sequence of int
        Experiments.
    folder : path
        Files go to its ``ophys_experiment_data``.
    address : str
        Of the folder ``visual-coding-2p``, or of a mirror of it.
    progress : callable, optional
        Called with experiment, bytes that are there, and size.
    done : callable, optional
        Called after every file.
    **settings
        As for `poyo_ssl.sources.download.download`.

    Raises
    ------
    ConfigError
        If no server answers.
    ResourceError
        If the disk is too small.
    """
    address = check_address(address)
    fetched = []
    for number in ids:
        path = experiment_path(folder, number)

        def show(there: int, size: int, number: int = number) -> None:
            if progress:
                progress(number, there, size)

        try:
            download(f"{address}/{DATA_FOLDER}/{path.name}", path, check=_check_hdf5, progress=show, **settings)
            result = Fetched(number, path)
        except RecordingError as error:
            result = Fetched(number, path, str(error))
        fetched.append(result)
        if done:
            done(result)
    return fetched


def _check_list(path: Path) -> None:
    """Read a list of experiments."""
    read_experiments(path)


def _check_hdf5(path: Path) -> None:
    """Open a file: HDF5 compares its size with its header, which tells a file that was cut short at its source."""
    with open_hdf5(path):
        pass

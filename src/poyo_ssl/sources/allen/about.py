"""Who was recorded, where and how: the metadata texts of an Allen NWB 1 file."""

from __future__ import annotations

import re
from datetime import datetime

import h5py

from poyo_ssl import protocol
from poyo_ssl.data.recording import RecordingMetadata
from poyo_ssl.sources.hdf5 import get_dataset, read_text, read_texts

UNKNOWN_LINE = "unknown"
LINE_ALIASES = {"Rbp4-Cre": "Rbp4-Cre_KL100"}
"""Two mice's genotypes leave out the end of the line's name."""

DISPUTED_SEX = ("232269", "232270", "243303", "252106")
"""Mice whose sex in the files is not that of the Allen's database."""

NEWEST_PIPELINE = 3.0
FIRST_PIPELINE = "0.9"
"""Files that do not name the version of their processing are of this one."""

SESSION_TYPES = ("three_session_A", "three_session_B", "three_session_C", "three_session_C2")


def parse_cre_line(genotype: str) -> str:
    """Return the Allen's name of the driver line in a genotype, or ``unknown`` outside the 13 lines.

    Examples
    --------
    >>> parse_cre_line("Cux2-CreERT2/wt;Camk2a-tTA/wt;Ai93(TITL-GCaMP6f)/wt")
    'Cux2-CreERT2'
    >>> parse_cre_line("Rbp4-Cre; Camk2a-tTA; Ai93"), parse_cre_line("Emx1-IRES-Cre"), parse_cre_line("wt/wt")
    ('Rbp4-Cre_KL100', 'Emx1-IRES-Cre', 'unknown')
    """
    line = genotype.split(";")[0].split("/")[0].strip()
    line = LINE_ALIASES.get(line, line)
    return line if line in protocol.CRE_LINES else UNKNOWN_LINE


def parse_reporter(genotype: str) -> str:
    """Return the reporter line, the part of a genotype that begins with ``Ai``; empty if there is none.

    Examples
    --------
    >>> parse_reporter("Vip-IRES-Cre/wt;Ai148(TIT2L-GC6f-ICL-tTA2)/wt")
    'Ai148(TIT2L-GC6f-ICL-tTA2)'
    """
    parts = [part.split("/")[0].strip() for part in genotype.split(";")]
    return next((part for part in parts if re.match(r"Ai\d", part)), "")


def parse_indicator(reporter: str) -> str:
    """Return the indicator that a reporter line expresses; empty if its name does not say.

    Examples
    --------
    >>> parse_indicator("Ai93(TITL-GCaMP6f)"), parse_indicator("Ai162(TIT2L-GC6s-ICL-tTA2)"), parse_indicator("Ai14")
    ('GCaMP6f', 'GCaMP6s', '')
    """
    found = re.search(r"GC(?:aMP)?6([fs])", reporter)
    return f"GCaMP6{found[1]}" if found else ""


def parse_donor(specimen_name: str) -> str:
    """Return the six digits of the mouse in a specimen's name, which is free text; empty if there are none.

    Examples
    --------
    >>> parse_donor("Cux2-CreERT2;Camk2a-tTA;Ai93-308148"), parse_donor("Emx1-IRES-Cre;Ai93(CAM)-356790.0")
    ('308148', '356790')
    """
    found = re.findall(r"(?<!\d)\d{6}(?!\d)", specimen_name)
    return found[-1] if found else ""


def parse_date(text: str) -> str:
    """Return ``YYYY-MM-DD HH:MM:SS`` of a date as C's ``asctime`` or ISO 8601 writes it; empty for anything else.

    Examples
    --------
    >>> parse_date("Wed May 31 10:29:38 2017"), parse_date("2016-07-06T18:27:05"), parse_date("soon")
    ('2017-05-31 10:29:38', '2016-07-06 18:27:05', '')
    """
    for parse in (lambda value: datetime.strptime(value, "%a %b %d %H:%M:%S %Y"), datetime.fromisoformat):
        try:
            return parse(" ".join(text.split())).strftime("%Y-%m-%d %H:%M:%S")
        except ValueError:
            continue
    return ""


def read_version(file: h5py.File, warnings: list[str]) -> str:
    """Return the version of the Allen's processing pipeline that made the file."""
    dataset = get_dataset(file, "general/generated_by")
    texts = read_texts(dataset) if dataset is not None else []
    version = texts[-1] if texts else FIRST_PIPELINE
    if not re.fullmatch(r"\d+(\.\d+)?", version):
        warnings.append(f"pipeline version '{version[:40]}' is not a number; read as 3.0")
    elif float(version) > NEWEST_PIPELINE:
        warnings.append(f"pipeline version {version} is newer than 3.0, the newest known; check what comes out")
    return version


def read_metadata(file: h5py.File, warnings: list[str]) -> RecordingMetadata:
    """Return the metadata of an open file; what cannot be understood is left empty, with a warning.

    Examples
    --------
    >>> with h5py.File.in_memory() as file:
    ...     file["general/subject/genotype"] = b"Sst-IRES-Cre/wt;Ai148(TIT2L-GC6f-ICL-tTA2)/wt"
    ...     file["general/specimen_name"] = b"Sst-IRES-Cre;Ai148-308148"
    ...     about = read_metadata(file, warnings := [])
    >>> about.cre_line, about.subject_id, about.depth_um, len(warnings)
    ('Sst-IRES-Cre', '308148', None, 5)
    """
    plane = "general/optophysiology/imaging_plane_1"
    genotype = read_text(file, "general/subject/genotype")
    reporter = parse_reporter(genotype)
    cre_line = parse_cre_line(genotype)
    if cre_line == UNKNOWN_LINE:
        warnings.append(f"unknown line: genotype '{genotype}' is none of the Allen's 13 driver lines")
    donor = _read_donor(file, warnings)
    sex = read_text(file, "general/subject/sex")
    if donor in DISPUTED_SEX:
        warnings.append(f"sex '{sex}' of mouse {donor} is not what the Allen's database says")
    session_type = read_text(file, "general/session_type")
    if session_type not in SESSION_TYPES:
        warnings.append(f"unknown session type '{session_type}': stimuli and blocks are taken as they are found")
    date = read_text(file, "session_start_time")
    if not parse_date(date):
        warnings.append(f"session_start_time '{date}' is not a date; left empty")
    age = _read_number(file, "general/subject/age", r"(\d+) days?", "days", warnings)
    version = read_version(file, warnings)
    institution = read_text(file, "general/institution") or "unknown institution"
    return RecordingMetadata(
        subject_id=donor,
        container_id=read_text(file, "general/experiment_container_id"),
        cre_line=cre_line,
        reporter_line=reporter,
        indicator=_read_indicator(file, plane, reporter, warnings),
        sex=sex,
        age_days=None if age is None else float(age),
        session_type=session_type,
        targeted_structure=_read_area(file, plane, warnings),
        depth_um=_read_number(file, f"{plane}/imaging depth", r"(\d+)\b.*", "micrometres", warnings),
        recording_date=parse_date(date),
        device_id=_read_rig(file, warnings),
        description=read_text(file, "session_description"),
        origin=f"Allen NWB 1 file, pipeline {version}, {institution}",
    )


def _read_donor(file: h5py.File, warnings: list[str]) -> str:
    specimen = read_text(file, "general/specimen_name")
    donor = parse_donor(specimen)
    if donor:
        return donor
    subject = read_text(file, "general/subject/subject_id") or "unknown"
    warnings.append(f"specimen name '{specimen}' has no six-digit mouse; subject_id '{subject}' is taken as the animal")
    return subject


def _read_indicator(file: h5py.File, plane: str, reporter: str, warnings: list[str]) -> str:
    """Return the indicator; the reporter line knows better than the text, which has been GCaMP6f throughout."""
    text = read_text(file, f"{plane}/indicator")
    indicator = parse_indicator(reporter)
    if not indicator:
        return text
    if text and text != indicator:
        warnings.append(f"indicator '{text}' contradicts reporter {reporter}; taken as {indicator}")
    return indicator


def _read_area(file: h5py.File, plane: str, warnings: list[str]) -> str:
    location = read_text(file, f"{plane}/location")
    target = read_text(file, "general/targeted_structure")
    if location and target and location != target:
        warnings.append(f"targeted structure '{target}' but imaging plane in '{location}'; the plane's is taken")
    return location or target


def _read_number(file: h5py.File, name: str, pattern: str, unit: str, warnings: list[str]) -> int | None:
    text = read_text(file, name)
    found = re.fullmatch(pattern, text.strip())
    if found and len(found[1]) <= 6:
        return int(found[1])
    warnings.append(f"{name} '{text}' is no number of {unit}; left empty")
    return None


def _read_rig(file: h5py.File, warnings: list[str]) -> str:
    """Return the rig of ``<microscope>. <rig> Please ...``, or the whole text."""
    text = read_text(file, "general/devices/2-photon microscope")
    found = re.match(r"[^.]+\. (\S+) Please", text)
    if found:
        return found[1]
    warnings.append(f"device '{text}' does not name a rig; kept as it is")
    return text or "two_photon"

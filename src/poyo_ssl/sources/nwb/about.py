"""Who was recorded, where and how, as an NWB 2 file says it."""

from __future__ import annotations

import re
from typing import Any

from poyo_ssl.sources.allen.about import UNKNOWN_LINE, parse_cre_line, parse_indicator, parse_reporter

SEXES = {"M": "male", "F": "female"}
DAYS = {"D": 1, "W": 7}


def parse_age(text: str) -> float | None:
    """Return the days of an ISO 8601 duration in days or weeks, as NWB wants it; None for anything else.

    Examples
    --------
    >>> parse_age("P93D"), parse_age("P12W"), parse_age("P70D/P80D"), parse_age("adult")
    (93.0, 84.0, None, None)
    """
    found = re.fullmatch(r"P(\d{1,5}(?:\.\d{1,3})?)([DW])", text.strip())
    return float(found[1]) * DAYS[found[2]] if found else None


def read_fields(nwbfile: Any, series: Any, warnings: list[str]) -> dict[str, Any]:
    """Return what the file says of the fields of `RecordingMetadata`; what cannot be understood gets a warning.

    Parameters
    ----------
    nwbfile : pynwb.NWBFile
        The file.
    series : pynwb.ophys.RoiResponseSeries
        Its traces, whose imaging plane is described.
    warnings : list of str
        Is appended to.
    """
    fields: dict[str, Any] = {"description": _text(nwbfile.session_description)}
    if nwbfile.session_start_time is not None:
        fields["recording_date"] = nwbfile.session_start_time.strftime("%Y-%m-%d %H:%M:%S")
    subject = nwbfile.subject
    genotype = _text(subject.genotype) if subject is not None else ""
    fields["cre_line"] = parse_cre_line(genotype)
    fields["reporter_line"] = parse_reporter(genotype)
    if fields["cre_line"] == UNKNOWN_LINE:
        warnings.append(f"unknown line: genotype '{genotype[:80]}' is none of the Allen's 13 driver lines")
    if subject is None:
        warnings.append("the file names no subject")
    else:
        fields |= _read_subject(subject, warnings)
    table = series.rois.table if series.rois is not None else None
    plane = getattr(table, "imaging_plane", None)
    if plane is not None:
        fields["targeted_structure"] = _text(plane.location)
        fields["indicator"] = _text(plane.indicator)
        if plane.device is not None:
            fields["device_id"] = _text(plane.device.name) or "two_photon"
    expressed = parse_indicator(fields["reporter_line"])
    if expressed and fields.get("indicator", expressed) != expressed:
        named = fields["indicator"][:40]
        warnings.append(f"indicator '{named}' contradicts reporter {fields['reporter_line']}; taken as {expressed}")
    if expressed:
        fields["indicator"] = expressed
    return fields


def _read_subject(subject: Any, warnings: list[str]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if _text(subject.subject_id):
        fields["subject_id"] = _text(subject.subject_id)
    age, sex, species = _text(subject.age), _text(subject.sex), _text(subject.species)
    fields["age_days"] = parse_age(age)
    if age and fields["age_days"] is None:
        warnings.append(f"age '{age[:40]}' is no number of days or weeks (P93D); left empty")
    fields["sex"] = SEXES.get(sex, "")
    if species:
        fields["species"] = species.upper().replace(" ", "_")
    return fields


def _text(value: Any) -> str:
    """Return a text without what HDF5 cannot hold in an attribute."""
    return "" if value is None else str(value).replace("\0", "").strip()[:4096]

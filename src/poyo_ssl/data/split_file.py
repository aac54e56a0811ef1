"""The splits of a data folder as a file that people and other programs can read (JSON, seconds).

::

    {"format": "poyo_ssl.splits", "version": 1,
     "settings": {...},                              the SplitConfig
     "window_s": 1.0,                                what the gaps around clips were made for
     "animals": {"train": [...], "test": [...]},
     "recordings": {"<id>": {"subject_id": "...", "stimuli": {"<stimulus>": {
         "parts": {"train": [[start, end], ...], "valid": ..., "test_repeat": ...},
         "unused": {"gap": 40, ...}}}}}}

Intervals are half-open, in seconds on the recording's clock; a presentation belongs to the part that its middle lies
in.
In recordings of animals that only test, ``train`` is the adaptation part.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from poyo_ssl.config import SplitConfig, from_plain
from poyo_ssl.data.intervals import as_intervals
from poyo_ssl.data.recording import Recording
from poyo_ssl.data.splits import Split, draw_test_subjects, standard_splits
from poyo_ssl.errors import SplitError

FORMAT, VERSION = "poyo_ssl.splits", 1


def save_splits(
    recordings: Sequence[Recording], path: Path | str, config: SplitConfig, *, window_s: float = 1.0
) -> dict[str, dict[str, Split]]:
    """Split every stimulus of every recording and write the parts to a file.

    Parameters
    ----------
    recordings : sequence of Recording
        All recordings of a study.
    path : path
        File to write; one that is there is replaced.
    config : SplitConfig
        The splits.
    window_s : float
        Window plus lag of the decoders; clips keep this and three decay times on each side.

    Returns
    -------
    dict
        Split by recording id and stimulus.

    Raises
    ------
    SplitError
        If a recording cannot be split so.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from poyo_ssl.data.recording import RecordingMetadata
    >>> from poyo_ssl.data.stimuli import Presentations
    >>> stamps = np.arange(600) / 30
    >>> start = np.arange(10) * 45
    >>> movie = Presentations.from_frames(
    ...     "natural_movie_one", stamps, start, start + 45, {"frame": np.zeros(10, int), "repeat": np.arange(10)})
    >>> recording = Recording(
    ...     "r", np.zeros((600, 1)), stamps, RecordingMetadata("m"), stimuli={"natural_movie_one": movie})
    >>> path = Path(tempfile.mkdtemp()) / "splits.json"
    >>> _ = save_splits([recording], path, SplitConfig())
    >>> load_splits(path)["r"]["natural_movie_one"].parts["test_repeat"].tolist()
    [[13.5, 15.0]]
    """
    tests = draw_test_subjects([r.metadata.subject_id for r in recordings], config)
    animals = sorted({r.metadata.subject_id for r in recordings})
    found: dict[str, dict[str, Split]] = {}
    contents: dict[str, Any] = {}
    for recording in recordings:
        new = recording.metadata.subject_id in tests
        named = {
            name: split.of_new_animal() if new else split
            for name, split in standard_splits(recording, config, window_s=window_s).items()
        }
        found[recording.recording_id] = named
        contents[recording.recording_id] = {
            "subject_id": recording.metadata.subject_id,
            "stimuli": {name: _plain(split) for name, split in named.items()},
        }
    whole = {
        "format": FORMAT,
        "version": VERSION,
        "settings": asdict(config),
        "window_s": window_s,
        "animals": {"train": [a for a in animals if a not in tests], "test": list(tests)},
        "recordings": contents,
    }
    path = Path(path)
    beside = path.with_name(path.name + ".partial")
    beside.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)
    return found


def _plain(split: Split) -> dict[str, Any]:
    return {"parts": {name: spans.tolist() for name, spans in split.parts.items()}, "unused": dict(split.unused)}


def load_splits(path: Path | str) -> Mapping[str, Mapping[str, Split]]:
    """Read the splits of every recording and stimulus.

    Raises
    ------
    SplitError
        If the file is missing, damaged, or of another format or version.
    """
    whole = _read(Path(path))
    try:
        return {
            recording: {
                stimulus: Split({part: as_intervals(spans) for part, spans in item["parts"].items()}, item["unused"])
                for stimulus, item in entry["stimuli"].items()
            }
            for recording, entry in whole["recordings"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SplitError(f"{path} is damaged ({error!r})", fix="write it again with 'poyo-ssl split'") from None


def load_split_settings(path: Path | str) -> SplitConfig:
    """Read the settings that a file of splits was made with; errors as in `load_splits`."""
    return from_plain(SplitConfig, _read(Path(path)).get("settings", {}))


def load_split_window(path: Path | str) -> float:
    """Read the window plus lag, in seconds, that a file of splits was made for; errors as in `load_splits`."""
    window_s = _read(Path(path)).get("window_s")
    if not isinstance(window_s, (int, float)) or not window_s > 0:
        raise SplitError(f"{path} is damaged (window_s {window_s})", fix="write it again with 'poyo-ssl split'")
    return float(window_s)


def _read(path: Path) -> dict[str, Any]:
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SplitError(f"no splits in {path}", fix="write them with 'poyo-ssl split DATA'") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SplitError(f"{path} is damaged ({error})", fix="write it again with 'poyo-ssl split'") from None
    if not isinstance(whole, dict) or (whole.get("format"), whole.get("version")) != (FORMAT, VERSION):
        raise SplitError(f"{path} holds no splits of version {VERSION}", fix="write it again with 'poyo-ssl split'")
    return whole

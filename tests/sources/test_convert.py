"""The runner: what it writes, that a second run does nothing, and that one bad file or worker costs only itself."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from tests.sources.toy import ToySource, dally

from poyo_ssl.cli import main
from poyo_ssl.data.recording import Recording, RecordingMetadata, open_recordings
from poyo_ssl.data.stimuli import load_movie
from poyo_ssl.errors import ConfigError, RecordingError
from poyo_ssl.sources.base import Notes, check_clock, check_traces, clean_name, name_rows
from poyo_ssl.sources.run import convert, run_in_processes


@pytest.fixture
def inputs(tmp_path):
    """Return a function that writes toy files by name and the folder they are in."""
    folder = tmp_path / "in"
    folder.mkdir()

    def write(**texts):
        for name, text in texts.items():
            (folder / f"{name}.toy").write_text(text)
        return folder

    return write


def statuses(outcomes):
    return {outcome.recording_id: outcome.status for outcome in outcomes}


def stamps(folder):
    return {path.name: path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("workers", [1, 2])
def test_one_bad_file_does_not_stop_the_others(inputs, tmp_path, workers):
    folder = inputs(a="fine", b="bad", c="bug", d="fine warn", e="other movie")
    seen = []
    outcomes = convert(
        ToySource(), folder, tmp_path / "out", workers=workers, progress=lambda one, total: seen.append((one, total))
    )
    assert statuses(outcomes) == {"a": "written", "b": "failed", "c": "failed", "d": "written", "e": "failed"}
    assert sorted(one.recording_id for one, _ in seen) == list("abcde")
    assert {total for _, total in seen} == {5}
    assert outcomes[1].error == "b.toy is bad; mend it"
    assert "c.toy: KeyError: 'surprise'; not foreseen, please report it" in outcomes[2].error
    assert "'natural_movie_one' of this recording (5 x 4 x 6) is not the one in" in outcomes[4].error
    assert outcomes[3].warnings == ("warning of d.toy",)
    assert [r.recording_id for r in open_recordings(tmp_path / "out")] == ["a", "d"]
    assert Recording.open(tmp_path / "out" / "d.h5").warnings == ("warning of d.toy",)
    assert load_movie(tmp_path / "out", "natural_movie_one").shape == (5, 4, 6)
    assert not list(tmp_path.rglob("*.partial"))


def test_a_second_run_does_nothing_until_an_input_or_a_setting_changes(inputs, tmp_path):
    folder, out = inputs(a="fine warn", b="fine"), tmp_path / "out"
    convert(ToySource(), folder, out)
    before = stamps(out)
    again = convert(ToySource(), folder, out)
    assert statuses(again) == {"a": "unchanged", "b": "unchanged"}
    assert again[0].warnings == ("warning of a.toy",)
    assert stamps(out) == before
    moved = folder.rename(tmp_path / "moved")
    assert statuses(convert(ToySource(), moved, out)) == {"a": "unchanged", "b": "unchanged"}
    (moved / "b.toy").write_text("fine and longer")
    assert statuses(convert(ToySource(), moved, out)) == {"a": "unchanged", "b": "written"}
    assert statuses(convert(ToySource(scale=2.0), moved, out)) == {"a": "written", "b": "written"}
    assert statuses(convert(ToySource(scale=2.0), moved, out, overwrite=True)) == {"a": "written", "b": "written"}


def test_a_run_goes_on_where_it_was_stopped(inputs, tmp_path):
    folder, out = inputs(a="fine", b="interrupt", c="fine"), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        convert(ToySource(), folder, out)
    assert {path.name for path in out.rglob("*") if path.is_file()} == {"a.h5", "a.json", "natural_movie_one.npy"}
    # A run that was killed between the recording and the end of its record.
    record = out / "conversion" / "a.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"complete": False}))
    inputs(b="fine")
    assert statuses(convert(ToySource(), folder, out)) == {"a": "written", "b": "written", "c": "written"}
    record.write_text("damaged")
    assert statuses(convert(ToySource(), folder, out))["a"] == "written"


@pytest.mark.parametrize("workers", [1, 2])
def test_many_files_interrupted_and_continued(inputs, tmp_path, workers):
    names = [f"s{number:02d}" for number in range(40)]
    folder = inputs(**dict.fromkeys(names, "fine"))
    inputs(s17="bad", s23="fine warn")
    out, seen = tmp_path / "out", []

    def stop(outcome, total):
        seen.append(outcome)
        if len(seen) == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(ToySource(), folder, out, workers=workers, progress=stop)
    # What is there is whole, and nothing else is.
    assert not list(out.rglob("*.partial"))
    there = {recording.recording_id for recording in open_recordings(out)}
    assert {one.recording_id for one in seen if one.status == "written"} <= there < set(names)
    made = {name: (out / f"{name}.h5").stat().st_mtime_ns for name in there}
    outcomes = convert(ToySource(), folder, out, workers=workers)
    status = statuses(outcomes)
    assert [one.recording_id for one in outcomes] == names
    assert {name for name in names if status[name] == "failed"} == {"s17"}
    kept = {name for name in names if status[name] == "unchanged"}
    # A recording that was written in the moment of the stop, but not yet noted as complete, is made again.
    assert there - kept <= there - {one.recording_id for one in seen}
    assert all((out / f"{name}.h5").stat().st_mtime_ns == made[name] for name in kept)
    whole = stamps(out)
    again = statuses(convert(ToySource(), folder, out, workers=workers))
    assert {name for name, value in again.items() if value == "failed"} == {"s17"}
    assert {value for name, value in again.items() if name != "s17"} == {"unchanged"}
    assert stamps(out) == whole


def test_a_recording_from_elsewhere_is_not_replaced(inputs, tmp_path, make_recording):
    folder, out = inputs(a="fine"), tmp_path / "out"
    make_recording("a").save(out / "a.h5")
    before = (out / "a.h5").read_bytes()
    assert "a.h5 exists" in convert(ToySource(), folder, out)[0].error
    assert (out / "a.h5").read_bytes() == before
    assert statuses(convert(ToySource(), folder, out, overwrite=True)) == {"a": "written"}


def test_two_inputs_of_one_name_do_not_replace_each_other(inputs, tmp_path):
    folder, out = inputs(a="fine"), tmp_path / "out"
    convert(ToySource(), folder, out)
    before = (out / "a.h5").read_bytes()
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.toy").write_text("fine but of another animal")
    outcome = convert(ToySource(), other, out)[0]
    assert outcome.status == "failed"
    assert outcome.error == (
        f"{out / 'a.h5'} was made of {folder / 'a.toy'} (prepare toy), not of {other / 'a.toy'}; "
        "choose another output, or pass --overwrite to replace it"
    )
    assert (out / "a.h5").read_bytes() == before
    assert statuses(convert(ToySource(), folder, out)) == {"a": "unchanged"}
    # The folder was moved, then changed.
    moved = folder.rename(tmp_path / "moved")
    (moved / "a.toy").write_text("fine and longer")
    assert statuses(convert(ToySource(), moved, out)) == {"a": "written"}
    assert statuses(convert(ToySource(), other, out, overwrite=True)) == {"a": "written"}
    record = out / "conversion" / "a.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"source": "arrays"}))
    assert "(prepare arrays), not of" in convert(ToySource(), other, out)[0].error


def test_a_killed_worker_costs_its_own_recording_only(inputs, tmp_path):
    folder = inputs(a="kill", b="fine", c="kill", d="fine", e="fine")
    outcomes = convert(ToySource(), folder, tmp_path / "out", workers=2)
    assert [name for name, status in statuses(outcomes).items() if status == "failed"] == ["a", "c"]
    assert "was killed (SIGKILL), often for want of memory" in outcomes[0].error
    assert [r.recording_id for r in open_recordings(tmp_path / "out")] == ["b", "d", "e"]


def test_a_worker_that_swallows_its_exit_ends_all_the_same_and_says_nothing(capfd):
    answers = run_in_processes(dally, [0.0, 1.5], workers=2)
    assert next(answers) == (0, 0.0, "")
    # The process is in a destructor now, where Python ignores the exit that the signal to end asks for.
    time.sleep(0.5)
    answers.close()
    assert not multiprocessing.active_children()
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_the_same_on_ray(inputs, tmp_path, monkeypatch, ray_works):
    # Ray's processes do not inherit pytest's import path.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["src", str(Path(__file__).parents[2])]))
    folder = inputs(a="fine", b="bad", c="kill", d="fine warn")
    outcomes = convert(ToySource(), folder, tmp_path / "out", workers=2, ray="local")
    assert statuses(outcomes) == {"a": "written", "b": "failed", "c": "failed", "d": "written"}
    assert "its Ray worker was lost (WorkerCrashedError)" in outcomes[2].error
    assert outcomes[3].warnings == ("warning of d.toy",)
    with pytest.raises(ConfigError, match="no Ray cluster at 'nowhere:1'"):
        convert(ToySource(), inputs(e="fine"), tmp_path / "out", ray="nowhere:1")


def test_mistakes(inputs, tmp_path):
    folder = inputs(a="fine")
    with pytest.raises(ConfigError, match="0 workers"):
        convert(ToySource(), folder, tmp_path / "out", workers=0)
    with pytest.raises(RecordingError, match="is a file"):
        convert(ToySource(), folder, folder / "a.toy")
    with pytest.raises(RecordingError, match="nothing at"):
        convert(ToySource(), tmp_path / "nowhere", tmp_path / "out")


@pytest.mark.parametrize(
    "text", ["../x", "/etc/passwd", "a/b", "..", "", "a\x00b", "subject", "x" * 400, "train_domain"]
)
def test_names_stay_in_their_folder_and_out_of_the_layout(text, tmp_path):
    name = clean_name(text)
    assert (tmp_path / name).resolve().parent == tmp_path.resolve()
    assert name not in ("subject", "train_domain")
    assert clean_name(name) == name


def test_words_for_rows_and_for_gaps_of_the_clock():
    assert name_rows([4]) == "row 4"
    assert name_rows(range(20)) == "20 rows (0, 1, 2, 3, 4, 5, 6, 7, ...)"
    check_clock(np.r_[np.arange(30), np.arange(40, 60)] / 30, notes := Notes())
    assert notes == ["the clock has 1 gap, the longest of 0.367 s at 0.967 s"]
    check_clock(1e4 * np.arange(9), notes := Notes())
    assert notes == ["an imaging rate of 0.0001 Hz is unlikely; are timestamps in seconds?"]


def test_traces_are_made_finite_and_every_change_is_said(tmp_path):
    dff = np.random.default_rng(0).normal(size=(9000, 4)).astype(np.float32)
    original = dff.copy()
    dff[100:130] = np.nan
    dff[8999, :] = np.nan
    dff[5000, 1] = np.inf
    dff[:, 3] = np.where(np.isnan(dff[:, 3]), np.nan, 2.0)
    ids = np.array([7, 8, 9, 10])
    recording = Recording(
        "r", dff, np.arange(9000) / 30, RecordingMetadata("m"), cell_specimen_ids=ids, warnings=("w",)
    )
    again = Recording.open(check_traces(recording).save(tmp_path / "r.h5"))
    assert again.cell_specimen_ids.tolist() == [7, 9, 10]
    np.testing.assert_allclose(again.masked_domain, [[100 / 30, 130 / 30], [8999 / 30, 300]])
    np.testing.assert_array_equal(again.dff[130:8999, :2], original[130:8999, [0, 2]])
    assert not again.dff[100:130].any()
    assert again.warnings == (
        "w",
        "dF/F is not finite in row 1 (ROI roi_0001): left out",
        "31 frames without a finite value: masked",
        "dF/F is constant in row 3 (ROI roi_0003)",
    )
    with pytest.raises(RecordingError, match="not finite in any of 2 units"):
        check_traces(Recording("r", np.full((9, 2), np.nan), np.arange(9) / 30, RecordingMetadata("m")))


def test_warnings_do_not_change_files_without_them(tmp_path, make_recording):
    with h5py.File(make_recording("a").save(tmp_path / "a.h5")) as file:
        assert "notes" not in file


@pytest.mark.parametrize("last", [1e8, 1e300])
def test_a_clock_without_end_is_refused(last, tmp_path):
    times = np.r_[np.arange(89) / 30, last]
    dff = np.random.default_rng(0).normal(size=(90, 2))
    with pytest.raises(
        RecordingError, match=r"imaging_clock: timestamps run from 0 to 1e\+(08|300) s .allowed: 2.592e"
    ):
        Recording("r", dff, times, RecordingMetadata("m")).save(tmp_path / "r.h5")
    assert list(tmp_path.iterdir()) == []


COMMAND = """
import signal, sys
from poyo_ssl.cli import main
# A test that runs in the background is started with Ctrl-C switched off.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_a_command_that_is_stopped_leaves_whole_recordings_and_no_traceback(tmp_path, name):
    for number in range(60):
        folder = tmp_path / "in" / f"s{number:02d}"
        folder.mkdir(parents=True)
        np.save(folder / "dff.npy", np.random.default_rng(number).gamma(0.5, 0.3, (3000, 40)).astype(np.float32))
    out = tmp_path / "out"
    arguments = ["prepare", "arrays", str(tmp_path / "in"), str(out), "--rate_hz", "30", "--workers", "2"]
    with subprocess.Popen([sys.executable, "-c", COMMAND, *arguments], stderr=subprocess.PIPE, text=True) as process:
        while len(list(out.glob("*.h5"))) < 5 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(getattr(signal, name))
        said = process.communicate(timeout=60)[1]
    assert "Traceback" not in said
    there = open_recordings(out)
    assert 5 <= len(there) < 60
    assert all(recording.num_frames == 3000 for recording in there)
    assert main(arguments) == 0
    assert len(open_recordings(out)) == 60
    assert not list(out.rglob("*.partial"))

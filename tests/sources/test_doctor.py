"""`poyo-ssl doctor`: recognises every kind of recording, says what is in it, and what looks wrong."""

from dataclasses import replace

import h5py
import numpy as np
import pytest
from allen_samples import write_session
from nwb_samples import write_laboratory
from suite2p_samples import write_plane

from poyo_ssl.cli import main
from poyo_ssl.commands import console
from poyo_ssl.data.recording import Recording, RecordingMetadata
from poyo_ssl.data.stimuli import save_movie
from poyo_ssl.errors import RecordingError
from poyo_ssl.sources.doctor import examine
from poyo_ssl.sources.registry import SOURCES, recognise

MOVIE = "natural_movie_one"


@pytest.fixture
def ask(capsys, monkeypatch):
    """Return a function that runs the command on a path and gives exit code and words."""
    # The width is read when the console is made, which another test may have done.
    monkeypatch.setattr(console(), "width", 200)

    def run(path, workers=1):
        code = main(["doctor", str(path), f"--workers={workers}"])
        return code, " ".join(capsys.readouterr().err.split())

    return run


def write_events(folder):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    np.savez(
        folder / "events.npz",
        cell=rng.integers(0, 12, 800),
        frame=rng.integers(0, 10_000, 800),
        shape=[12, 10_000],
        fps=30.0,
    )
    (folder / "epochs.csv").write_text("stimulus,start_frame,end_frame\nspontaneous,0,9000\n")


def write_arrays(folder):
    folder.mkdir(parents=True)
    np.save(folder / "dff.npy", np.random.default_rng(0).gamma(0.5, 0.3, (9000, 12)))
    np.save(folder / "timestamps.npy", np.arange(9000) / 20)
    (folder / "stimuli.csv").write_text(
        "start,stop,name,orientation\n3,5,drifting_gratings,90\n6,8,drifting_gratings,45\n"
    )


def test_every_source_is_recognised_and_summed_up(tmp_path, ask):
    (tmp_path / "allen").mkdir()
    write_session(tmp_path / "allen", num_units=11)
    write_plane(tmp_path / "mouse7" / "suite2p" / "plane0", iscell=(1,))
    write_events(tmp_path / "events")
    write_arrays(tmp_path / "arrays")
    (tmp_path / "nwb").mkdir()
    write_laboratory(tmp_path / "nwb")
    expected = {
        "nwb": "units",
        "allen": "Cre line Cux2-CreERT2, Ai93(TITL-GCaMP6f), GCaMP6f place VISp, 275 um, three_session_A",
        "mouse7": "imaging 0.9 min, 800 frames at 15.5 Hz, from 0 s units 6",
        "events": "origin real events, simulated fluorescence",
        "arrays": "imaging 7.5 min, 9000 frames at 20 Hz, from 0 s units 12",
    }
    for folder, words in expected.items():
        code, said = ask(tmp_path / folder)
        assert code == 0
        name = "suite2p" if folder == "mouse7" else folder
        assert f"(poyo-ssl prepare {name})" in said
        assert words in said
        for measured in ("skewness", "excess kurtosis", "signal-to-noise ratio", "event rate (Hz)"):
            assert measured in said
    _, said = ask(tmp_path / "allen" / "501574836.nwb")
    assert "natural_movie_one │ 120 │ │ 12 frames, 10 repeats │ 0.1 │ 12 x 4 x 8" in said
    assert "drifting_gratings │ 90 │ 10 │ 8 orientations, 5 temporal frequencies" in said
    assert "11 with a cell specimen id" in said
    assert {kind.name for kind in SOURCES} >= {"allen", "nwb", "brainsets", "suite2p", "events", "arrays"}


def test_what_the_source_says_is_said(tmp_path, ask):
    write_arrays(tmp_path / "one")
    (tmp_path / "one" / "stimuli.csv").unlink()
    code, said = ask(tmp_path / "one")
    assert code == 0
    assert said.count("nothing can be decoded") == 1
    (tmp_path / "one" / "timestamps.npy").unlink()
    code, said = ask(tmp_path / "one")
    assert code == 2
    assert "has no clock" in said
    assert "(settings: poyo-ssl prepare arrays)" in said


def test_a_prepared_recording_without_faults(tmp_path, make_recording, ask):
    recording = make_recording("r", num_units=12, grating_repeats=12)
    save_movie(tmp_path, MOVIE, np.zeros((60, 8, 16), np.uint8))
    path = recording.save(tmp_path / "r.h5")
    before = path.read_bytes()
    code, said = ask(path)
    assert code == 0
    assert "prepared recording (brainsets HDF5)" in said
    assert "nothing suspicious" in said
    assert path.read_bytes() == before
    assert {item.name for item in tmp_path.iterdir()} == {"r.h5", "stimuli"}


def test_files_of_brainsets_before_and_after_they_were_prepared(tmp_path, make_recording, ask):
    source = tmp_path / "theirs"
    path = make_recording("501", num_units=12).save(source / "501.h5")
    with h5py.File(path, "a") as file:
        del file["imaging_clock"]
    assert "(poyo-ssl prepare brainsets)" in ask(source)[1]
    assert main(["prepare", "brainsets", str(source), str(tmp_path / "data"), "--workers", "1"]) == 0
    save_movie(tmp_path / "data", MOVIE, np.zeros((60, 8, 16), np.uint8))
    code, said = ask(tmp_path / "data")
    assert code == 0
    assert "prepared recording (brainsets HDF5)" in said
    assert "60 x 8 x 16" in said


def suspicions(tmp_path, recording):
    return examine(recording.save(tmp_path / "r.h5", overwrite=True), None).suspicions


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda dff: 100 * dff, "99th percentile): percent rather than a ratio?"),
        (lambda dff: 300 + 20 * dff, "fluorescence rather than dF/F?"),
        (lambda dff: (dff - dff.mean(axis=0)) / dff.std(axis=0), "z-scored rather than dF/F?"),
        (
            lambda dff: np.random.default_rng(0).normal(size=dff.shape) / 9,
            "signal-to-noise ratio is 2.3, that of noise",
        ),
        (lambda dff: np.where(np.arange(len(dff))[:, None] % 50 == 0, np.roll(dff, 1, axis=0), dff), "dropped frames?"),
        (lambda dff: dff[:, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 3, 11]], "row 10 copy other units (the first copies row 3)"),
        (lambda dff: dff + 2 * np.sin(np.arange(len(dff)) / 9)[:, None], "units correlate by 0."),
        (lambda dff: dff[:, :4], "only 4 units"),
        (lambda dff: np.where(np.arange(12) == 5, 0.25, dff), "dF/F is constant in row 5"),
    ],
)
def test_traces_that_are_no_dff_are_found(tmp_path, make_recording, spoil, message):
    whole = make_recording("r", num_units=12, grating_repeats=12)
    spoiled = Recording(
        "r", spoil(whole.dff).astype(np.float32), whole.timestamps, whole.metadata, stimuli=whole.stimuli
    )
    assert any(message in line for line in suspicions(tmp_path, spoiled)), suspicions(tmp_path, spoiled)
    assert not any(message in line for line in suspicions(tmp_path, whole))


def changed(recording, name, change):
    tables = dict(recording.stimuli)
    tables[name] = change(tables[name])
    return replace(recording, stimuli=tables)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda r: changed(r, "drifting_gratings", lambda t: t.select(t.columns["orientation_id"] == 3)),
            "drifting_gratings: 1 orientation: nothing to tell apart",
        ),
        (
            lambda r: changed(
                r,
                "drifting_gratings",
                lambda t: t.select((t.columns["repeat"] < 3) | (t.columns["orientation_id"] > 0)),
            ),
            "drifting_gratings: orientations are shown 3 (0 degrees) to 12 times",
        ),
        (
            lambda r: changed(r, MOVIE, lambda t: t.select(np.arange(len(t)) != 130)),
            "natural_movie_one: repeat 2 has 59 frames, the others 60",
        ),
        (
            lambda r: changed(r, MOVIE, lambda t: t.select(t.columns["repeat"] < 4)),
            "natural_movie_one: 4 of the 10 repeats that the published split needs",
        ),
        (lambda r: changed(r, MOVIE, lambda t: t.select(np.zeros(len(t), bool))), "natural_movie_one: is empty"),
        (
            lambda r: changed(r, "drifting_gratings", lambda t: replace(t, end=t.end - 1.0 * (np.arange(len(t)) == 7))),
            "drifting_gratings: row 7 last 1.00 to 1.00 s, the others 2.00 s",
        ),
        (
            lambda r: replace(r, masked_domain=np.array([[5.0, 11.0]])),
            "drifting_gratings: 2 of 96 presentations lie in masked spans",
        ),
        (lambda r: replace(r, metadata=RecordingMetadata("m", cre_line="Sst")), "Cre line 'Sst' is not one of"),
        (lambda r: replace(r, stimuli={}), "no stimuli: nothing can be decoded"),
        (
            lambda r: replace(r, metadata=replace(r.metadata, origin="real events, simulated fluorescence")),
            "not measured: real events, simulated fluorescence",
        ),
        (
            lambda r: replace(r, timestamps=r.timestamps + 9.0 * (np.arange(r.num_frames) > 9000)),
            "the clock has 1 gap",
        ),
    ],
)
def test_stimuli_and_metadata_that_do_not_fit_are_found(tmp_path, make_recording, spoil, message):
    whole = make_recording("r", num_units=12, grating_repeats=12)
    assert any(message in line for line in suspicions(tmp_path, spoil(whole))), suspicions(tmp_path, spoil(whole))
    assert not any(message in line for line in suspicions(tmp_path, whole))


def test_pixels_of_another_movie(tmp_path, make_recording):
    whole = make_recording("r")
    assert f"{MOVIE}: its pixels are not there: frame numbers can be decoded, frames cannot" in suspicions(
        tmp_path, whole
    )
    save_movie(tmp_path, MOVIE, np.zeros((50, 8, 16), np.uint8))
    assert f"{MOVIE}: shows frame 59 of 50: the pixels are of another stimulus" in suspicions(tmp_path, whole)


def test_a_folder_gets_a_row_each_and_names_the_damaged(tmp_path, make_recording, ask):
    make_recording("a").save(tmp_path / "a.h5")
    make_recording("b", seed=1).save(tmp_path / "b.h5")
    code, said = ask(tmp_path)
    assert code == 0
    assert "2 recordings, medians over units. prepared recording (brainsets HDF5)" in said
    make_recording("c").save(tmp_path / "c.h5")
    (tmp_path / "d.h5").write_bytes((tmp_path / "a.h5").read_bytes()[:5000])
    code, said = ask(tmp_path)
    assert code == 2
    assert "c has the traces of a: one recording under two names" in said
    assert "d.h5 is not a complete HDF5 file" in said
    assert said.endswith("poyo-ssl: 1 of 4 recordings could not be read; repair or remove them, see the lines above")


def test_a_folder_of_several_kinds(tmp_path, ask):
    lab = tmp_path / "lab"
    for name in ("allen", "nwb"):
        (lab / name).mkdir(parents=True)
    write_session(lab / "allen")
    write_laboratory(lab / "nwb")
    write_plane(lab / "mouse8" / "suite2p" / "plane0")
    write_arrays(lab / "mouse9")
    write_events(lab / "mouse10")
    (lab / "nwb" / "cut.nwb").write_bytes(b"nothing")
    found = {path.name: kind.name for kind, path in recognise(lab)}
    kinds = {"501574836.nwb": "allen", "mouse7.nwb": "nwb", "suite2p": "suite2p", "mouse9": "arrays"}
    assert found == kinds | {"mouse10": "events", "cut.nwb": "nwb"}
    code, said = ask(lab)
    assert code == 2
    for name in ("allen", "nwb", "suite2p", "arrays", "events"):
        assert f"(poyo-ssl prepare {name})" in said
    assert said.count("cut.nwb") == 1
    # In other processes the same is found.
    assert ask(lab, workers=2) == (code, said)
    assert said.endswith("poyo-ssl: 1 of 6 recordings could not be read; repair or remove them, see the lines above")


def test_paths_that_hold_nothing(tmp_path, ask):
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "cut.nwb").write_bytes(b"\x89HDF\r\n\x1a\n")
    for path, message in (
        (tmp_path / "gone", "nothing at"),
        (tmp_path / "notes.txt", "holds no recording of any kind that is known"),
        (tmp_path / "cut.nwb", "is not a complete HDF5 file"),
    ):
        code, said = ask(path)
        assert code == 2
        assert message in said
        assert said.startswith("poyo-ssl: ")
    with pytest.raises(RecordingError, match="prepared recordings, allen, nwb, brainsets, suite2p"):
        recognise(tmp_path / "notes.txt")

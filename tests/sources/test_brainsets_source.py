"""Files of brainsets: taken as they are, or refused by the name of the group that is wrong."""

import shutil
from dataclasses import replace

import h5py
import numpy as np
import pytest
from tests.sources.brainsets_samples import BEGIN, NUM_FRAMES, RATE_HZ, write_brainset
from tests.sources.changes import drop, put

from poyo_ssl.cli import main
from poyo_ssl.data.recording import Recording
from poyo_ssl.data.splits import load_splits
from poyo_ssl.data.stimuli import load_movie
from poyo_ssl.errors import RecordingError
from poyo_ssl.sources.brainsets import BrainsetsSource
from poyo_ssl.sources.run import convert


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_brainset(tmp_path_factory.mktemp("brainset") / "allen_visual_coding_ophys_2016")


@pytest.fixture
def damaged(original, tmp_path):
    """Return a function that changes a copy of a file and gives its path."""

    def make(change):
        path = shutil.copy(original[1], tmp_path)
        with h5py.File(path, "a") as file:
            change(file)
        return tmp_path / original[1].name

    return make


def test_what_comes_back(original):
    dff, path = original
    recording = BrainsetsSource().read(path)
    np.testing.assert_array_equal(recording.dff, dff)
    np.testing.assert_allclose(recording.timestamps, BEGIN + np.arange(NUM_FRAMES) / RATE_HZ)
    assert recording.metadata.cre_line == "Scnn1a-Tg3-Cre"
    assert recording.stimuli["natural_movie_one"].columns["repeat"].max() == 9
    assert recording.running.values.shape == (400,)
    assert recording.warnings == (
        "no exact timestamps: those of the mean rate are used",
        "no animal: the container, of which an animal may have several, is taken as one",
    )


def test_the_command_links_and_writes_splits(original, tmp_path, capsys):
    folder = tmp_path / "processed" / "allen_visual_coding_ophys_2016"
    folder.mkdir(parents=True)
    path = folder / original[1].name
    shutil.copy(original[1], path)
    (tmp_path / "pixels").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 12), dtype=np.uint8)
    np.save(tmp_path / "pixels" / "natural_movie_one.npy", pixels)
    before = path.read_bytes()
    command = ["prepare", "brainsets", str(tmp_path / "processed"), str(tmp_path / "data"), "--workers", "1"]
    command += ["--pixels", str(tmp_path / "pixels")]
    assert main(command) == 0
    taken = tmp_path / "data" / "501574836.h5"
    assert taken.samefile(path)
    assert path.read_bytes() == before
    splits = load_splits(tmp_path / "data" / "splits.json")["501574836"]
    assert set(splits) == {"drifting_gratings", "natural_movie_one"}
    assert len(splits["drifting_gratings"].parts["test_gratings"])
    np.testing.assert_array_equal(load_movie(tmp_path / "data", "natural_movie_one"), pixels)
    capsys.readouterr()
    assert main(command) == 0
    assert "0 written, 1 unchanged" in " ".join(capsys.readouterr().err.split())
    assert main([*command, "--overwrite", "--how", "copy"]) == 0
    assert not taken.samefile(path)
    assert taken.read_bytes() == before
    assert not list(tmp_path.rglob("*.partial"))


def test_a_data_folder_of_its_own_files(original, tmp_path):
    path = tmp_path / original[1].name
    shutil.copy(original[1], path)
    before = path.read_bytes()
    outcome = convert(BrainsetsSource(), tmp_path, tmp_path, overwrite=True)[0]
    assert (outcome.status, outcome.error) == ("written", "")
    assert path.read_bytes() == before
    assert not list(tmp_path.glob("*.partial"))


def test_files_with_masks_instead_of_domains(tmp_path):
    _, path = write_brainset(tmp_path, masks=True)
    table = BrainsetsSource().read(path).stimuli["drifting_gratings"]
    np.testing.assert_array_equal(table.columns["orientation_id"], np.arange(16) % 4)


def test_what_has_to_be_left_out_is_left_out_on_request_only(damaged, tmp_path):
    def change(file):
        file["calcium_traces/df_over_f"][7, 2] = np.nan

    path = damaged(change)
    outcome = convert(BrainsetsSource(), path, tmp_path / "out")[0]
    assert outcome.status == "failed"
    assert "cannot be taken as it is: dF/F is not finite in row 2 (ROI 554); pass --how rewrite" in outcome.error
    assert not list((tmp_path / "out").glob("*.h5*"))
    outcome = convert(BrainsetsSource(how="rewrite"), path, tmp_path / "out")[0]
    assert outcome.status == "written"
    assert Recording.open(tmp_path / "out" / "501574836.h5").unit_ids.tolist() == ["540", "547", "561", "568"]


def _attribute(name, key, value):
    def change(file):
        if value is None:
            del file[name].attrs[key]
        else:
            file[name].attrs[key] = value

    return change


MALFORMED = {
    "no object": (_attribute("drifting_gratings", "object", None), r"h5: drifting_gratings has no attribute object"),
    "unknown object": (
        _attribute("drifting_gratings", "object", "Spikes"),
        r"drifting_gratings has object 'Spikes' .allowed: Data, ArrayDict, Interval, Reg",
    ),
    "another object": (_attribute("rois", "object", "Interval"), r"rois is an object 'Interval' .allowed: ArrayDict"),
    "root": (_attribute("/", "object", None), "is no object 'Data' but ''"),
    "no traces": (drop("calcium_traces"), r"no group 'calcium_traces' .found: brainset, device, domain"),
    "no dff": (drop("calcium_traces/df_over_f"), r"calcium_traces has no 'df_over_f'"),
    "no rois": (drop("rois"), r"no group 'rois'"),
    "empty domain": (
        lambda f: [put(f"domain/{key}", lambda v: v[:0])(f) for key in ("start", "end")],
        r"h5: domain is empty",
    ),
    "empty domain of traces": (
        lambda f: [put(f"calcium_traces/domain/{key}", lambda v: v[:0])(f) for key in ("start", "end")],
        r"calcium_traces/domain is empty",
    ),
    "rate": (_attribute("calcium_traces", "sampling_rate", np.nan), "sampling_rate is np.float64.nan."),
    "transposed": (put("calcium_traces/df_over_f", np.transpose), r"\(5, 2400\) for a domain of 2400 frames"),
    "frames missing": (put("calcium_traces/df_over_f", lambda v: v[:-3]), r"\(2397, 5\) for a domain of 2400"),
    "a ROI too few": (put("rois/id", lambda v: v[:-1]), r"rois/id has shape \(4,\) for 5 traces"),
    "unsorted": (
        lambda f: [put(f"drifting_gratings/{key}", lambda v: v[::-1])(f) for key in ("start", "end")],
        r"drifting_gratings: row 1 runs from 54 to 56 s .allowed: finite times in their order",
    ),
    "column too short": (
        put("drifting_gratings/orientation", lambda v: v[:-1]),
        r"drifting_gratings/orientation has shape \(15,\) for 16 rows",
    ),
    "column missing": (
        drop("natural_movie_one/frame"),
        r"natural_movie_one has no 'frame' .found: end, repeat, start",
    ),
    "column of texts": (
        put("drifting_gratings/orientation", lambda v: v.astype("S3")),
        r"drifting_gratings/orientation holds \|S3 of shape \(16,\)",
    ),
    "NaN": (put("natural_movie_one/start", lambda v: v * np.nan), r"natural_movie_one: row 0 runs from nan"),
    "outside": (
        lambda f: [put(f"natural_movie_one/{key}", lambda v: v + 60)(f) for key in ("start", "end")],
        r"natural_movie_one: row 0 .125 to 125.5 s. lies outside the recording .allowed: 10 to 90 s",
    ),
    "running": (put("running/timestamps", lambda v: v[::-1]), r"running: timestamp 1 \(89.6 s\) is not after"),
    "another session": (_attribute("session", "id", "7"), r"holds session '7' .* rename it to 7\.h5"),
    "elsewhere": (
        lambda f: f.__setitem__("pupil", h5py.ExternalLink("/dev/zero", "/")),
        "'pupil' is a link to another file",
    ),
    "claims": (
        lambda f: f.create_group("x").create_dataset("y", (1 << 40,), "f8", chunks=(1 << 20,)),
        r"x has no attribute object|claims",
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_files_are_named_by_their_group(case, damaged):
    change, message = MALFORMED[case]
    with pytest.raises(RecordingError, match=message):
        BrainsetsSource().read(damaged(change))


@pytest.mark.parametrize(
    ("name", "warning"),
    [
        ("drifting_gratings", "no table drifting_gratings: drifting_gratings_domain says that it was shown"),
        ("drifting_gratings/temporal_frequency_id", "drifting_gratings has no temporal_frequency_id: what was shown"),
        ("spontaneous_domain", "no spontaneous_domain: when the screen was gray is not known"),
    ],
)
def test_what_is_missing_gets_a_warning(name, warning, damaged, original):
    def remove(file):
        del file[name]

    assert any(text.startswith(warning) for text in BrainsetsSource().read(damaged(remove)).warnings)
    assert not any(text.startswith(warning) for text in BrainsetsSource().read(original[1]).warnings)


def test_a_recording_that_was_prepared_here_gets_no_warning(tmp_path, make_recording):
    made = make_recording("501", num_units=4)
    gratings = made.stimuli["drifting_gratings"]
    gratings.columns["blank_sweep"][3] = True
    spans = np.array([[made.timestamps[0], made.timestamps[-1]]])
    made = replace(made, epochs=dict.fromkeys((*made.stimuli, "spontaneous"), spans))
    assert BrainsetsSource().read(made.save(tmp_path / "501.h5")).warnings == ()


def test_empty_stimuli_get_a_warning(damaged):
    def change(file):
        for key in list(file["natural_movie_one"]):
            put(f"natural_movie_one/{key}", lambda v: v[:0])(file)

    assert "natural_movie_one is empty" in BrainsetsSource().read(damaged(change)).warnings


def test_files_of_another_kind(tmp_path):
    with pytest.raises(RecordingError, match=r"no \*\.h5 in .* or its allen_visual_coding_ophys_2016"):
        BrainsetsSource().find(tmp_path)
    (tmp_path / "x.h5").write_bytes(b"no")
    assert not BrainsetsSource.recognises(tmp_path / "x.h5")
    with pytest.raises(RecordingError, match="is not a complete HDF5 file"):
        BrainsetsSource().read(tmp_path / "x.h5")


def test_torch_brain_reads_what_was_taken(original, tmp_path):
    datasets = pytest.importorskip("torch_brain.datasets")
    convert(BrainsetsSource(), original[1], tmp_path / "study")
    dataset = datasets.AllenVisualCodingOphys2016(root=str(tmp_path), dirname="study")
    data = dataset.get_recording("501574836")
    np.testing.assert_array_equal(data.calcium_traces.df_over_f[:], original[0])
    data.file.close()

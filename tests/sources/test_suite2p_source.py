"""suite2p folders: traces, cells, rate and ratio as suite2p left them; nothing unsafe is unpickled."""

import pickle

import numpy as np
import pytest
from tests.sources.suite2p_samples import NUM_FRAMES, make_traces, write_plane

from poyo_ssl.data.dff import compute_dff
from poyo_ssl.data.recording import Recording
from poyo_ssl.errors import RecordingError
from poyo_ssl.sources.run import convert
from poyo_ssl.sources.suite2p import Suite2pSource, load_pickled
from poyo_ssl.sources.tables import Companions


def expected_dff(rows, ratio, rate_hz, procedure="allen_median", seed=0):
    light, neuropil = (traces.T.astype(float) for traces in make_traces(seed))
    return compute_dff((light - ratio * neuropil)[:, rows].astype(np.float32), procedure, rate_hz=rate_hz)[0]


@pytest.mark.parametrize("old", [True, False])
def test_one_plane_before_and_after_1_0(tmp_path, old):
    plane = write_plane(tmp_path / "mouse7" / "suite2p" / "plane0", old=old)
    outcomes = convert(Suite2pSource(), tmp_path, tmp_path / "out")
    assert [(one.recording_id, one.status, one.error) for one in outcomes] == [("mouse7", "written", "")]
    assert "plane0: 4 of 6 ROIs are called cells; the others are left out" in outcomes[0].warnings
    recording = Recording.open(tmp_path / "out" / "mouse7.h5")
    np.testing.assert_allclose(recording.dff, expected_dff([0, 1, 3, 5], 0.6, 15.5), atol=1e-5)
    np.testing.assert_allclose(recording.timestamps, np.arange(NUM_FRAMES) / 15.5)
    assert recording.unit_ids.tolist() == ["roi_0000", "roi_0001", "roi_0003", "roi_0005"]
    assert recording.roi_masks.dense(2).nonzero()[0].tolist() == [3, 4, 5]
    assert recording.metadata.origin == "suite2p, F - 0.6 Fneu, dF/F by allen_median"
    given = Suite2pSource(
        companions=Companions(rate_hz=20.0), cells="all", dff_procedure="maximin", neuropil_ratio=0.7
    ).read(plane)
    np.testing.assert_allclose(given.dff, expected_dff(range(6), 0.7, 20.0, "maximin"), atol=1e-5)


def test_planes_are_joined_and_combined_ones_trimmed(tmp_path):
    folder = tmp_path / "exp" / "suite2p"
    short = [traces[:, :-1] for traces in make_traces(1)]
    write_plane(folder / "plane0")
    write_plane(folder / "plane1", F=short[0], Fneu=short[1])
    apart = Suite2pSource(companions=Companions(rate_hz=15.5), cells="all").read(folder)
    assert apart.dff.shape == (NUM_FRAMES - 1, 12)
    assert apart.unit_ids[[0, 6]].tolist() == ["plane0_roi_0000", "plane1_roi_0000"]
    assert any("the last 1 frames of all are left out" in text for text in apart.warnings)
    assert any("2 planes on one clock" in text for text in apart.warnings)
    padded = [np.pad(traces, [(0, 0), (0, 1)]) for traces in short]
    both = [np.concatenate(pair) for pair in zip(make_traces(0), padded, strict=True)]
    write_plane(folder / "combined", F=both[0], Fneu=both[1], iscell=(1,))
    combined = Suite2pSource(companions=Companions(rate_hz=15.5)).read(folder)
    np.testing.assert_array_equal(combined.dff, apart.dff)
    assert combined.recording_id == apart.recording_id == "exp"


def test_folders_of_any_name_are_found(tmp_path):
    write_plane(tmp_path / "mouse7" / "suite2p" / "plane0")
    write_plane(tmp_path / "mouse7" / "suite2p" / "plane1")
    write_plane(tmp_path / "mouse8" / "second_try" / "plane0")
    (tmp_path / "mouse9" / "plane0").mkdir(parents=True)
    found = Suite2pSource().find(tmp_path)
    assert found == [tmp_path / "mouse7" / "suite2p", tmp_path / "mouse8" / "second_try"]


def test_names_of_numbers_get_their_parents(tmp_path):
    source = Suite2pSource()
    for path, name in (("mouse_a/2024-05-01/3/suite2p", "mouse_a_2024-05-01_3"), ("exp/suite2p/plane0", "exp")):
        assert source.recording_id(tmp_path / path) == name


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        ("iscell.npy", r"no .*iscell\.npy; add it, or pass --cells all"),
        ("Fneu.npy", r"no file .*Fneu\.npy"),
        ("ops.npy", r"plane0 does not say the imaging rate: no ops\.npy and no settings\.npy; give --rate_hz"),
        ("F.npy", "no suite2p output"),
    ],
)
def test_missing_files_are_named(tmp_path, remove, message):
    plane = write_plane(tmp_path / "x" / "plane0")
    (plane / remove).unlink()
    source = Suite2pSource()
    with pytest.raises(RecordingError, match=message):
        source.read(source.find(tmp_path)[0]) if remove == "F.npy" else source.read(plane)


def test_no_rois(tmp_path):
    folder = tmp_path / "suite2p"
    write_plane(folder / "plane0")
    (folder / "plane0" / "F.npy").unlink()
    with pytest.raises(RecordingError, match="found no ROIs, or was stopped"):
        Suite2pSource().read(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Fneu": make_traces()[1][:5]}, r"F\.npy has shape \(6, 800\), Fneu\.npy \(5, 800\)"),
        ({"iscell": (0,)}, "no ROI is called a cell"),
        ({"iscell": (0.3,)}, "labels other than 0 and 1"),
        ({"F": np.zeros(5), "Fneu": np.zeros(5)}, r"holds float64 of shape \(5,\)"),
    ],
)
def test_inconsistent_files_are_named(tmp_path, change, message):
    with pytest.raises(RecordingError, match=message):
        Suite2pSource().read(write_plane(tmp_path / "x" / "plane0", **change))


def test_iscell_of_another_run(tmp_path):
    plane = write_plane(tmp_path / "x" / "plane0")
    np.save(plane / "iscell.npy", np.ones((5, 2)))
    with pytest.raises(RecordingError, match=r"iscell\.npy has 5 rows, F\.npy 6 ROIs"):
        Suite2pSource().read(plane)


def test_defaults_left_as_they_are_and_transposed_files_get_a_warning(tmp_path):
    warnings = Suite2pSource().read(write_plane(tmp_path / "a" / "plane0", fs=10.0, tau=1.0)).warnings
    assert any(text.startswith("fs is 10 Hz, suite2p's default") for text in warnings)
    assert any(text.startswith("tau is 1 s, suite2p's default") for text in warnings)
    light, neuropil = make_traces()
    turned = write_plane(tmp_path / "b" / "plane0", F=light.T, Fneu=neuropil.T)
    assert any("more ROIs (800) than frames" in text for text in Suite2pSource().read(turned).warnings)
    clocked = write_plane(tmp_path / "c" / "suite2p" / "plane0")
    np.save(tmp_path / "c" / "timestamps.npy", np.arange(NUM_FRAMES) / 30.0)
    recording = Suite2pSource().read(clocked)
    assert "the timestamps have 30 Hz, suite2p was told fs 15.5" in recording.warnings
    np.testing.assert_allclose(recording.dff, expected_dff([0, 1, 3, 5], 0.6, 30.0), atol=1e-5)


class Evil:
    def __reduce__(self):
        return eval, ("__import__('pathlib').Path('/tmp/poyo_was_here').touch()",)


class Huge:
    def __reduce__(self):
        return np.ndarray, ((10**7, 10**7), "f8")


class Structured:
    """An array whose bytes would be taken for pointers."""

    def __reduce__(self):
        return np.dtype, ("V8", False, True), (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [(Evil(), "it would run builtins.eval"), (Huge(), ""), (Structured(), ""), (exec, "it would run builtins.exec")],
)
def test_nothing_is_run_or_allocated_by_a_pickle(tmp_path, content, message, monkeypatch):
    plane = write_plane(tmp_path / "x" / "plane0")
    np.save(plane / "ops.npy", np.array({"fs": 30.0, "evil": content}, dtype=object), allow_pickle=True)
    if not isinstance(content, Huge):
        with pytest.raises(RecordingError, match=f"is not unpickled: .*{message}"):
            load_pickled(plane / "ops.npy")
        with pytest.raises(RecordingError, match=f"does not say the imaging rate: .*ops.npy is not .*{message}"):
            Suite2pSource().read(plane)
    else:
        assert not isinstance(load_pickled(plane / "ops.npy")["evil"], np.ndarray)
    recording = Suite2pSource(companions=Companions(rate_hz=30.0), neuropil_ratio=0.7).read(plane)
    assert recording.num_units == 4


@pytest.mark.parametrize(("content", "reason"), [({"tau": 1.0}, "has no 'fs' above 0"), ([1], "hold a dictionary")])
def test_settings_without_a_rate_say_why(tmp_path, content, reason):
    plane = write_plane(tmp_path / "x" / "plane0", old=False)
    np.save(plane / "settings.npy", np.array(content, dtype=object), allow_pickle=True)
    with pytest.raises(RecordingError, match=f"the imaging rate: .*settings.npy .*{reason}; give --rate_hz"):
        Suite2pSource().read(plane)
    given = Suite2pSource(companions=Companions(rate_hz=30.0)).read(plane)
    assert any("settings.npy" in text for text in given.warnings)
    assert "the neuropil ratio is not known: 0.7 is taken" in given.warnings


def test_ordinary_pickles_come_back(tmp_path):
    content = {
        "fs": np.float32(30),
        "name": "é",
        "list": [1, (2.5, None)],
        "big": np.arange(6, dtype=">i4").reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "text": np.array(["a", "bc"]),
        "objects": np.array([{"x": np.ones(2)}, None], dtype=object),
        "flag": np.bool_(True),
        "path": tmp_path,
    }
    for protocol in (2, 3, 4):
        with (tmp_path / "x.npy").open("wb") as stream:
            np.lib.format.write_array_header_1_0(stream, {"descr": "|O", "fortran_order": False, "shape": ()})
            pickle.dump(np.array(content, dtype=object), stream, protocol=protocol)
        again = load_pickled(tmp_path / "x.npy")
        assert (again["fs"], again["name"], again["list"], again["flag"]) == (30, "é", [1, [2.5, None]], True)
        for key in ("big", "fortran", "text"):
            np.testing.assert_array_equal(again[key], content[key])
        np.testing.assert_array_equal(again["objects"][0]["x"], [1, 1])


def test_references_without_end_do_not_fill_the_memory(tmp_path):
    laughs = ["ha"]
    for _ in range(40):
        laughs = [laughs] * 10
    laughs[0] = np.arange(3)
    with (tmp_path / "x.npy").open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "|O", "fortran_order": False, "shape": ()})
        pickle.dump(np.array({"laughs": laughs}, dtype=object), stream)
    assert len(load_pickled(tmp_path / "x.npy")["laughs"]) == 10

"""NWB 2: DANDI 000728 gives what the NWB 1 file gives, its defects are named; laboratories' files come back."""

import h5py
import numpy as np
import pytest
from tests.sources.allen_samples import draw_templates, make_session, write_session
from tests.sources.nwb_samples import write_dandi, write_laboratory

from poyo_ssl.cli import main
from poyo_ssl.data.dff import compute_dff
from poyo_ssl.data.recording import Recording
from poyo_ssl.data.stimuli import load_movie
from poyo_ssl.errors import ConfigError, RecordingError
from poyo_ssl.sources.allen import AllenSource
from poyo_ssl.sources.nwb import NwbSource, classify, find_stops, parse_age
from poyo_ssl.sources.run import convert
from poyo_ssl.sources.tables import Companions

LOST = "DANDI 000728 keeps neither ROI ids"


def said(recording, text):
    return any(text in line for line in recording.warnings)


def assert_same_table(found, wanted, *, keep=slice(None)):
    np.testing.assert_allclose(found.start, wanted.start[keep], atol=1e-6)
    np.testing.assert_array_equal(found.start_frame, wanted.start_frame[keep])
    # The ends are guessed: the Allen's own tables are as uncertain by one frame.
    assert np.abs(found.end_frame - wanted.end_frame[keep]).max() <= 1
    assert set(found.columns) == set(wanted.columns)
    for key, values in wanted.columns.items():
        np.testing.assert_array_equal(found.columns[key], values[keep], err_msg=key)


@pytest.mark.parametrize("letter", ["A", "B", "C", "C2"])
def test_dandi_gives_what_the_nwb_1_file_gives(letter, tmp_path):
    session = f"three_session_{letter}"
    _, old = write_session(tmp_path / "old", session)
    write_dandi(tmp_path / "new", session, truncated=False)
    outcomes = convert(NwbSource(), tmp_path / "new", tmp_path / "out")
    assert [(one.recording_id, one.status, one.error) for one in outcomes] == [("501574836", "written", "")]
    found, wanted = Recording.open(tmp_path / "out" / "501574836.h5"), AllenSource().read(old)
    np.testing.assert_array_equal(found.dff, wanted.read_dff(0, wanted.num_frames))
    np.testing.assert_array_equal(found.timestamps, wanted.timestamps)
    np.testing.assert_array_equal(found.cell_specimen_ids, wanted.cell_specimen_ids)
    assert found.unit_ids.tolist() == wanted.cell_specimen_ids.astype(str).tolist()
    assert set(found.stimuli) == set(wanted.stimuli)
    for name, table in wanted.stimuli.items():
        keep = table.columns["frame"] > 0 if name == "natural_scenes" else slice(None)
        assert_same_table(found.stimuli[name], table, keep=keep)
    assert set(found.epochs) == set(wanted.epochs)
    for name, spans in wanted.epochs.items():
        np.testing.assert_allclose(found.epochs[name], spans, atol=0.05)
    for name in ("unit", "row", "column"):
        np.testing.assert_array_equal(getattr(found.roi_masks, name), getattr(wanted.roi_masks, name))
    np.testing.assert_array_equal(found.running.values, wanted.running.values)
    np.testing.assert_array_equal(found.pupil.location, wanted.pupil.location)
    np.testing.assert_array_equal(found.pupil.size, wanted.pupil.size)
    same = ["subject_id", "container_id", "cre_line", "reporter_line", "indicator", "sex", "age_days", "species"]
    for key in [*same, "session_type", "targeted_structure", "recording_date"]:
        assert getattr(found.metadata, key) == getattr(wanted.metadata, key), key
    assert found.metadata.depth_um is None
    assert said(found, LOST)
    for name, pixels in draw_templates().items():
        if name in found.epochs:
            np.testing.assert_array_equal(load_movie(tmp_path / "out", name), pixels, err_msg=name)


def test_truncated_gratings_and_lost_blanks_are_left_out_and_named(tmp_path):
    made, path = write_dandi(tmp_path, "three_session_B")
    recording = NwbSource().read(path)
    assert "static_gratings" not in recording.stimuli
    assert said(recording, "static_gratings has 3 rows of some 6000, a known defect of DANDI 000728: left out; the NWB")
    # Their blocks are known from the table of epochs.
    np.testing.assert_allclose(recording.epochs["static_gratings"], made.epochs["static_gratings"])
    lost = int((made.stimuli["natural_scenes"].columns["frame"] <= 0).sum())
    assert said(recording, f"turned blanks into image 0; {lost} presentations of either are left out; the NWB 1 file")
    assert recording.stimuli["natural_scenes"].columns["frame"].min() > 0


def test_no_group_of_intervals(tmp_path):
    made, path = write_dandi(tmp_path, "three_session_A", intervals=False)
    recording = NwbSource().read(path)
    assert said(recording, "no table of epochs, a known defect of some files: blocks are found in the presentations")
    for name, spans in made.epochs.items():
        np.testing.assert_allclose(recording.epochs[name], spans, atol=0.05)


def test_the_reporter_tells_the_indicator(tmp_path):
    _, path = write_dandi(tmp_path, genotype="Pvalb-IRES-Cre/wt;Ai162(TIT2L-GC6s-ICL-tTA2)/wt")
    recording = NwbSource().read(path)
    assert (recording.metadata.cre_line, recording.metadata.indicator) == ("Pvalb-IRES-Cre", "GCaMP6s")
    assert said(recording, "indicator 'GCaMP6f' contradicts reporter Ai162")


def test_raw_halves_are_passed_over_in_folders_and_refused_alone(tmp_path):
    _, path = write_dandi(tmp_path)
    raw = path.with_name(path.name.replace("behavior+image+ophys", "ophys"))
    raw.write_bytes(path.read_bytes())
    with h5py.File(raw, "a") as file:
        for name in ("processing/ophys", "processing/behavior", "intervals", "stimulus/presentation"):
            del file[name]
    assert NwbSource().find(tmp_path) == [path]
    with pytest.raises(RecordingError, match=r"raw half of a session .* give the file that ends in _behavior"):
        NwbSource().read(NwbSource().find(raw)[0])


def test_fluorescence_of_dandi_is_the_demixed_one(tmp_path):
    made, path = write_dandi(tmp_path, dff=False)
    recording = NwbSource().read(path)
    ratios = 0.5 + 0.1 * np.arange(made.num_units)
    light = 500 * (1 + made.dff) + 60 - ratios * 100
    expected, _ = compute_dff(light.astype(np.float32), "allen_median", rate_hz=made.rate_hz)
    np.testing.assert_allclose(recording.dff, expected, atol=2e-4)
    assert said(recording, "dF/F is computed from the demixed fluorescence")
    assert recording.metadata.origin.endswith("dF/F of ophys/Fluorescence/Demixed by allen_median")
    _, path = write_dandi(tmp_path / "raw", dff=False, demixed=False)
    with pytest.raises(RecordingError, match=r"no demixed fluorescence .'Corrected' is the raw .* --series Corr"):
        NwbSource().read(path)
    assert NwbSource(series="Corrected").read(path).dff.shape == made.dff.shape


@pytest.mark.parametrize("masks", [True, False])
def test_a_laboratory_s_file_comes_back(tmp_path, masks):
    dff, times, path = write_laboratory(tmp_path / "in", masks=masks)
    outcomes = convert(NwbSource(), path, tmp_path / "out")
    assert [(one.status, one.error) for one in outcomes] == [("written", "")]
    recording = Recording.open(tmp_path / "out" / "mouse7.h5")
    np.testing.assert_array_equal(recording.dff, dff)
    np.testing.assert_array_equal(recording.timestamps, times)
    assert recording.unit_ids.tolist() == ["3", "5", "8", "13"]
    assert recording.metadata.subject_id == "mouse7"
    assert (recording.metadata.cre_line, recording.metadata.reporter_line) == ("Sst-IRES-Cre", "Ai148(TIT2L-GC6f)")
    table = recording.stimulus("drifting_gratings")
    np.testing.assert_allclose(table.start, 5 + 3 * np.arange(16))
    np.testing.assert_array_equal(table.columns["orientation_id"], np.arange(16) % 8)
    np.testing.assert_allclose(recording.epochs["drifting_gratings"], [[5, 52]])
    rows, columns = recording.roi_masks.dense(1).nonzero()
    wanted = make_session("three_session_A", num_units=4).roi_masks.dense(1).nonzero()
    np.testing.assert_array_equal([rows, columns], wanted)


def test_fluorescence_and_neuropil(tmp_path):
    dff, _, path = write_laboratory(tmp_path, series=("RoiResponseSeries", "Neuropil", "Deconvolved"))
    recording = NwbSource(neuropil_ratio=0.4, dff_procedure="percentile").read(path)
    light = (100 * (1 + dff) - 0.4 * (100 * (1 + dff) + 50)).astype(np.float32)
    expected, _ = compute_dff(light, "percentile", rate_hz=30.0)
    np.testing.assert_allclose(recording.dff, expected, atol=1e-4)
    with pytest.raises(RecordingError, match=r"Neuropil seems to hold neuropil .allowed: dff, fluorescence"):
        NwbSource(series="Neuropil").read(path)


def test_several_series_are_not_guessed_between(tmp_path):
    _, _, path = write_laboratory(tmp_path, series=("plane0_dff", "plane1_dff"))
    with pytest.raises(RecordingError, match=r"several series of dff .allowed: ophys/DfOverF/plane0_dff, .* --series"):
        NwbSource().read(path)
    assert NwbSource(series="plane1_dff").read(path).num_units == 4
    with pytest.raises(RecordingError, match=r"no series ends in 'plane2_dff', did you mean"):
        NwbSource(series="plane2_dff").read(path)


def test_cells_invalid_times_units_and_index_series(tmp_path):
    from pynwb import TimeSeries
    from pynwb.base import Images
    from pynwb.image import GrayscaleImage, IndexSeries

    def change(nwbfile, module, rois):
        rois.table.add_column("iscell", "0 or 1", data=np.array([[1, 0.9], [0, 0.1], [1, 0.8], [1, 0.7]]))
        nwbfile.add_invalid_time_interval(start_time=10.0, stop_time=12.0)
        series = module["DfOverF"]["DfOverF"]
        series.fields["unit"] = "percent"
        speed = TimeSeries(name="speed", data=np.arange(10.0), unit="m/s", starting_time=3.0, rate=1.0)
        nwbfile.create_processing_module("behavior", "b").add(speed)
        pixels = Images(
            name="movie", images=[GrayscaleImage(name=f"i{k}", data=np.full((2, 3), k, np.uint8)) for k in range(12)]
        )
        nwbfile.add_stimulus_template(pixels)
        onset = 53.0 + np.arange(24) / 10
        shown = {"data": np.tile(np.arange(12, dtype=np.uint32), 2), "unit": "N/A", "timestamps": onset}
        nwbfile.add_stimulus(IndexSeries(name="natural_movie_lab", indexed_images=pixels, **shown))

    dff, _, path = write_laboratory(tmp_path / "in", change=change)
    outcome = convert(NwbSource(), path, tmp_path / "out")[0]
    assert outcome.error == ""
    recording = Recording.open(tmp_path / "out" / "mouse7.h5")
    np.testing.assert_allclose(recording.dff, dff[:, [0, 2, 3]] / 100, rtol=1e-6)
    assert recording.unit_ids.tolist() == ["3", "8", "13"]
    assert recording.masked_domain.tolist() == [[10.0, 12.0]]
    assert recording.running.values[:3].tolist() == [0, 100, 200]
    for text in ("3 of 4 ROIs are cells by 'iscell'", "1 invalid times: masked", "is multiplied by 0.01"):
        assert said(recording, text)
    movie = recording.stimulus("natural_movie_lab")
    np.testing.assert_array_equal(movie.columns["repeat"], np.repeat([0, 1], 12))
    np.testing.assert_allclose(movie.end - movie.start, 0.1)
    # In the order of their numbers, not of the alphabet.
    assert load_movie(tmp_path / "out", "natural_movie_lab")[:, 0, 0].tolist() == list(range(12))
    assert NwbSource(cells="all").read(path).num_units == 4
    with pytest.raises(RecordingError, match=r"no table 'trialz' .allowed: trials, invalid_times"):
        NwbSource(tables=("trialz",)).read(path)


def test_companions_overrule_the_file(tmp_path):
    _, _, path = write_laboratory(tmp_path)
    (tmp_path / "stimuli.csv").write_text("start,stop,name,frame\n4,5,natural_scenes,3\n6,7,natural_scenes,4\n")
    (tmp_path / "recording.json").write_text('{"depth_um": 175, "cre_line": "Vip-IRES-Cre"}')
    recording = NwbSource(companions=Companions(rate_hz=20.0)).read(path)
    assert list(recording.stimuli) == ["natural_scenes"]
    assert (recording.metadata.depth_um, recording.metadata.cre_line) == (175, "Vip-IRES-Cre")
    np.testing.assert_allclose(recording.timestamps, np.arange(1800) / 20)
    # With a second recording in the folder, what lies there would be of both: each then needs a folder of its name.
    write_laboratory(tmp_path, name="mouse8.nwb")
    assert list(NwbSource().read(path).stimuli) == ["drifting_gratings"]
    (tmp_path / "mouse7").mkdir()
    (tmp_path / "stimuli.csv").rename(tmp_path / "mouse7" / "stimuli.csv")
    assert list(NwbSource().read(path).stimuli) == ["natural_scenes"]


def test_names_ages_and_stops():
    names = (
        "DfOverF/DfOverF",
        "DfOverF/DfOverFEvents",
        "Fluorescence/Neuropil",
        "Fluorescence/Corrected",
        "dff/traces",
    )
    assert [classify(f"ophys/{name}") for name in names] == ["dff", "events", "neuropil", "fluorescence", "dff"]
    assert [parse_age(text) for text in ("P93D", "P12W", "P70D/P80D", "adult")] == [93.0, 84.0, None, None]
    assert find_stops(np.array([1.0, 1.5, 2.0, 9.0])).tolist() == [1.5, 2.0, 2.5, 9.5]


def test_without_pynwb_the_extra_is_named(tmp_path, monkeypatch):
    import sys

    _, _, path = write_laboratory(tmp_path)
    monkeypatch.setitem(sys.modules, "pynwb", None)
    with pytest.raises(ConfigError, match=r"need pynwb, which is not installed; pip install 'poyo-ssl.nwb.'"):
        NwbSource().read(path)


def test_the_command(tmp_path, capsys):
    _, _, path = write_laboratory(tmp_path / "in", series=("plane0_dff", "plane1_dff"))
    command = ["prepare", "nwb", str(tmp_path / "in"), str(tmp_path / "data"), "--workers", "1"]
    assert main(command) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"poyo-ssl: {path} has several series of dff (allowed: ophys/DfOverF/plane0_dff, ")
    assert not (tmp_path / "data").exists() or not list((tmp_path / "data").glob("*.h5"))
    flags = ["--series", "plane1_dff", "--tables", "[trials]", "--cells", "all"]
    assert main([*command, *flags]) == 0
    assert len(Recording.open(tmp_path / "data" / "mouse7_plane1_dff.h5").stimulus("drifting_gratings")) == 16
    # The other plane stands beside it.
    assert main([*command, "--series", "DfOverF/plane0_dff"]) == 0
    names = sorted(item.name for item in (tmp_path / "data").glob("*.h5"))
    assert names == ["mouse7_plane0_dff.h5", "mouse7_plane1_dff.h5"]

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from poyo_ssl import protocol
from poyo_ssl.data.recording import Recording, RecordingMetadata
from poyo_ssl.errors import ConfigError, SelectionError
from poyo_ssl.selection import Selection, SelectionConfig, figure_selection, fit_selection, plot_selection

NUM_FRAMES = 6000


def make_recording(name, shapes, line="unknown", seed=0):
    """Gamma traces: skewness 2 / sqrt(shape), excess kurtosis 6 / shape."""
    dff = np.random.default_rng(seed).gamma(shapes, size=(NUM_FRAMES, len(shapes))).astype(np.float32)
    return Recording(name, dff, np.arange(NUM_FRAMES) / 30, RecordingMetadata("mouse", cre_line=line))


def thirteen_lines():
    shapes = {line: 0.15 - 0.008 * i for i, line in enumerate(protocol.CRE_LINES)}
    shapes |= dict.fromkeys(protocol.PUBLISHED_PREDICTABLE_LINES, 2.0)
    return [make_recording(f"{i:02d}", [shape] * 20, line, seed=i) for i, (line, shape) in enumerate(shapes.items())]


def fit(recordings, intervals=None, **settings):
    return fit_selection(recordings, intervals=intervals, config=SelectionConfig(**settings))


def test_planted_lines_are_recovered():
    recordings = thirteen_lines()
    selection = fit(recordings)
    chosen = selection.lines.query("num_selected > 0")
    assert set(chosen["cre_line"]) == set(protocol.PUBLISHED_PREDICTABLE_LINES)
    assert (chosen["num_selected"] == 20).all()
    assert selection.thresholds == {"skewness": 3.51, "kurtosis": 22.62}
    for recording in recordings:
        planted = recording.metadata.cre_line in protocol.PUBLISHED_PREDICTABLE_LINES
        assert selection.mask(recording).tolist() == [planted] * 20


def test_planted_neurons_are_recovered_without_labels():
    planted = np.random.default_rng(1).random(60) < 0.4
    recording = make_recording("r", np.where(planted, 3.0, 0.1))
    np.testing.assert_array_equal(fit([recording], level="neuron").mask(recording), planted)
    fraction = fit([recording], level="neuron", keep_fraction=float(planted.mean()))
    np.testing.assert_array_equal(fraction.mask(recording), planted)
    assert fraction.thresholds == {}


def test_keep_fraction_counts_usable_neurons_over_all_recordings():
    recordings = [make_recording("a", [5.0] * 10), make_recording("b", [0.1] * 10)]
    recordings[0].dff[:, :2] = 1.0
    selection = fit(recordings, level="neuron", keep_fraction=0.5)
    assert selection.table["selected"].sum() == 9
    assert selection.mask(recordings[0]).tolist() == [False] * 2 + [True] * 8


def test_thresholds_are_strict():
    recording = make_recording("r", [2.0, 0.2])
    row = fit([recording], level="neuron").table.iloc[0]
    at = {"thresholds": "given", "skewness_threshold": float(row.skewness), "kurtosis_threshold": 1e3}
    with pytest.raises(SelectionError, match="no neuron is predictable"):
        fit([recording], level="neuron", **at)
    at["skewness_threshold"] = np.nextafter(row.skewness, np.inf)
    assert fit([recording], level="neuron", **at).mask(recording).tolist() == [True, False]


def test_knee_thresholds_come_from_line_means():
    recordings = thirteen_lines()
    selection = fit(recordings, thresholds="knee", knee_curve="convex")
    assert selection.thresholds["skewness"] in selection.lines["skewness"].tolist()
    assert selection.thresholds["kurtosis"] in selection.lines["kurtosis"].tolist()
    neurons = fit(recordings, thresholds="knee", knee_curve="convex", level="neuron")
    assert neurons.thresholds == selection.thresholds
    with pytest.raises(SelectionError, match="1 Cre lines are too few"):
        fit(recordings[:1], thresholds="knee")


def test_statistics_come_from_the_intervals_only():
    recording = make_recording("r", [4.0, 4.0])
    recording.dff[3000:] = 100 * np.random.default_rng(2).gamma(0.05, size=(3000, 2))
    first, whole = np.array([[0.0, 100.0]]), None
    assert fit([recording], {"r": first}).mask(recording).all()
    with pytest.raises(SelectionError, match="no line is predictable"):
        fit([recording], whole)
    with pytest.raises(SelectionError, match="no intervals for recording r"):
        fit([recording], {"other": first})


def test_unusable_neurons_are_listed_never_selected():
    recording = make_recording("r", [4.0] * 4)
    recording.dff[10, 1] = np.nan
    recording.dff[:, 2] = 0.0
    selection = fit([recording])
    assert selection.table["status"].tolist() == ["ok", "nan", "constant", "ok"]
    assert selection.mask(recording).tolist() == [True, False, False, True]
    assert selection.usable(recording).tolist() == [True, False, False, True]
    assert selection.lines.loc[0, ["num_neurons", "num_usable", "num_selected"]].tolist() == [4, 2, 2]
    recording.dff[:] = np.nan
    with pytest.raises(SelectionError, match=r"no neuron has a usable trace \(4 nan\)"):
        fit([recording])


def test_a_line_without_usable_neurons_is_kept_in_the_table():
    broken = make_recording("b", [4.0], "Sst-IRES-Cre")
    broken.dff[:] = 1.0
    selection = fit([make_recording("a", [4.0], "Vip-IRES-Cre"), broken])
    assert selection.lines["cre_line"].tolist() == ["Vip-IRES-Cre", "Sst-IRES-Cre"]
    assert np.isnan(selection.lines.loc[1, "skewness"])


def test_round_trip_on_disk(tmp_path):
    recordings = [make_recording("007", [4.0, 4.0]), make_recording("NA", [4.0, 0.02], seed=1)]
    recordings[1].dff[0, 1] = np.nan
    recordings[1] = replace(recordings[1], unit_ids=np.array(["0012", "NA"]))
    selection = fit(recordings, level="neuron")
    again = Selection.load(selection.save(tmp_path / "selection"))
    pd.testing.assert_frame_equal(again.table, selection.table, check_exact=True)
    assert (again.thresholds, again.config) == (selection.thresholds, selection.config)
    np.testing.assert_array_equal(again.mask(recordings[1]), selection.mask(recordings[1]))
    assert sorted(path.name for path in (tmp_path / "selection").iterdir()) == ["selection.csv", "selection.json"]


def test_damaged_and_missing_files(tmp_path):
    with pytest.raises(SelectionError, match=r"no selection\.csv"):
        Selection.load(tmp_path)
    fit([make_recording("r", [4.0])]).save(tmp_path)
    (tmp_path / "selection.json").write_text("{")
    with pytest.raises(SelectionError, match="no complete selection"):
        Selection.load(tmp_path)
    fit([make_recording("r", [4.0])]).save(tmp_path)
    (tmp_path / "selection.csv").write_text("recording_id,unit_id\nr,roi_0000\n")
    with pytest.raises(SelectionError, match="no complete selection"):
        Selection.load(tmp_path)


def test_masks_of_other_recordings_are_refused():
    selection = fit([make_recording("session_1", [4.0, 4.0])])
    with pytest.raises(SelectionError, match="did you mean 'session_1'"):
        selection.mask(make_recording("session_2", [4.0]))
    with pytest.raises(SelectionError, match="other units"):
        selection.mask(make_recording("session_1", [4.0]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"level": "lin"}, "did you mean 'line'"),
        ({"thresholds": "kne"}, "did you mean 'knee'"),
        ({"thresholds": "given", "kurtosis_threshold": 3.0}, "without skewness_threshold"),
        ({"skewness_threshold": 3.0}, "skewness_threshold of 3.0 with thresholds 'published'"),
        ({"keep_fraction": 0.3}, "keep_fraction with level 'line'"),
        ({"level": "neuron", "keep_fraction": 1.5}, "keep_fraction of 1.5"),
        ({"level": "neuron", "keep_fraction": 0.5, "thresholds": "knee"}, "keep_fraction with"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(ConfigError, match=message):
        SelectionConfig(**settings)


def test_progress_is_reported_and_duplicates_refused():
    calls = []
    recordings = [make_recording("a", [4.0]), make_recording("b", [4.0])]
    fit_selection(recordings, intervals=None, config=SelectionConfig(), progress=lambda *done: calls.append(done))
    assert calls == [(1, 2), (2, 2)]
    with pytest.raises(SelectionError, match="different ids"):
        fit([recordings[0], recordings[0]])
    with pytest.raises(SelectionError, match="one or more"):
        fit([])


def test_picture_shows_every_usable_neuron_and_names_every_line(tmp_path):
    selection = fit(thirteen_lines())
    figure = figure_selection(selection)
    drawn = sum(len(points.get_offsets()) for points in figure.axes[0].collections[:2])
    assert drawn == 13 * 20
    names = {text.get_text().split()[0] for text in figure.axes[0].texts}
    assert set(protocol.CRE_LINES) <= names
    heights = sorted(text.xyann[1] for text in figure.axes[0].texts if hasattr(text, "xyann"))
    assert np.diff(heights).min() > 0.045
    path = plot_selection(replace(selection, thresholds={}), tmp_path / "new" / "picture.png")
    assert path.read_bytes()[:4] == b"\x89PNG"

from __future__ import annotations

import numpy as np
import pytest
from report_samples import RECORDINGS, frame_predictions, gratings_predictions, make_movie
from skimage.metrics import structural_similarity
from sklearn.metrics import confusion_matrix

from poyo_ssl.errors import PoyoError
from poyo_ssl.report.figures import (
    figure_confusion,
    figure_frames,
    rank_recordings,
    score_names,
    spread_rows,
    to_png,
)


def test_confusion_shows_the_shares_of_scikit_learn():
    p = gratings_predictions("pretrained", correct=0.5)
    figure = figure_confusion([p, gratings_predictions("from scratch", correct=0.2)])
    shown = figure.axes[0].images[0].get_array()
    np.testing.assert_allclose(shown, confusion_matrix(p.target, p.prediction, normalize="true"))
    assert f"accuracy {(p.target == p.prediction).mean():.3f}, chance 0.125" in figure.axes[0].get_title(loc="left")
    assert to_png(figure).startswith(b"\x89PNG")


def test_confusion_leaves_untested_directions_blank():
    p = gratings_predictions("pretrained", correct=0.5, num_trials=7)  # the eighth direction was never shown
    shown = figure_confusion([p] * 4).axes[0].images[0].get_array()
    assert np.isnan(np.ma.getdata(shown)[7]).all()
    assert np.isfinite(np.ma.getdata(shown)[:7]).all()


def test_ranking_is_by_scikit_image_ssim():
    p = frame_predictions("pretrained", split="repeat", noise=dict(zip(RECORDINGS, (40.0, 10.0, 20.0), strict=True)))
    ranking = rank_recordings(p)
    assert [name for name, _ in ranking] == ["rec_b", "rec_c", "rec_a"]
    own = p.recording_id == "rec_b"
    pairs = zip(p.prediction[own], p.target_frames[p.target[own]], strict=True)
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    expected = np.mean([structural_similarity(a, b, **settings) for a, b in pairs])
    np.testing.assert_allclose(ranking[0][1], expected, rtol=1e-9)


def test_frames_are_spread_evenly_and_differ():
    movie = make_movie()
    p = frame_predictions("pretrained", split="clip", noise={"a": 1.0, "b": 1.0}, movie=movie)
    # 12 frames in 4 equal parts: the middles are 1.5, 4.5, 7.5, 10.5.
    rows = spread_rows(p, "b", 4)
    assert p.frame_number[rows].tolist() == [101, 104, 107, 110]
    assert (p.recording_id[rows] == "b").all()
    assert len(spread_rows(p, "a", 50)) == 12


def test_a_frame_of_several_repeats_is_taken_once():
    p = frame_predictions("pretrained", split="clip", noise={"a": 1.0})
    p.frame_number = np.repeat(np.arange(4), 3)
    p.repeat = np.tile([0, 1, 2], 4)
    rows = spread_rows(p, "a", 8)
    assert p.frame_number[rows].tolist() == [0, 1, 2, 3]
    assert (p.repeat[rows] == 0).all()


def test_strip_shows_truth_and_each_arm_of_the_same_moments():
    noise = {"a": 5.0}
    model = frame_predictions("pretrained", split="repeat", noise=noise)
    mean = frame_predictions("mean frame", split="repeat", noise={"a": 0.0}, blend=0.0)
    lost = np.delete(np.arange(12), 4)  # frame 104 is missing, and the rows are in another order
    for name in ("prediction", "target", "time", "recording_id", "subject_id", "stimulus", "frame_number", "repeat"):
        setattr(mean, name, getattr(mean, name)[lost][::-1])
    figure = figure_frames([model, mean], "a", num_columns=4)
    axes = np.array(figure.axes).reshape(3, 4)
    assert [a.get_title() for a in axes[0]] == ["frame 101", "frame 104", "frame 107", "frame 110"]
    for column, frame in enumerate((1, 4, 7, 10)):
        np.testing.assert_array_equal(axes[0, column].images[0].get_array(), model.target_frames[frame])
        np.testing.assert_array_equal(axes[1, column].images[0].get_array(), model.prediction[frame])
    assert axes[2, 1].get_xlabel() == "not predicted"
    assert not axes[2, 1].images
    # Nothing but the mean frame: no correlation is left once it is subtracted.
    assert axes[2, 0].get_xlabel().endswith("|  0.00")
    assert axes[1, 0].get_xlabel().count("|") == 1


def test_small_frames_have_a_correlation_and_no_ssim():
    movie = make_movie(height=8, width=8)
    p = frame_predictions("pretrained", split="repeat", noise={"a": 5.0}, movie=movie)
    p.mean_frames = {}
    assert score_names([p], "a") == ["correlation"]
    label = figure_frames([p], "a", num_columns=2).axes[2].get_xlabel()
    first = spread_rows(p, "a", 2)[0]
    assert label == f"{np.corrcoef(p.prediction[first].ravel(), movie[p.target[first]].ravel())[0, 1]:.2f}"


def test_names_with_mathematics_and_unknown_letters_are_drawn():
    p = frame_predictions("$\\frac$ 模型", split="repeat", noise={"a": 5.0})
    assert to_png(figure_frames([p], "a"))
    assert to_png(figure_confusion([gratings_predictions("$\\frac$ 模型", correct=0.5)]))


def test_wrong_task_or_recording():
    frames = frame_predictions("pretrained", split="repeat", noise={"a": 5.0})
    with pytest.raises(PoyoError, match="predictions of task 'frames'"):
        figure_confusion([frames])
    with pytest.raises(PoyoError, match="no predictions"):
        figure_confusion([])
    with pytest.raises(PoyoError, match="for recording 'z'"):
        figure_frames([frames], "z")

"""The score table from a predictions file."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poyo_ssl.errors import ConfigError, PoyoError
from poyo_ssl.evaluation import metrics, scores
from poyo_ssl.evaluation.predictions import Predictions
from poyo_ssl.evaluation.scores import TABLE_COLUMNS, headline_score, score_table
from poyo_ssl.evaluation.statistics import estimate_mean

ROWS = ("prediction", "target", "time", "recording_id", "subject_id", "stimulus", "frame_number", "repeat")


def make_frames(seed: int = 0) -> Predictions:
    """Two recordings, two repeats of 60 frames each, rows shuffled."""
    rng = np.random.default_rng(seed)
    movie = rng.integers(0, 256, (60, 16, 20), dtype=np.uint8)
    recording, repeat, number = (a.ravel() for a in np.indices((2, 2, 60)))
    order = rng.permutation(240)
    noisy = np.clip(movie[number] + rng.normal(0, 60, (240, 16, 20)), 0, 255).astype(np.uint8)
    return Predictions(
        task="frames",
        split="repeat",
        arm="x",
        prediction=noisy[order],
        target=number[order],
        time=(repeat * 2.0 + number / 30)[order],
        recording_id=np.array(["a", "b"])[recording][order],
        subject_id=np.array(["m", "n"])[recording][order],
        stimulus=np.full(240, "natural_movie_one"),
        frame_number=number[order],
        repeat=repeat[order],
        target_frames=movie,
        mean_frames=dict.fromkeys("ab", movie.mean(axis=0)),
    )


def value(table: pd.DataFrame, metric: str, **where: object) -> float:
    """Mean of the blocks, each with its targets as weight."""
    rows = table[table["metric"] == metric]
    for column, wanted in where.items():
        rows = rows[rows[column] == wanted]
    assert len(rows)
    return float(np.average(rows["value"], weights=rows["num_targets"]))


def test_every_group_is_scored_once_under_its_resolution() -> None:
    table = score_table(make_frames())
    assert tuple(table.columns) == TABLE_COLUMNS
    assert table["metric"].str.endswith("_16x20").all()
    assert (table["num_targets"] == 60).all()
    assert (table.groupby("metric").size() == 4).all()
    assert table["value"].notna().all()


def test_values_equal_the_metrics_by_hand() -> None:
    p = make_frames()
    table = score_table(p)
    rows = np.flatnonzero((p.recording_id == "b") & (p.repeat == 1))
    rows = rows[np.argsort(p.time[rows])]
    predicted, true = p.prediction[rows], p.target_frames
    where = {"recording_id": "b", "repeat": 1}
    assert value(table, "ssim_16x20", **where) == pytest.approx(metrics.ssim(predicted, true).mean())
    subtracted = predicted - np.rint(true.mean(axis=0)), true - np.rint(true.mean(axis=0))
    expected = np.corrcoef(subtracted[0].reshape(60, -1), subtracted[1].reshape(60, -1))[:60, 60:]
    assert value(table, "spatial_correlation_mean_subtracted_16x20", **where) == pytest.approx(np.diag(expected).mean())
    own = np.concatenate([p.prediction[p.recording_id == "b"], p.target_frames[p.target[p.recording_id == "b"]]])
    centred = predicted - own[:120].mean(axis=0), true - own[120:].mean(axis=0)
    by_hand = np.corrcoef(centred[0].reshape(60, -1), centred[1].reshape(60, -1))[:60, 60:]
    assert value(table, "spatial_correlation_centred_16x20", **where) == pytest.approx(np.diag(by_hand).mean())
    ranks = 1 + (expected > np.diag(expected)[:, None]).sum(axis=1)
    assert value(table, "median_rank_16x20", **where) == np.median(ranks)
    assert value(table, "identification_all_16x20", **where) == pytest.approx((ranks == 1).mean())
    assert value(table, "identification_2way_16x20", **where) == pytest.approx(1 - (ranks - 1).mean() / 59)
    assert value(table, "temporal_correlation_16x20", **where) == pytest.approx(
        metrics.temporal_correlation(predicted, true).mean()
    )


@settings(deadline=None, max_examples=12)
@given(st.integers(1, 60), st.integers(1, 70), st.floats(0.05, 30), st.randoms(use_true_random=False))
def test_every_target_is_scored_exactly_once(count: int, per_pass: int, block_s: float, random: Random) -> None:
    """Whatever the order of rows, the length of passes and of blocks: each target weighs 1 in each metric."""
    p = make_frames()
    rows = np.array(random.sample(range(len(p)), count))
    part = replace(p, **{name: getattr(p, name)[rows] for name in ROWS})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "FRAMES_PER_PASS", per_pass)
        table = score_table(part, block_s=block_s)
    counts = table.groupby("metric")["num_targets"].sum()
    assert (counts[["ssim_16x20", "psnr_db_16x20", "spatial_correlation_16x20"]] == count).all()
    assert counts.max() == count
    expected = metrics.ssim(part.prediction, part.target_frames[part.target])
    assert value(table, "ssim_16x20") == pytest.approx(expected.mean())
    weights = table[table["metric"] == "ssim_16x20"].groupby(["recording_id", "repeat"])["num_targets"].sum()
    pd.testing.assert_series_equal(
        weights, part.targets().groupby(["recording_id", "repeat"]).size(), check_names=False, check_dtype=False
    )


@pytest.mark.parametrize(
    ("split", "mean_frames", "metric"),
    [
        ("repeat", True, "ssim_16x20"),
        ("repeat", False, "ssim_16x20"),
        ("clip", True, "spatial_correlation_centred_16x20"),
        ("clip", False, "spatial_correlation_centred_16x20"),
    ],
)
def test_the_headline_alone_is_that_of_the_table(
    split: str, mean_frames: bool, metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores, "FRAMES_PER_PASS", 17)
    p = make_frames()
    keep = np.flatnonzero((p.recording_id == "a") | (p.frame_number < 20))  # recordings of unequal length
    p = replace(p, split=split, **{name: getattr(p, name)[keep] for name in ROWS})
    p = p if mean_frames else replace(p, mean_frames={})
    expected = estimate_mean(score_table(p), metric, rng=np.random.default_rng(0)).value
    assert headline_score(p) == (metric, pytest.approx(expected))


def test_order_of_rows_does_not_matter() -> None:
    p = make_frames()
    order = np.random.default_rng(1).permutation(len(p))
    shuffled = replace(p, **{name: getattr(p, name)[order] for name in ROWS})
    pd.testing.assert_frame_equal(score_table(p), score_table(shuffled))


def test_the_mean_frame_scores_at_chance() -> None:
    p = make_frames()
    mean = np.rint(p.target_frames.mean(axis=0)).astype(np.uint8)
    table = score_table(replace(p, prediction=np.repeat(mean[None], len(p), axis=0)))
    where = {"recording_id": "a", "repeat": 0}
    assert value(table, "constant_share_mean_subtracted_16x20", **where) == 1
    assert value(table, "spatial_correlation_mean_subtracted_16x20", **where) == 0
    for ways, name in ((2, "2way"), (10, "10way"), (60, "all")):
        assert value(table, f"identification_{name}_16x20", **where) == pytest.approx(1 / ways)
    assert value(table, "median_rank_16x20", **where) == 30.5


def test_what_all_frames_share_earns_nothing_on_unseen_footage() -> None:
    """Grey, the mean of other footage and the mean of this very test: constants correlate, and not once centred."""
    rng = np.random.default_rng(3)
    seen, shown = rng.integers(0, 256, (2, 4, 16, 20))
    p = make_frames()
    p = replace(
        p, split="clip", target_frames=shown.astype(np.uint8), mean_frames=dict.fromkeys("ab", seen.mean(axis=0))
    )
    keep = np.flatnonzero(p.frame_number < 4)[:8]
    p = replace(p, **{name: getattr(p, name)[keep] for name in ROWS})
    grey = np.full((8, 16, 20), 127, np.uint8)
    means = [np.repeat(np.rint(m.mean(axis=0))[None], 8, axis=0).astype(np.uint8) for m in (seen, shown)]
    for constant in (grey, *means):
        table = score_table(replace(p, prediction=constant))
        assert set(table[table["metric"] == "spatial_correlation_centred_16x20"]["value"]) == {0.0}
    # A quarter of the variance of every unseen frame less the mean of four others is that mean.
    table = score_table(replace(p, prediction=grey))
    assert value(table, "spatial_correlation_mean_subtracted_16x20") == pytest.approx(np.sqrt(1 / 5), abs=0.1)
    perfect = score_table(replace(p, prediction=p.target_frames[p.target]))
    assert value(perfect, "spatial_correlation_centred_16x20") == pytest.approx(1)


def test_knowing_which_movie_is_on_earns_nothing_once_centred() -> None:
    """Each movie has a mean of its own, so that slow changes that tell movies apart decode no picture."""
    p = make_frames()
    movie = np.where(p.frame_number < 30, "natural_movie_one", "natural_movie_two")
    means = np.stack([p.target_frames[:30].mean(axis=0), p.target_frames[30:].mean(axis=0)]).round().astype(np.uint8)
    known = replace(p, stimulus=movie, prediction=means[(movie == "natural_movie_two").astype(int)])
    table = score_table(known)
    assert set(table[table["metric"] == "spatial_correlation_centred_16x20"]["value"]) == {0.0}
    assert value(table, "spatial_correlation_mean_subtracted_16x20") > 0.05


def test_without_mean_frames_the_subtracted_metrics_are_absent() -> None:
    table = score_table(replace(make_frames(), mean_frames={}))
    assert set(table["metric"].str.removesuffix("_16x20")) == {
        "ssim",
        "psnr_db",
        "spatial_correlation",
        "spatial_correlation_centred",
        "constant_share",
        "temporal_correlation",
    }


def test_mean_frames_must_fit() -> None:
    p = make_frames()
    with pytest.raises(ConfigError, match="recording b"):
        score_table(replace(p, mean_frames={"a": p.mean_frames["a"]}))
    with pytest.raises(PoyoError, match=r"\(4, 4\)"):
        score_table(replace(p, mean_frames=dict.fromkeys("ab", np.zeros((4, 4)))))


def test_gratings_per_recording() -> None:
    p = Predictions(
        task="gratings",
        split="gratings",
        arm="x",
        prediction=np.array([0.0, 1, 2, 2]),  # floats are fine where they are whole
        target=np.array([0.0, 1, 0, 2]),
        time=np.arange(4.0),
        recording_id=np.array(["a", "a", "a", "b"]),
        subject_id=np.full(4, "m"),
        stimulus=np.full(4, "drifting_gratings"),
        frame_number=np.full(4, -1),
        repeat=np.full(4, -1),
        class_values=np.array([0.0, 90.0, 180.0]),
    )
    table = score_table(p)
    assert value(table, "accuracy", recording_id="a") == pytest.approx(2 / 3)
    assert value(table, "orientation_accuracy", recording_id="a") == 1
    assert value(table, "circular_error_deg", recording_id="a") == 60
    assert value(table, "accuracy", recording_id="b") == 1

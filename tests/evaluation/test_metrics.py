"""Every metric against an independent reference or numbers worked out by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from sklearn.metrics import accuracy_score, mean_absolute_error, roc_auc_score, top_k_accuracy_score
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix
from torchmetrics.functional import pearson_corrcoef
from torchmetrics.functional.image import peak_signal_noise_ratio as torchmetrics_psnr
from torchmetrics.functional.image import structural_similarity_index_measure

from poyo_ssl.errors import ConfigError
from poyo_ssl.evaluation import metrics


@pytest.fixture
def images() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    target = rng.integers(0, 256, size=(70, 24, 40), dtype=np.uint8)  # more than one block
    noise = rng.normal(0, 30, target.shape)
    return np.clip(target + noise, 0, 255).astype(np.uint8), target


def test_ssim_equals_scikit_image(images: tuple[np.ndarray, np.ndarray]) -> None:
    prediction, target = images
    expected = [
        structural_similarity(p, t, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255)
        for p, t in zip(prediction.astype(float), target.astype(float), strict=True)
    ]
    np.testing.assert_allclose(metrics.ssim(prediction, target), expected, atol=1e-12)


def test_ssim_of_the_smallest_frame_and_below() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.uniform(0, 255, (2, 1, 11, 11))
    expected = structural_similarity(
        a[0], b[0], gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
    )
    np.testing.assert_allclose(metrics.ssim(a, b), expected, atol=1e-12)
    with pytest.raises(ConfigError, match="10 x 11 pixels"):
        metrics.ssim(a[:, :10], b[:, :10])


def test_multiscale_ssim_equals_scikit_image_scale_by_scale() -> None:
    rng = np.random.default_rng(8)
    target = rng.uniform(0, 255, (1, 50, 61))
    prediction = np.clip(target + rng.normal(0, 40, target.shape), 0, 255)
    weights = np.array(metrics.MULTISCALE_WEIGHTS) / sum(metrics.MULTISCALE_WEIGHTS)
    expected, x, y = 1.0, prediction[0], target[0]
    c1 = (0.01 * 255) ** 2
    for scale in range(3):
        _, full = structural_similarity(
            x, y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, full=True
        )
        means = [ndimage.gaussian_filter(z, 1.5, truncate=3.5) for z in (x, y)]
        luminance = (2 * means[0] * means[1] + c1) / (means[0] ** 2 + means[1] ** 2 + c1)
        inner = (slice(5, -5), slice(5, -5))
        expected *= (full if scale == 2 else full / luminance)[inner].mean() ** weights[scale]
        x, y = (z[: z.shape[0] // 2 * 2, : z.shape[1] // 2 * 2] for z in (x, y))
        x, y = ((z[::2, ::2] + z[1::2, ::2] + z[::2, 1::2] + z[1::2, 1::2]) / 4 for z in (x, y))
    single, several = metrics.ssim_and_multiscale(prediction, target)
    assert several[0] == pytest.approx(expected, abs=1e-10)
    np.testing.assert_array_equal(single, metrics.ssim(prediction, target))
    with pytest.raises(ConfigError, match="43 x 61"):
        metrics.ssim_and_multiscale(prediction[:, :43], target[:, :43])


def test_ssim_equals_torchmetrics_inside_the_border(images: tuple[np.ndarray, np.ndarray]) -> None:
    tensors = [torch.from_numpy(x.astype(float))[:, None] for x in images]
    _, full = structural_similarity_index_measure(*tensors, sigma=1.5, data_range=255.0, return_full_image=True)
    # It averages over the border too, where it has to invent pixels.
    inside = full[:, 0, 5:-5, 5:-5].mean(dim=(1, 2)).numpy()
    np.testing.assert_allclose(metrics.ssim(*images), inside, atol=1e-12)


def test_psnr_and_correlation_equal_torchmetrics(images: tuple[np.ndarray, np.ndarray]) -> None:
    prediction, target = images
    tensors = [torch.from_numpy(x.astype(float)) for x in (prediction, target)]
    for index in (0, 69):
        own = [x[index] for x in tensors]
        expected = torchmetrics_psnr(*own, data_range=255.0).item()
        assert metrics.psnr(prediction, target)[index] == pytest.approx(expected, abs=1e-4)
        expected = pearson_corrcoef(*(x.flatten() for x in own)).item()
        assert metrics.spatial_correlation(prediction, target)[index] == pytest.approx(expected)


def test_different_shapes_are_refused() -> None:
    for metric in (metrics.ssim, metrics.psnr, metrics.spatial_correlation, metrics.temporal_correlation):
        with pytest.raises(ConfigError, match=r"\(1, 16, 16\).*\(1, 16, 18\)"):
            metric(np.zeros((1, 16, 16)), np.zeros((1, 16, 18)))


def test_psnr_equals_scikit_image_and_is_finite_for_perfect_frames(images: tuple[np.ndarray, np.ndarray]) -> None:
    prediction, target = images
    expected = [peak_signal_noise_ratio(t, p, data_range=255) for p, t in zip(prediction, target, strict=True)]
    np.testing.assert_allclose(metrics.psnr(prediction, target), expected)
    np.testing.assert_allclose(metrics.psnr(target[:1], target[:1]), 10 * math.log10(255**2 * 12))


def test_correlations_equal_scipy(images: tuple[np.ndarray, np.ndarray]) -> None:
    prediction, target = images
    spatial = [stats.pearsonr(p.ravel(), t.ravel())[0] for p, t in zip(prediction, target, strict=True)]
    np.testing.assert_allclose(metrics.spatial_correlation(prediction, target), spatial)
    temporal = metrics.temporal_correlation(prediction, target)
    for row, column in ((0, 0), (23, 39), (7, 11)):
        expected = stats.pearsonr(prediction[:, row, column], target[:, row, column])[0]
        assert temporal[row, column] == pytest.approx(expected)


@pytest.mark.parametrize("value", [0.0, 127.3, 255.0])
def test_constant_images_have_correlation_zero(value: float) -> None:
    target = np.random.default_rng(2).uniform(0, 255, (5, 12, 12))
    constant = np.full((5, 12, 12), value)
    assert (metrics.spatial_correlation(constant, target) == 0).all()
    assert (metrics.temporal_correlation(constant, target) == 0).all()
    assert metrics.constant_frames(constant).all()
    assert not metrics.constant_frames(target).any()


def test_mean_frame_baseline_is_constant_after_subtraction() -> None:
    mean = np.random.default_rng(3).uniform(0, 255, (12, 12))
    left = metrics.subtract_mean_frame(np.rint(mean)[None].astype(np.uint8), mean)
    assert (left == 127.5).all()


@given(st.integers(0, 255), st.integers(0, 255))
def test_mean_subtraction_keeps_the_range(pixel: int, mean: int) -> None:
    left = metrics.subtract_mean_frame(np.full((1, 1, 1), pixel), np.full((1, 1), mean))
    assert 0 <= left.item() <= 255


def test_candidate_similarity_equals_numpy(images: tuple[np.ndarray, np.ndarray]) -> None:
    prediction, target = images
    joint = np.corrcoef(prediction.reshape(70, -1).astype(float), target.reshape(70, -1).astype(float))
    np.testing.assert_allclose(metrics.candidate_similarity(prediction, target), joint[:70, 70:], atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=3, max_size=7), st.data())
def test_identification_equals_enumeration(similarity: list[int], data: st.DataObject) -> None:
    ways = data.draw(st.integers(2, len(similarity)))
    others = similarity[1:]
    wins = []
    for drawn in itertools.combinations(others, ways - 1):
        best = max(drawn)
        ties = sum(d == similarity[0] for d in drawn)
        wins.append(0.0 if best > similarity[0] else 1 / (1 + ties))
    found = metrics.identification(np.array([similarity], dtype=float), np.array([0]), ways)
    assert found[0] == pytest.approx(np.mean(wins))


def test_identification_agrees_with_drawn_candidates() -> None:
    rng = np.random.default_rng(4)
    similarity = rng.normal(size=(1, 900))
    similarity[0, 17] = 2.5
    drawn = rng.permuted(np.tile(np.delete(similarity[0], 17), (20_000, 1)), axis=1)[:, :49]
    expected = (drawn.max(axis=1) < 2.5).mean()
    assert metrics.identification(similarity, np.array([17]), 50)[0] == pytest.approx(expected, abs=0.015)


@pytest.mark.parametrize("ways", [2, 10, 50, 900])
def test_a_constant_prediction_identifies_at_chance(ways: int) -> None:
    chance = metrics.identification(np.zeros((2, 900)), np.array([0, 899]), ways)
    np.testing.assert_allclose(chance, 1 / ways)
    with pytest.raises(ConfigError, match="2 to 900"):
        metrics.identification(np.zeros((2, 900)), np.array([0, 899]), 901)


def test_rank_equals_scipy() -> None:
    similarity = np.random.default_rng(5).integers(0, 5, (30, 12)).astype(float)
    true = np.arange(30) % 12
    expected = stats.rankdata(-similarity, axis=1)[np.arange(30), true]
    np.testing.assert_allclose(metrics.rank_of_truth(similarity, true), expected)


def test_implied_frame_error_averages_ties() -> None:
    similarity = np.array([[0.9, 0.9, 0.1], [0.0, 0.0, 0.0]])
    error, within = metrics.implied_frame_error(
        similarity, np.array([0, 30, 90]), np.array([0, 90]), rate_hz=30.0, tolerance_s=1.0
    )
    np.testing.assert_allclose(error, [0.5, (3 + 2 + 0) / 3])
    np.testing.assert_allclose(within, [1.0, 1 / 3])


def test_frame_number_scores_by_hand() -> None:
    scores = metrics.frame_number_scores(
        np.array([10, 40, 41, 0], dtype=np.uint8),
        np.array([10, 10, 10, 200], dtype=np.uint8),
        rate_hz=30,
        tolerance_s=1,
    )
    np.testing.assert_array_equal(scores["within_1s"], [1, 1, 0, 0])
    np.testing.assert_array_equal(scores["accuracy"], [1, 0, 0, 0])
    np.testing.assert_allclose(scores["absolute_error_s"], [0, 1, 31 / 30, 200 / 30])


def test_gratings_scores_by_hand() -> None:
    scores = metrics.gratings_scores(np.array([0.0, 180, 315, 135, 270]), np.array([0.0, 0, 0, 315, 90]))
    np.testing.assert_array_equal(scores["accuracy"], [1, 0, 0, 0, 0])
    np.testing.assert_array_equal(scores["orientation_accuracy"], [1, 1, 0, 1, 1])
    np.testing.assert_array_equal(scores["circular_error_deg"], [0, 180, 45, 180, 180])


def test_gratings_scores_equal_scikit_learn_and_complex_angles() -> None:
    rng = np.random.default_rng(10)
    predicted, true = rng.integers(0, 8, (2, 400)) * 45.0
    scores = metrics.gratings_scores(predicted, true)
    assert scores["accuracy"].mean() == pytest.approx(accuracy_score(true, predicted))
    assert scores["orientation_accuracy"].mean() == pytest.approx(accuracy_score(true % 180, predicted % 180))
    turn = np.exp(1j * np.deg2rad(predicted)) / np.exp(1j * np.deg2rad(true))
    np.testing.assert_allclose(scores["circular_error_deg"], np.abs(np.rad2deg(np.angle(turn))), atol=1e-9)


def test_frame_number_scores_equal_scikit_learn() -> None:
    predicted, true = np.random.default_rng(11).integers(0, 900, (2, 300))
    true[:50] = predicted[:50]
    scores = metrics.frame_number_scores(predicted, true, rate_hz=30, tolerance_s=1)
    assert scores["absolute_error_s"].mean() == pytest.approx(mean_absolute_error(true, predicted) / 30)
    assert scores["accuracy"].mean() == pytest.approx(accuracy_score(true, predicted))
    # Within one second on either side: |error| of at most 30 frames, counted over all shifts.
    shifts = [accuracy_score(true + shift, predicted) for shift in range(-30, 31)]
    assert scores["within_1s"].mean() == pytest.approx(sum(shifts))


def test_identification_among_all_equals_top_1_of_scikit_learn() -> None:
    similarity = np.random.default_rng(12).normal(size=(40, 25))
    true = np.arange(40) % 25
    expected = top_k_accuracy_score(true, similarity, k=1, labels=range(25))
    assert metrics.identification(similarity, true, 25).mean() == pytest.approx(expected)
    ranks = metrics.rank_of_truth(similarity, true)
    for k in (1, 3, 10):
        assert (ranks <= k).mean() == pytest.approx(top_k_accuracy_score(true, similarity, k=k, labels=range(25)))
    # Two-way identification is the area under the ROC curve of each row, averaged.
    areas = [roc_auc_score(np.arange(25) == t, row) for t, row in zip(true, similarity, strict=True)]
    np.testing.assert_allclose(metrics.identification(similarity, true, 2), areas)


@settings(deadline=None)
@given(st.floats(0, 360), st.floats(0, 360), st.floats(0, 360))
def test_circular_error_does_not_depend_on_where_zero_is(a: float, b: float, turn: float) -> None:
    plain = metrics.gratings_scores(np.array([a]), np.array([b]))["circular_error_deg"]
    turned = metrics.gratings_scores(np.array([a + turn]), np.array([b + turn]))["circular_error_deg"]
    mirrored = metrics.gratings_scores(np.array([b]), np.array([a]))["circular_error_deg"]
    np.testing.assert_allclose(turned, plain, atol=1e-9)
    np.testing.assert_allclose(mirrored, plain, atol=1e-9)
    assert 0 <= plain[0] <= 180


def test_confusion_matrix_equals_scikit_learn() -> None:
    prediction, target = np.random.default_rng(6).integers(0, 8, (2, 300))
    np.testing.assert_array_equal(
        metrics.confusion_matrix(prediction, target, 8),
        sklearn_confusion_matrix(target, prediction, labels=range(8)),
    )


def test_examples_by_hand() -> None:
    assert metrics.subtract_mean_frame(np.full((1, 1, 1), 255), np.zeros((1, 1))).item() == 255
    assert metrics.psnr(np.full((1, 2, 2), 255), np.zeros((1, 2, 2))).tolist() == [0]
    frames = np.array([[[0, 1, 2]], [[5, 5, 5]]])
    np.testing.assert_allclose(metrics.spatial_correlation(frames, np.array([[[4, 2, 0]], [[4, 2, 0]]])), [-1, 0])
    assert metrics.constant_frames(np.array([[[3, 3]], [[3, 4]]])).tolist() == [True, False]
    assert metrics.identification(np.array([[0.5, 0.9, 0.1]]), np.array([0]), 2).tolist() == [0.5]
    assert metrics.rank_of_truth(np.array([[0.5, 0.9, 0.5]]), np.array([0])).tolist() == [2.5]


def test_metrics_and_numbers_as_text() -> None:
    found = metrics.describe_metric("identification_50way_64x128")
    assert (found.label, found.resolution, found.better) == ("right frame among 50", "64 x 128 px", "higher")
    assert metrics.describe_metric("brightness_x").label == "brightness x"
    names = ["ssim_64x128", "spatial_correlation_centred_64x128"]
    assert [metrics.headline_metric("frames", split, names) for split in ("repeat", "clip")] == names
    numbers = (0.59349, 21.5, 123.45, -0.0001, float("nan"))
    assert [metrics.format_number(x) for x in numbers] == ["0.593", "21.50", "123.5", "0.000", "-"]
    assert [metrics.format_p(p) for p in (0.0312, 0.00004, float("nan"))] == ["0.031", "< 0.001", "-"]

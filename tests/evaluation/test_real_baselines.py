"""The baselines on real recordings reach the reference figures that come with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_baselines import fit_by

from poyo_ssl.evaluation.baselines import frame_number_baselines, gratings_baselines
from poyo_ssl.evaluation.features import bin_features

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "real"
pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not REAL.is_dir(), reason="../shared/data/real is not beside the checkout"),
]


@pytest.mark.slow
def test_movie_frame_numbers_from_real_events() -> None:
    """Natural movie one of 501574836, repeats 0-5 train, 6 validates, 7 tests; chance is 0.07.

    Reference with settings chosen on the test repeat: kNN 0.77, naive Bayes 0.74 (README of the data).
    """
    with np.load(REAL / "allen_501574836" / "events.npz", allow_pickle=False) as file:
        events = np.zeros(tuple(file["shape"])[::-1], dtype=np.float32)
        np.add.at(events, (file["frame"], file["cell"]), 1)
    numbers = np.arange(900)

    def part(*repeats: int) -> tuple[np.ndarray, np.ndarray]:
        shown = np.concatenate([38752 + (r + numbers / 900) * 905.1 for r in repeats]).astype(int)
        windows = [events[last - 29 : last + 1] for last in shown]
        return bin_features(np.stack(windows), 3), np.tile(numbers, len(repeats))

    train, valid, (x_test, y_test) = part(*range(6)), part(6), part(7)
    within = {
        b.name: float((np.abs(fit_by(b, *train, *valid).predict(x_test) - y_test) <= 30).mean())
        for b in frame_number_baselines(num_frames=900, tolerance=30)
    }
    assert within["knn"] > 0.70
    assert within["naive_bayes"] > 0.74
    assert within["shrunk_lda"] > 0.80
    assert within["cosine_lda"] > 0.80


def test_gratings_of_73_cells() -> None:
    """Twelve directions, leave one repeat out, chance 0.083; reference for shrunk LDA 0.68."""
    with np.load(REAL / "v1_gratings_73cells" / "v1_gratings_73cells.npz", allow_pickle=False) as file:
        dff, on, off = file["dff"], file["stim_on_frame"], file["stim_off_frame"]
        repeat, direction = file["repeat"], np.unique(file["direction_deg"], return_inverse=True)[1]
    length = int((off - on).min())
    x = bin_features(np.stack([dff[:, start : start + length].T for start in on]), 1)
    correct: dict[str, list[float]] = {}
    for held_out in range(6):
        test, valid = repeat == held_out, repeat == (held_out + 1) % 6
        train = ~(test | valid)
        for b in gratings_baselines(num_classes=12):
            found = fit_by(b, x[train], direction[train], x[valid], direction[valid]).predict(x[test])
            correct.setdefault(b.name, []).append(float((found == direction[test]).mean()))
    accuracy = {name: np.mean(values) for name, values in correct.items()}
    assert accuracy["shrunk_lda"] > 0.5
    assert accuracy["majority"] < 0.2

"""Evaluation of predictions files: rows, the best baseline, what is written, and files that do not fit each other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from poyo_ssl.errors import PoyoError
from poyo_ssl.evaluation.baselines import frame_baselines, frame_number_baselines, gratings_baselines
from poyo_ssl.evaluation.leaderboard import (
    CHANCE,
    SIMPLEST_FIRST,
    BestBaseline,
    Candidate,
    Row,
    ScoredFile,
    best_baseline,
    evaluate_files,
    free_path,
    gather_arms,
    read_results,
    summarise,
)
from poyo_ssl.evaluation.predictions import Predictions
from poyo_ssl.evaluation.statistics import t_interval

ANIMALS, TRIALS = 4, 16


def decode(name: str, hits: Any, **changes: Any) -> Predictions:
    """Four animals of 16 trials of two directions, of which the first `hits[animal]` are right."""
    total = ANIMALS * TRIALS
    target = np.arange(total) % 2
    right = np.concatenate([np.arange(TRIALS) < count for count in np.broadcast_to(hits, ANIMALS)])
    animal = np.repeat([f"m{i}" for i in range(ANIMALS)], TRIALS)
    facts: dict[str, Any] = {
        "task": "gratings",
        "split": "gratings",
        "arm": name,
        "prediction": np.where(right, target, 1 - target),
        "target": target,
        "time": np.tile(np.arange(TRIALS) * 0.5, ANIMALS),
        "recording_id": np.char.add(animal, "-1"),
        "subject_id": animal,
        "stimulus": np.full(total, "drifting_gratings"),
        "frame_number": np.full(total, -1),
        "repeat": np.full(total, -1),
        "class_values": np.array([0.0, 90.0]),
    }
    return Predictions(**(facts | changes))


def valid(score: float, metric: str = "accuracy") -> dict[str, Any]:
    return {"validation_metric": metric, "validation_score": score}


def rows_of(*files: Predictions, **options: Any) -> dict[tuple[str, str], dict[str, Any]]:
    scores = summarise([ScoredFile.of(p) for p in files], rng=np.random.default_rng(0), **options)
    return {
        (row.arm, f"{row.metric} minus {row.minus}" if row.minus else row.metric): row.to_json() for row in scores.rows
    }


def plain(rows: list[Row]) -> list[dict[str, Any]]:
    return [row.to_json() for row in rows]


OURS = decode("ours", [16, 15, 14, 15])
LDA = decode("lda", [12, 12, 11, 13], kind="baseline", **valid(0.6))
BAYES = decode("bayes", [10, 11, 10, 9], kind="baseline", **valid(0.7))
SHUFFLED = decode("shuffled", [8, 7, 8, 9], kind="control", **valid(0.99))


def test_rows_are_hand_computed_means_and_paired_differences() -> None:
    rows = rows_of(OURS, LDA, BAYES)
    ours, lda = np.array([16, 15, 14, 15]) / 16, np.array([12, 12, 11, 13]) / 16
    score, gain = rows["ours", "accuracy"], rows["ours", "accuracy minus lda"]
    expected = t_interval(ours)
    assert [score[k] for k in ("value", "low", "high", "n", "unit", "method")] == [
        pytest.approx(expected.value),
        pytest.approx(expected.low),
        pytest.approx(expected.high),
        4,
        "animals",
        "t",
    ]
    expected = t_interval(ours - lda)
    assert (gain["value"], gain["low"]) == (pytest.approx(expected.value), pytest.approx(expected.low))
    assert rows["ours", f"accuracy minus {CHANCE}"]["value"] == pytest.approx(ours.mean() - 0.5)
    assert ("lda", "accuracy minus bayes") not in rows


def test_only_the_best_baseline_by_validation_is_marked() -> None:
    rows = rows_of(OURS, LDA, BAYES, SHUFFLED)
    marks = {metric: row["best_baseline"] for (_, metric), row in rows.items() if metric.startswith("accuracy minus")}
    assert marks == {
        "accuracy minus lda": "",
        "accuracy minus bayes": "validation",  # not 'lda', which is better on the test; not the control
        "accuracy minus shuffled": "",
        "accuracy minus chance": "",
    }
    assert [metric for (_, metric), row in rows.items() if row["best_on_test"] and metric.startswith("accuracy")] == [
        "accuracy",
        "accuracy minus lda",
    ]
    assert rows["bayes", "accuracy"]["best_baseline"] == "validation"
    assert rows["lda", "accuracy"]["best_baseline"] == ""


def test_a_control_of_a_model_is_compared_with_that_model_alone() -> None:
    models = [decode(name, hits, seed=0, model_id=name) for name, hits in (("ours", [16, 15, 14, 15]), ("theirs", 13))]
    left = {"kind": "control", "seed": 0}
    own = [decode(f"{name} (shuffled)", [8, 7, 8, 9], model_id=name, **left) for name in ("ours", "theirs")]
    random = decode("random encoder", [9, 7, 9, 9], model_id="of its own", **left)
    rows = rows_of(*models, *own, random)
    compared = {arm: {} for arm in ("ours", "theirs")}
    for (arm, metric), row in rows.items():
        if metric.startswith("accuracy minus "):
            compared[arm][metric.removeprefix("accuracy minus ")] = row["verdict"]
    assert set(compared["ours"]) == {"theirs", "ours (shuffled)", "random encoder", "chance"}
    assert set(compared["theirs"]) == {"theirs (shuffled)", "random encoder", "chance"}
    # One training each: a model differs from its own control, but one training is no evidence about another.
    assert compared["ours"]["ours (shuffled)"] == "better"
    assert compared["ours"]["random encoder"] == "no claim: 1 of 5 seeds"


@pytest.mark.parametrize(
    ("validations", "expected"),
    [
        ((valid(0.6), valid(0.7)), ("bayes", "validation")),
        ((valid(0.6), {}), ("lda", "test")),
        (({}, {}), ("lda", "test")),
        ((valid(0.6), valid(0.7, "ssim")), ("lda", "test")),
        ((valid(20.0, "circular_error_deg"), valid(30.0, "circular_error_deg")), ("lda", "validation")),
    ],
)
def test_how_the_best_baseline_is_chosen(validations: tuple[dict[str, Any], ...], expected: tuple[str, str]) -> None:
    files = [
        decode(name, hits, kind="baseline", **own)
        for (name, hits), own in zip({"lda": 12, "bayes": 10}.items(), validations, strict=True)
    ]
    [own] = gather_arms(ScoredFile.of(p) for p in files)
    _, best = own.scores(np.random.default_rng(0))
    assert (best.arm, best.how, best.on_test) == (*expected, "lda")
    [alone] = gather_arms([ScoredFile.of(OURS)])
    assert alone.scores(np.random.default_rng(0))[1] == BestBaseline()


ONE_TRIAL = 1 / 16
TIES: dict[str, tuple[list[tuple[str, float]], str]] = {
    "the simpler of three": ([("linear svm", 0.5), ("shrunk lda", 0.5), ("majority", 0.5)], "majority"),
    "whatever the order": ([("majority", 0.5), ("linear svm", 0.5), ("shrunk lda", 0.5)], "majority"),
    "up to rounding": ([("cebra knn", 0.1 + 0.2), ("ridge", 0.3)], "ridge"),
    "not one trial worse": ([("linear svm", 0.5 + ONE_TRIAL), ("majority", 0.5)], "linear svm"),
    "lookups": ([("naive bayes lookup", 0.5), ("knn lookup", 0.5), ("mean frame", 0.4)], "knn lookup"),
    "unknown ones last, by name": ([("zeta", 0.5), ("alpha", 0.5), ("cebra unet", 0.5)], "cebra unet"),
    "unknown ones by name": ([("zeta", 0.5), ("alpha", 0.5)], "alpha"),
}


@pytest.mark.parametrize(("scores", "expected"), TIES.values(), ids=TIES)
def test_ties_go_to_the_simpler_baseline(scores: list[tuple[str, float]], expected: str) -> None:
    by_validation = [Candidate(arm, 1 - score, "accuracy", score) for arm, score in scores]
    assert (best_baseline(by_validation, "accuracy").arm, best_baseline(by_validation, "accuracy").how) == (
        expected,
        "validation",
    )
    by_test = [Candidate(arm, score) for arm, score in scores]
    assert best_baseline(by_test, "accuracy") == BestBaseline(expected, "test", expected)


def test_every_baseline_has_a_place_in_the_order_of_simplicity() -> None:
    frames = np.zeros((9, 16, 16), np.uint8)
    made = [*gratings_baselines(num_classes=8), *frame_number_baselines(num_frames=9, tolerance=3)]
    made += frame_baselines(frames, tolerance=3)
    assert {baseline.name.replace("_", " ") for baseline in made} <= set(SIMPLEST_FIRST)


def test_a_baseline_without_a_test_score_is_not_the_best() -> None:
    candidates = [Candidate("majority", float("nan")), Candidate("ridge", 0.1)]
    assert best_baseline(candidates, "accuracy").arm == "ridge"
    lower = [Candidate("majority", 3.0), Candidate("ridge", 1.0)]
    assert best_baseline(lower, "circular_error_deg").arm == "ridge"


def test_a_baseline_of_several_files_has_their_mean_validation_score() -> None:
    def fold(name: str, score: float, half: int) -> Predictions:
        whole = decode(name, 12, kind="baseline", **valid(score))
        rows = np.arange(len(whole)) % 2 == half
        names = ("prediction", "target", "time", "recording_id", "subject_id", "stimulus", "frame_number", "repeat")
        for column in names:
            setattr(whole, column, getattr(whole, column)[rows])
        return whole

    files = [fold("a", 0.9, 0), fold("a", 0.3, 1), fold("b", 0.7, 0), fold("b", 0.7, 1)]
    [part] = gather_arms(ScoredFile.of(p) for p in files)
    assert part.arms["a"].candidate(0.5) == Candidate("a", 0.5, "accuracy", pytest.approx(0.6))
    best = best_baseline([arm.candidate(0.0) for arm in part.arms.values()], "accuracy")
    assert (best.arm, best.how, best.on_test) == ("b", "validation", "a")
    # Folds cut the blocks of a recording; together they are the whole again.
    assert part.arms["a"].table["num_targets"].sum() == 3 * ANIMALS * TRIALS


def test_seeds_are_averaged_and_counted() -> None:
    seeds = [decode("ours", hits, seed=seed) for seed, hits in enumerate((16, 12))]
    rows = rows_of(*seeds, LDA)
    assert rows["ours", "accuracy"]["value"] == pytest.approx(14 / 16)
    assert (rows["ours", "accuracy"]["num_seeds"], rows["lda", "accuracy"]["num_seeds"]) == (2, 0)


def test_the_order_of_files_does_not_matter() -> None:
    files = [OURS, decode("theirs", 13), LDA, BAYES, SHUFFLED]
    first, second = rows_of(*files), rows_of(files[1], files[0], *files[:1:-1])
    shared = {key: row for key, row in first.items() if key in second}
    # Only the direction of 'ours' against 'theirs' follows the order.
    assert len(first) - len(shared) == len({metric for _, metric in first if metric.endswith("minus theirs")})
    # So do the one-sided p values of a family; nothing that is about one pair alone does.
    for key, row in shared.items():
        for name in ("value", "low", "high", "p", "effect_size", "n", "best_baseline"):
            assert row.get(name) == second[key].get(name)


def test_margin_reaches_the_verdict() -> None:
    close = decode("close", [16, 15, 14, 14])
    assert rows_of(OURS, close, margin=0.2)["ours", "accuracy minus close"]["verdict"] == "equivalent"
    assert rows_of(OURS, close)["ours", "accuracy minus close"]["verdict"] == "inconclusive"


ROWS = ("prediction", "target", "time", "recording_id", "subject_id", "stimulus", "frame_number", "repeat")


def cut(whole: Predictions, rows: np.ndarray, **changes: Any) -> Predictions:
    """Keep some rows, as a fold does."""
    return replace(whole, **({name: getattr(whole, name)[rows] for name in ROWS} | changes))


EARLY = np.arange(ANIMALS * TRIALS) % TRIALS < 9
ALL_FIRST = np.zeros(ANIMALS * TRIALS, np.int64)
REFUSED: dict[str, tuple[list[Predictions], str]] = {
    "two kinds": ([LDA, decode("lda", 5)], "arm 'lda' is of kinds model, baseline"),
    "twice": ([OURS, decode("ours", 9)], "both predict recording m0-1 at 0.000000 s as arm 'ours' with seed -1"),
    "other targets": (
        [OURS, LDA, decode("late", 9, time=np.tile(np.arange(TRIALS) * 0.5 + 1, ANIMALS))],
        "late against ours: target of recording m0-1 at 0.000000 s is missing",
    ),
    "other animals": (
        [OURS, LDA, decode("else", 9, recording_id=np.repeat([f"x{i}" for i in range(ANIMALS)], TRIALS))],
        r"else against ours: recording m0-1 is missing \(4 such\)",
    ),
    "a truth that is easy": (
        [OURS, LDA, decode("easy", 9, target=ALL_FIRST, prediction=ALL_FIRST)],
        "arm 'easy' has direction 0 of recording m0-1 at 0.500000 s, arm 'ours' has 90",
    ),
    "a truth that is easy, first": (
        [decode("easy", 9, target=ALL_FIRST, prediction=ALL_FIRST), OURS],
        "arm 'ours' has direction 90 of recording m0-1 at 0.500000 s, arm 'easy' has 0",
    ),
    "a fold whose truth is easy": (
        [OURS, cut(LDA, EARLY), cut(LDA, ~EARLY, target=ALL_FIRST[~EARLY], prediction=ALL_FIRST[~EARLY])],
        "arm 'lda' has direction 0 of recording m0-1 at 4.500000 s, arm 'ours' has 90",
    ),
    "a training whose truth is easy": (
        [decode("ours", 9, seed=0), decode("ours", 9, seed=1, target=ALL_FIRST, prediction=ALL_FIRST)],
        "arm 'ours' has direction 0 of recording m0-1 at 0.500000 s",
    ),
    "more classes": (
        [OURS, LDA, decode("more", 9, class_values=np.array([0.0, 90.0, 180.0]))],
        "arm 'more' has class_values 0, 90, 180, arm 'ours' has 0, 90",
    ),
}


@pytest.mark.parametrize(("files", "text"), REFUSED.values(), ids=REFUSED)
def test_files_that_do_not_fit_each_other(files: list[Predictions], text: str) -> None:
    with pytest.raises(PoyoError, match=text) as caught:
        rows_of(*files)
    assert "\n" not in str(caught.value)


def test_classes_may_stand_in_any_order() -> None:
    """And rows, too."""
    other = replace(LDA, class_values=LDA.class_values[::-1], target=1 - LDA.target, prediction=1 - LDA.prediction)
    backwards = cut(BAYES, np.arange(ANIMALS * TRIALS)[::-1])
    assert rows_of(OURS, other, backwards) == rows_of(OURS, LDA, BAYES)


def test_what_is_written_suffices_and_is_strict_json(tmp_path: Path) -> None:
    paths = []
    for p in (OURS, LDA, BAYES):
        p.save(tmp_path / "given" / f"{p.arm}.h5")
        paths.append(tmp_path / "given" / f"{p.arm}.h5")
    scores = evaluate_files(paths, tmp_path / "out")
    text = (tmp_path / "out" / "results.json").read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON")) == plain(scores.rows)
    assert plain(read_results(tmp_path / "out")) == plain(scores.rows)
    copies = sorted((tmp_path / "out" / "predictions").iterdir())
    assert [path.name for path in copies] == [f"{arm}-gratings-gratings.h5" for arm in ("bayes", "lda", "ours")]
    assert plain(evaluate_files([copies[2], copies[1], copies[0]]).rows) == plain(scores.rows)
    facts = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert (facts["seed"], facts["files"]) == (0, [str(path) for path in paths])
    with pytest.raises(PoyoError, match="exists"):
        evaluate_files(paths, tmp_path / "out")
    again = evaluate_files(paths[:1], tmp_path / "out", overwrite=True)
    assert plain(again.rows) == plain(read_results(tmp_path / "out"))


def test_results_that_are_missing_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(PoyoError, match=r"no results.json in .*run 'poyo-ssl evaluate' first"):
        read_results(tmp_path)
    (tmp_path / "results.json").write_text("[{")
    with pytest.raises(PoyoError, match=r"results\.json is damaged"):
        read_results(tmp_path)


def test_rows_of_earlier_results_are_read(tmp_path: Path) -> None:
    """They name the arm that is subtracted in the metric."""
    old = {"arm": "ours", "task": "gratings", "split": "gratings", "metric": "accuracy minus lda", "value": 0.1}
    (tmp_path / "results.json").write_text(json.dumps([old | {"low": None, "high": None, "n": 1}]))
    [row] = read_results(tmp_path)
    assert (row.metric, row.minus, row.interval) == ("accuracy", "lda", "no interval")


def test_files_of_one_arm_get_names_of_their_own(tmp_path: Path) -> None:
    names = []
    for _ in range(2):
        path = free_path(tmp_path, "my arm/../x", "frames", "clip", 3)
        path.write_bytes(b"")
        names.append(path.name)
        assert path.parent == tmp_path
    assert names == ["my_arm_.._x-frames-clip-seed3.h5", "my_arm_.._x-frames-clip-seed3-2.h5"]

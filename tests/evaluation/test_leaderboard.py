"""Leaderboards: who is ranked, what gains refer to, what is refused, and the three files that they are written to."""

from __future__ import annotations

import csv
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from poyo_ssl.cli import main
from poyo_ssl.errors import PoyoError
from poyo_ssl.evaluation.leaderboard import (
    BestBaseline,
    Leaderboard,
    compare_arms,
    find_predictions,
    make_leaderboards,
)
from poyo_ssl.evaluation.metrics import format_number
from poyo_ssl.evaluation.predictions import Predictions
from poyo_ssl.evaluation.scores import score_table
from poyo_ssl.report.leaderboard import cells, gain_bars, header, to_csv, to_html, to_markdown, write_leaderboard

ANIMALS, TRIALS = 6, 32


def decode(name: str, skill: float, **changes: Any) -> Predictions:
    """Predict directions that are right with probability `skill`, else any of eight."""
    rng = np.random.default_rng([len(name), int(100 * skill), changes.get("seed", -1) + 1])
    total = ANIMALS * TRIALS
    target = np.arange(total) % 8
    animal = np.repeat([f"mouse {i}" for i in range(ANIMALS)], TRIALS)
    facts: dict[str, Any] = {
        "task": "gratings",
        "split": "gratings",
        "arm": name,
        "data_checksum": "abc123",
        "prediction": np.where(rng.random(total) < skill, target, rng.integers(0, 8, total)),
        "target": target,
        "time": np.tile(np.arange(TRIALS) * 1.0, ANIMALS),
        "recording_id": np.char.add(animal, ", day 1"),
        "subject_id": animal,
        "stimulus": np.full(total, "drifting_gratings"),
        "frame_number": np.full(total, -1),
        "repeat": np.full(total, -1),
        "class_values": np.arange(8) * 45.0,
    }
    return Predictions(**(facts | changes))


def valid(score: float) -> dict[str, Any]:
    return {"validation_metric": "accuracy", "validation_score": score}


Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Return a writer of predictions files into one folder, which it returns."""

    def write(*files: Predictions) -> Path:
        for number, predictions in enumerate(files):
            predictions.save(tmp_path / "all" / f"{number:02d}-{predictions.arm}.h5")
        return tmp_path / "all"

    return write


def boards_of(folder: Path, **options: Any) -> list[Leaderboard]:
    return make_leaderboards(find_predictions(folder)[0], **options)


USUAL = (
    decode("ours", 0.8, seed=0),
    decode("ours", 0.8, seed=1),
    decode("lda", 0.6, kind="baseline", **valid(0.5)),
    decode("bayes", 0.5, kind="baseline", **valid(0.7)),
    decode("shuffled", 0.05, kind="control"),
    decode("true rates", 0.95, kind="ceiling"),
)


def test_arms_are_ranked_and_gains_refer_to_the_baseline_that_validation_chose(save: Save) -> None:
    [board] = boards_of(save(*USUAL))
    assert [entry.arm for entry in board.entries] == ["true rates", "ours", "lda", "bayes", "shuffled"]
    assert [entry.rank for entry in board.entries] == [None, 1, 2, 3, None]
    # 'lda' is better on the test part, but that is not for the choice to know.
    assert (board.best.arm, board.best.on_test) == ("bayes", "lda")
    assert board.notes[1] == "The best baseline on the test set is 'lda'; gains over it stand beside."
    assert board.notes[0] == "Gains refer to the best simple baseline, 'bayes', chosen by its validation score."
    assert board.headline == board.metrics[0] == "accuracy"
    ours = board.entries[1]
    # All animals have as many trials, so their mean is that of all trials.
    hits = [float(np.mean(p.prediction == p.target)) for p in USUAL[:4]]
    means = {"ours": np.mean(hits[:2]), "bayes": hits[3]}
    assert ours.num_seeds == 2
    assert ours.scores["accuracy"].value == pytest.approx(means["ours"])
    assert ours.scores["accuracy"].n == ANIMALS
    assert ours.gains["accuracy"].value == pytest.approx(means["ours"] - means["bayes"])
    assert ours.gains_on_test["accuracy"].value == pytest.approx(means["ours"] - hits[2])
    assert [text.split()[0] for text in cells(board, ours)[5:7]] == [
        f"+{format_number(ours.gains['accuracy'].value)}",
        f"+{format_number(ours.gains_on_test['accuracy'].value)}",
    ]
    assert [cells(board, entry)[5:7] for entry in board.entries[2:4]] == [
        [cells(board, board.entries[2])[5], "best on test"],
        ["best baseline", cells(board, board.entries[3])[6]],
    ]
    assert ours.gains["accuracy"].verdict == "better"
    assert board.entries[3].gains == {}
    assert set(board.entries[2].gains) == set(board.metrics)


def test_gains_are_those_of_the_comparison_and_corrected_over_all_arms(save: Save) -> None:
    [board] = boards_of(save(*USUAL[2:]), margin=0.1)
    tables = {p.arm: score_table(p) for p in USUAL[2:]}
    pairs = [(arm, "bayes") for arm in tables if arm != "bayes"]
    expected = {c.arm: c for c in compare_arms(tables, pairs, "accuracy", rng=np.random.default_rng(0), margin=0.1)}
    for entry in board.entries:
        if entry.arm != "bayes":
            found, wanted = entry.gains["accuracy"], expected[entry.arm]
            assert (found.p_holm, found.margin, found.verdict) == (wanted.p_holm, 0.1, wanted.verdict)
            assert found.p_holm >= found.p


def test_without_validation_scores_the_table_says_that_the_test_chose(save: Save) -> None:
    files = (decode("ours", 0.8), decode("lda", 0.6, kind="baseline"), decode("bayes", 0.5, kind="baseline"))
    [board] = boards_of(save(*files))
    assert (board.best.arm, board.best.on_test) == ("lda", "lda")
    assert "chosen by its test score, which is optimistic for the baseline" in board.notes[0]
    assert board.notes[1].startswith("Without a validation score: ")
    assert board.notes[1].endswith("and 1 more.")
    assert "01-lda.h5" in board.notes[1]


def test_validation_scores_of_several_metrics_do_not_choose(save: Save) -> None:
    other = {"validation_metric": "log_likelihood", "validation_score": -1.0}
    files = (decode("lda", 0.6, kind="baseline", **valid(0.1)), decode("bayes", 0.5, kind="baseline", **other))
    [board] = boards_of(save(*files))
    assert (board.best.arm, board.best.on_test) == ("lda", "lda")
    assert board.notes[1] == "The baselines' validation scores are of different metrics and cannot be compared."


def test_without_baselines_there_is_no_gain(save: Save) -> None:
    [board] = boards_of(save(decode("ours", 0.8), decode("theirs", 0.6)))
    assert board.best == BestBaseline()
    assert all(not entry.gains for entry in board.entries)
    assert board.notes[0].startswith("No file is of kind 'baseline'")
    assert cells(board, board.entries[0])[5] == "-"
    assert gain_bars(board) == {}


def test_equal_scores_share_a_rank(save: Save) -> None:
    same = decode("b", 0.6).prediction
    [board] = boards_of(save(*(decode(arm, 0.6, prediction=same) for arm in "abc"), decode("worse", 0.1)))
    assert [entry.rank for entry in board.entries] == [1, 1, 1, 4]


def test_splits_and_tasks_have_tables_of_their_own(save: Save) -> None:
    folder = save(*USUAL, decode("ours", 0.4, split="gratings_block"))
    assert [(board.split, len(board.entries)) for board in boards_of(folder)] == [
        ("gratings", 5),
        ("gratings_block", 1),
    ]
    [board] = boards_of(folder, split="gratings_block")
    assert board.split == "gratings_block"
    with pytest.raises(PoyoError, match="did you mean 'gratings_block'"):
        boards_of(folder, split="grating_block")
    with pytest.raises(PoyoError, match=r"no predictions of task 'frames'.*allowed: gratings"):
        boards_of(folder, task="frames")


@pytest.mark.parametrize(
    ("odd", "text"),
    [
        ({"data_checksum": "fff999"}, r"01-odd.h5 is of data fff999, .*00-lda.h5 of abc123 \(gratings on gratings\)"),
        ({"time": np.tile(np.arange(TRIALS) + 0.5, ANIMALS)}, "is missing"),
        ({"recording_id": np.repeat([f"x{i}" for i in range(ANIMALS)], TRIALS)}, "recording mouse 0, day 1 is missing"),
        ({"arm": "lda"}, "both predict recording mouse 0, day 1 at 0.000000 s as arm 'lda'"),
        ({"arm": "lda", "kind": "model"}, "arm 'lda' is of kinds"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(odd: dict[str, Any], text: str, save: Save) -> None:
    first = decode("lda", 0.6, kind="baseline")
    folder = save(first, decode(**({"name": "odd", "skill": 0.6, "kind": "baseline"} | odd)))
    with pytest.raises(PoyoError, match=text) as caught:
        boards_of(folder)
    assert "\n" not in str(caught.value)


def test_a_file_that_does_not_know_its_data_takes_part_by_its_targets(save: Save) -> None:
    [board] = boards_of(save(*USUAL, decode("elsewhere", 0.7, data_checksum="")))
    assert board.data_checksum == "abc123"
    assert {entry.arm for entry in board.entries} >= {"elsewhere", "ours"}


def test_folds_of_one_arm_share_the_targets_among_them(save: Save) -> None:
    whole = decode("folds", 0.7)
    rows = np.arange(len(whole)) % 2 == 0
    names = ("prediction", "target", "time", "recording_id", "subject_id", "stimulus", "frame_number", "repeat")
    halves = [decode("folds", 0.7, **{n: getattr(whole, n)[own] for n in names}) for own in (rows, ~rows)]
    [board] = boards_of(save(*USUAL, *halves))
    found = next(entry for entry in board.entries if entry.arm == "folds").scores["accuracy"]
    assert found.value == pytest.approx(np.mean(whole.prediction == whole.target))


def test_other_files_are_left_out_and_damaged_ones_named(save: Save, tmp_path: Path) -> None:
    folder = save(*USUAL)
    with h5py.File(folder / "recording.h5", "w") as file:
        file["dff"] = np.zeros(3)
    found, others = find_predictions(folder)
    assert (len(found), [path.name for path in others]) == (len(USUAL), ["recording.h5"])
    (folder / "broken.h5").write_bytes(b"nothing")
    with pytest.raises(PoyoError, match=r"broken.h5 is damaged"):
        find_predictions(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(PoyoError, match=r"no predictions file .*run 'poyo-ssl evaluate' first"):
        find_predictions(tmp_path / "empty")
    with pytest.raises(PoyoError, match="no folder"):
        find_predictions(tmp_path / "nowhere")


def test_files_hold_what_the_boards_say(save: Save, tmp_path: Path) -> None:
    boards = boards_of(save(*USUAL))
    [board] = boards
    paths = write_leaderboard(boards, tmp_path / "out")
    assert [path.name for path in paths] == ["leaderboard.html", "leaderboard.csv", "leaderboard.md"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in paths}
    rows = list(csv.DictReader(paths[1].read_text().splitlines()))
    assert len(rows) == len(board.entries) * len(board.metrics)
    ours = next(row for row in rows if (row["arm"], row["metric"]) == ("ours", "accuracy"))
    score, gain = board.entries[1].scores["accuracy"], board.entries[1].gains["accuracy"]
    assert [float(ours[k]) for k in ("value", "low", "high")] == [score.value, score.low, score.high]
    assert [float(ours[k]) for k in ("gain", "gain_low", "p_holm")] == [
        gain.value,
        gain.low,
        gain.p_holm,
    ]
    assert (ours["rank"], ours["best_baseline"], ours["verdict"]) == ("1", "bayes", "better")
    on_test = board.entries[1].gains_on_test["accuracy"]
    assert (ours["best_on_test"], float(ours["gain_on_test"])) == ("lda", on_test.value)
    best = next(row for row in rows if row["arm"] == "bayes")
    assert best["gain"] == best["p_holm"] == ""
    table = [line for line in paths[2].read_text().splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(board.entries)
    assert {line.count("|") for line in table} == {len(header(board)) + 1}
    page = paths[0].read_text()
    assert all(text in page for text in ("bayes", "best baseline", cells(board, board.entries[1])[5]))
    assert page.count("<svg") == len(board.entries) - 1
    assert not any(text in page for text in ("http:", "https:", "<script", "src="))


class Tags(HTMLParser):
    """Counts tags that are opened and not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_names_from_files_cannot_spoil_a_page(save: Save) -> None:
    evil = "<script>alert(1)</script> | a\\b `c`\n# d"
    predictions = decode("x", 0.8, arm=evil)
    folder = save(*USUAL)
    predictions.save(folder / "evil.h5")
    boards = boards_of(folder)
    page = to_html(boards)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    table = [line for line in to_markdown(boards).splitlines() if "alert" in line]
    assert len(table) == 1
    assert r"&lt;script&gt;alert(1)&lt;/script&gt; \| a\\b \`c\` # d" in table[0]
    assert any(row["arm"] == evil for row in csv.DictReader(to_csv(boards).splitlines(keepends=True)))


def test_same_files_give_the_same_bytes(save: Save) -> None:
    folder = save(*USUAL[1:])
    first, again = boards_of(folder), boards_of(folder)
    for write in (to_html, to_csv, to_markdown):
        assert write(first) == write(again)


def test_the_command_writes_three_files_and_says_what_it_left_out(
    save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    folder = save(*USUAL, decode("ours", 0.4, split="gratings_block"))
    with h5py.File(folder / "recording.h5", "w") as file:
        file["dff"] = np.zeros(3)
    assert main(["leaderboard", str(folder), "--out", str(tmp_path / "out")]) == 0
    text = " ".join(capsys.readouterr().err.split())
    assert "left out 1 HDF5 files that hold no predictions" in text
    assert "2 tables: scores of different tasks or splits cannot be compared with each other." in text
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"leaderboard.{k}" for k in ("html", "csv", "md")}
    assert main(["leaderboard", str(folder), "--split", "gratings_block"]) == 0
    assert "gratings_block" in (folder / "leaderboard.md").read_text()


def test_the_command_leaves_nothing_when_a_file_is_wrong(
    save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save(*USUAL)
    with h5py.File(folder / "00-ours.h5", "r+") as file:
        file["prediction"][7] = 99
    assert main(["leaderboard", str(folder), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("poyo-ssl: ")
    assert "00-ours.h5: prediction 99 in row 7" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.image import imread
from report_samples import ARMS, RECORDINGS, gratings_predictions, row, write_results

from poyo_ssl.errors import PoyoError
from poyo_ssl.report import write_report
from poyo_ssl.report.results import SPLITS, open_results

VOID = {"meta", "img", "br", "line", "circle"}


class Page(HTMLParser):
    """Text, tags, attributes and tables of a page; raises where tags do not match."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.cells: list[list[str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.texts.append(data)
        if {"td", "th"} & set(self.open):
            self.cells[-1][-1] += data if data.strip() == data else f" {data.strip()}"

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    @property
    def images(self) -> list[np.ndarray]:
        sources = [attributes["src"] for tag, attributes in self.tags if tag == "img"]
        return [imread(io.BytesIO(base64.b64decode(s.removeprefix("data:image/png;base64,")))) for s in sources]


def read_page(path):
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    return write_report(write_results(tmp_path_factory.mktemp("complete"))).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def test_every_arm_stands_beside_its_numbers(page):
    for split_loss in (1.0, 0.4):  # as written by `write_results`
        for arm, (blend, _) in ARMS.items():
            value = 0.3 + blend * split_loss / 3
            wanted = [f"{value:.3f}[{value - 0.05:.3f}, {value + 0.05:.3f}]", "3"]
            assert any(cells[0].startswith(arm) and cells[1:] == wanted for cells in page.cells), (arm, wanted)


def test_best_value_is_marked(html):
    best = re.findall(r'class="number best">([\d.]+)', html)
    # SSIM and PSNR on both splits: the pretrained arm; accuracy is highest and circular error lowest there too.
    assert best == ["0.533", "15.70", "0.393", "15.70", "0.725", "36.00"]


def test_gains_are_put_in_words(page):
    def verdict(arm, baseline, gain):
        (found,) = [c[-1] for c in page.cells if c[:3] == [arm, baseline, gain]]
        return found

    assert verdict("pretrained", "ridge", "0.067") == "interval above 0: better"
    assert verdict("from scratch", "ridge", "-0.033") == "interval contains 0: no difference shown"
    assert verdict("pretrained", "majority", "-30.00") == "interval below 0: better"  # an error: lower is better
    assert "SSIM of from scratch: better than mean frame; no difference shown from ridge." in page.text


def test_page_needs_nothing_but_itself(html, page):
    assert "http://" not in html
    assert "https://" not in html
    assert "url(" not in html
    assert not {"script", "link", "iframe", "object", "embed"} & {tag for tag, _ in page.tags}
    sources = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert sources
    assert all(value.startswith("data:image/png;base64,") for value in sources)
    assert all(image.std() > 0 for image in page.images)


def test_sections_stand_in_their_order(page):
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert ids == ["arms", "scores", "gains", "selection", "confusion", "frames", "meaning", "provenance"]
    # Scatter, one pair of confusion matrices, best and median recording of two splits.
    assert len(page.images) == 1 + 1 + 4


def test_notes_selection_and_provenance_are_shown(page):
    for wanted in (
        "Decoding beats the mean frame.",
        "Encoder from the predictable set.",
        "A virtual observatory whose truth is known.",
        "minutes 12.5",
        SPLITS["repeat"],
        SPLITS["clip"],
        "c0ffee",
        "python: 3.11.0, torch: 2.6",
        "rec_a ab12",
        "finetune",
    ):
        assert wanted in page.text
    assert ["Sst-IRES-Cre", "1.500", "5.000", "3", "3", "3"] in page.cells
    assert "/somewhere" not in page.text  # paths of the machine it was made on stay there


def test_strips_show_the_best_and_the_median_recording(page):
    # Noise grows from recording to recording.
    for split in ("repeat", "clip"):
        assert f"Split {split}: recording {RECORDINGS[0]}, the best recording" in page.text
        assert f"Split {split}: recording {RECORDINGS[1]}, the median recording" in page.text
    assert "place 2 of 3" in page.text
    assert "Last row: the best baseline, 'ridge'." in page.text


def test_same_folder_gives_the_same_page(write_rows, tmp_path):
    folder = write_rows([row("ridge", "ssim_16x32", 0.25)])
    gratings_predictions("pretrained", correct=0.5).save(folder / "predictions" / "p.h5")
    first = write_report(folder, tmp_path / "a" / "one.html")
    second = write_report(folder, tmp_path / "two.html")
    assert first.read_bytes() == second.read_bytes()
    assert [path.name for path in first.parent.iterdir()] == ["one.html"]


def test_an_earlier_page_is_replaced(write_rows):
    folder = write_rows([row("ridge", "ssim_16x32", 0.25)])
    (folder / "report.html").write_text("earlier")
    assert "ridge" in write_report(folder).read_text()


def test_text_from_files_is_escaped(write_rows):
    nasty = '<b>bold</b><script>alert("x")</script>'
    folder = write_rows([row(nasty, nasty, 0.5), row(nasty, f"ssim_16x32 minus {nasty}", 0.5, split=nasty, task=nasty)])
    notes = {"headline": [nasty], "arms": {nasty: nasty}, nasty: nasty, "world": {"k": [nasty]}}
    (folder / "notes.json").write_text(json.dumps(notes))
    (folder / "run.json").write_text(
        json.dumps({"command": nasty, "versions": {nasty: nasty}, "data": [{nasty: 1}, 7]})
    )
    gratings_predictions(f"$ {nasty} $", correct=0.5).save(folder / "predictions" / "p.h5")
    out = write_report(folder, title=nasty)
    assert "<b>" not in out.read_text()
    assert "<script" not in out.read_text()
    assert nasty in read_page(out).text


def test_missing_parts_are_left_out_with_a_sentence(write_rows):
    page = read_page(write_report(write_rows([row("ridge", "ssim_16x32", 0.25)])))
    assert page.images == []
    for wanted in ("no notes.json", "no selection", "no predictions of gratings", "no predictions of frames"):
        assert wanted in page.text
    assert "hold no paired differences" in page.text
    assert "No run.json was found" in page.text
    assert any(cells[0] == "ridgebaseline" and cells[1] == "0.250[0.200, 0.300]" for cells in page.cells)


def test_scores_without_interval_or_value(write_rows):
    rows = [
        row("a", "accuracy", 0.5, low=None, high=float("nan"), n=1),
        row("b", "accuracy", None),
        row("a", "accuracy minus b", 0.5, low=None, high=None, n=1),
        row("a", "brightness minus b", 0.5),
    ]
    page = read_page(write_report(write_rows(rows)))
    assert ["a", "0.500no interval", "1"] in [[c.replace("★", "").strip() for c in cells] for cells in page.cells]
    assert any(cells[:2] == ["bbaseline", "-no interval"] for cells in page.cells)
    assert "no interval: too few values" in page.text
    # Nobody has said whether more brightness is good.
    assert "interval above 0: higher" in page.text


def test_only_paired_gains(write_rows):
    page = read_page(write_report(write_rows([row("a", "ssim_16x32 minus b", 0.5)])))
    assert "only paired gains" in page.text


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([], "holds no list of rows"),
        ({"arm": "a"}, "holds no list of rows"),
        ([row("a", "ssim", 0.5), {"arm": "a"}], "row 1 of .* is incomplete"),
        ([row("a", "ssim", 0.5, low="low")], "row 0 of .* is incomplete"),
        (["text"], "row 0 of .* is incomplete"),
    ],
)
def test_bad_results_are_one_line(write_rows, rows, problem):
    with pytest.raises(PoyoError, match=problem) as error:
        write_report(write_rows(rows))
    assert "\n" not in str(error.value)


def test_folder_without_results(tmp_path):
    with pytest.raises(PoyoError, match=r"no results\.json in .*; run 'poyo-ssl evaluate' first"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("results.json", "[{"),
        ("notes.json", "no json"),
        ("notes.json", "[1]"),
        ("notes.json", '{"arms": [1]}'),
        ("finetune/run.json", "[1]"),
        ("selection/selection.json", "{}"),
        ("predictions/clip_ridge.h5", "no HDF5"),
    ],
)
def test_damaged_files_leave_no_page(results_folder, name, text):
    (results_folder / name).write_text(text)
    with pytest.raises(PoyoError, match=name.split("/")[0].removesuffix(".json")):
        write_report(results_folder)
    assert not list(results_folder.glob("report.html*"))


def test_models_and_best_baseline(results_folder):
    results = open_results(results_folder)
    assert results.models == ["pretrained", "from scratch"]
    assert results.best_baseline("frames", "clip") == "ridge"
    assert results.best_baseline("gratings", "gratings") == "majority"
    assert results.best_baseline("frames", "movie") is None


def test_two_files_of_one_arm_are_told(write_rows):
    folder = write_rows([row("pretrained", "accuracy", 0.5, task="gratings", split="gratings")])
    for name, correct in (("first", 0.2), ("second", 0.9)):
        gratings_predictions("pretrained", correct=correct).save(folder / "predictions" / f"{name}.h5")
    page = read_page(write_report(folder))
    assert "second.h5 repeats arm 'pretrained' of gratings on gratings; pictures show first.h5." in page.text


def test_report_needs_no_torch():
    code = "import sys, poyo_ssl.report; sys.exit('torch' in sys.modules or 'lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

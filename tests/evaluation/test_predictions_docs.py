"""A decoder written elsewhere can write a predictions file as docs/predictions.md says."""

import re
from pathlib import Path

from poyo_ssl.cli import main
from poyo_ssl.evaluation.predictions import Predictions

DOCS = Path(__file__).parents[2] / "docs" / "predictions.md"


def test_the_documented_example_writes_a_file_that_is_scored(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = re.search(r"<!-- predictions example -->\n```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert found
    assert "poyo_ssl" not in found[1].replace("poyo_ssl.predictions", "")
    exec(compile(found[1], str(DOCS), "exec"), {})
    predictions = Predictions.load("mine.h5")
    assert len(predictions) == 40
    assert (predictions.prediction == predictions.target).mean() > 0.5
    assert main(["evaluate", "mine.h5", "--out", "results"]) == 0
    assert Path("results/results.json").exists()

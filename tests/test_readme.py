"""The commands and the Python of the README run as they stand, and a run can be repeated from its folder."""

import re
import shlex
from pathlib import Path

import pytest

from poyo_ssl.cli import main
from poyo_ssl.training.run_folder import read_json, read_tensors

README = Path(__file__).parents[1] / "README.md"


def block_after(marker, language):
    """Return the code block behind a marker of the README."""
    found = re.search(rf"<!-- {marker} -->\n```{language}\n(.*?)```", README.read_text(), re.DOTALL)
    assert found, marker
    return found[1]


@pytest.mark.slow
def test_the_tour_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for line in block_after("tour", "sh").strip().splitlines():
        program, *arguments = shlex.split(line)
        assert program == "poyo-ssl"
        assert main(arguments) == 0, capsys.readouterr().err
    assert Path("results/report.html").stat().st_size > 10_000
    assert {"data", "selection", "runs", "results"} == {path.name for path in tmp_path.iterdir()}

    assert main(["finetune", "--config", "runs/gratings/config.yaml", "--out", "runs/again"]) == 0
    first, again = (read_tensors(Path(f"runs/{name}/model.safetensors")) for name in ("gratings", "again"))
    assert all((first[name] == again[name]).all() for name in first)
    assert main(["pretrain", "--config", "runs/encoder/config.yaml", "--out", "runs/encoder2"]) == 0
    facts = read_json(Path("runs/gratings"), "run.json")
    assert {"seed", "versions", "git_commit", "data", "loaded", "state"} <= set(facts)
    assert all(len(item["sha256"]) == 64 for item in facts["data"])

    exec(compile(block_after("python tour", "python"), "README", "exec"), {})
    assert Path("results_from_python/results.json").exists()
    assert "(2, 8)" in capsys.readouterr().out

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report_samples import write_results


@pytest.fixture
def results_folder(tmp_path: Path) -> Path:
    return write_results(tmp_path / "results")


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[[Any], Path]:
    """Return a writer of a folder that holds nothing but results.json."""

    def write(rows: Any) -> Path:
        folder = tmp_path / "bare"
        folder.mkdir(exist_ok=True)
        (folder / "results.json").write_text(json.dumps(rows))
        return folder

    return write

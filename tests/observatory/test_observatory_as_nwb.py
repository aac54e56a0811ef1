"""The observatory as Allen NWB 1 files: read back by the Allen source, they are what was simulated."""

import shutil

import h5py
import numpy as np
import pytest
from same_stimuli import assert_same_stimuli

from poyo_ssl.cli import main
from poyo_ssl.data.recording import Recording
from poyo_ssl.data.stimuli import load_movie
from poyo_ssl.errors import ResourceError
from poyo_ssl.observatory import SIZES, foreseen_bytes, generate_observatory
from poyo_ssl.sources.allen import AllenSource
from poyo_ssl.sources.run import convert


@pytest.fixture(scope="module")
def with_copies(tiny_folder, tmp_path_factory):
    """The tiny folder, to which the NWB files were added later."""
    folder = tmp_path_factory.mktemp("copies") / "tiny"
    shutil.copytree(tiny_folder, folder)
    when = {path: path.stat().st_mtime_ns for path in folder.glob("*.h5")}
    assert main(["prepare", "observatory", str(folder), "--size", "tiny", "--as-nwb", "--workers", "1"]) == 0
    assert when == {path: path.stat().st_mtime_ns for path in folder.glob("*.h5")}
    return folder


def test_the_allen_source_reads_back_what_was_simulated(with_copies, tmp_path):
    outcomes = convert(AllenSource(), with_copies / "ophys_experiment_data", tmp_path)
    assert [outcome.status for outcome in outcomes] == ["written"] * 4
    made = [Recording.open(path) for path in sorted(with_copies.glob("*.h5"))]
    found = [Recording.open(path) for path in sorted(tmp_path.glob("*.h5"))]
    assert [recording.recording_id for recording in found] == [f"9000000{index}" for index in range(4)]
    for one, two in zip(made, found, strict=True):
        np.testing.assert_array_equal(one.read_dff(0, one.num_frames), two.read_dff(0, two.num_frames))
        np.testing.assert_array_equal(one.timestamps, two.timestamps)
        np.testing.assert_array_equal(one.cell_specimen_ids, two.cell_specimen_ids)
        np.testing.assert_array_equal(one.running.values, two.running.values)
        np.testing.assert_array_equal(one.pupil.location, two.pupil.location)
        assert_same_stimuli(one, two)
        for unit in range(one.num_units):
            np.testing.assert_array_equal(one.roi_masks.dense(unit), two.roi_masks.dense(unit))
        for field in (
            "cre_line",
            "sex",
            "age_days",
            "depth_um",
            "targeted_structure",
            "session_type",
            "recording_date",
        ):
            assert getattr(one.metadata, field) == getattr(two.metadata, field), field
        assert "simulated" in two.metadata.origin
    for movie in SIZES["tiny"].movies:
        np.testing.assert_array_equal(load_movie(tmp_path, movie.name), load_movie(with_copies, movie.name))


def test_numbers_are_what_allensdk_can_take(with_copies):
    for path in sorted((with_copies / "ophys_experiment_data").glob("*.nwb")):
        with h5py.File(path) as file:
            assert int(file["general/session_id"][()]) == int(path.stem)
            assert int(file["general/experiment_container_id"][()]) >= 80_000_000
            assert file["processing/brain_observatory_pipeline/ImageSegmentation/roi_ids"][()].astype(int).min() > 0
            assert b"obs_0" in file["session_description"][()]


def test_copies_take_the_space_foreseen_and_go_when_overwritten(with_copies, tmp_path, monkeypatch):
    copies = sum(path.stat().st_size for path in (with_copies / "ophys_experiment_data").iterdir())
    foreseen = foreseen_bytes(SIZES["tiny"], as_nwb=True) - foreseen_bytes(SIZES["tiny"])
    assert copies < foreseen < 3 * copies
    folder = tmp_path / "data"
    shutil.copytree(with_copies, folder)
    generate_observatory(folder, size="tiny", seed=0, world="null", overwrite=True)
    assert not list((folder / "ophys_experiment_data").iterdir())
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=foreseen // 2))
    with pytest.raises(ResourceError, match="are free"):
        generate_observatory(folder, size="tiny", seed=0, world="null", as_nwb=True)
    assert not list((folder / "ophys_experiment_data").iterdir())

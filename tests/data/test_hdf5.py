"""HDF5 files of others: traces in any storage are read alike and travel between processes, damage becomes an error."""

import pickle

import h5py
import numpy as np
import pytest

from poyo_ssl.data import hdf5
from poyo_ssl.data.hdf5 import LazyDataset, StoredTraces, check_size, map_dataset, open_hdf5, require_dataset
from poyo_ssl.errors import CheckpointError, RecordingError

STORAGES = {
    "contiguous": {},
    "chunked": {"chunks": (4, 600)},
    "one chunk": {"chunks": (7, 3001)},
    "small chunks": {"chunks": (2, 500)},
    "gzip": {"chunks": (1, 1000), "compression": "gzip"},
    "checksums": {"chunks": (3, 400), "fletcher32": True},
}


@pytest.mark.parametrize("by_roi", [True, False])
@pytest.mark.parametrize("layout", STORAGES)
@pytest.mark.parametrize("kind", [">f8", "f4"])
def test_traces_in_any_storage(layout, kind, by_roi, tmp_path):
    values = np.random.default_rng(0).normal(size=(7, 3001)).astype(kind)
    options = STORAGES[layout]
    if not by_roi and options:
        options = options | {"chunks": options["chunks"][::-1]}
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("data", data=values if by_roi else values.T, **options)
    with h5py.File(tmp_path / "x.h5") as file:
        traces = StoredTraces(file["data"], 3000, by_roi=by_roi)
        some = StoredTraces(file["data"], 3000, by_roi=by_roi, keep=np.array([1, 4]), factor=2.0, offset=1.0)
        extremes = traces.extremes()
        assert some.extremes() is None
    assert traces.shape == (3000, 7)
    for span in (slice(0, 3000), slice(131, 1500), slice(2990, 9000), slice(5, 5)):
        expected = values[:, :3000].T[span].astype(np.float32)
        for found in (traces, pickle.loads(pickle.dumps(traces))):
            np.testing.assert_array_equal(found[span], expected)
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(some))[span], 2 * expected[:, [1, 4]] + 1)
    mapped = by_roi and layout in ("contiguous", "chunked", "one chunk")
    assert bool(traces._blocks) == mapped
    assert (extremes is not None) == (kind == "f4" and mapped)
    if extremes is not None:
        np.testing.assert_array_equal(extremes, [values[:, :3000].min(axis=1), values[:, :3000].max(axis=1)])


def test_chunks_that_cannot_be_mapped_are_read_all_the_same(tmp_path):
    values = np.random.default_rng(0).normal(size=(7, 3000)).astype(np.float32)
    expected = np.where(np.arange(3000) < 1000, values, np.float32(0.5))
    for name, block in {"never written": 0, "behind a block of the user": 512}.items():
        wanted = values if block else expected
        with h5py.File(tmp_path / f"{name}.h5", "w", userblock_size=block) as file:
            dataset = file.create_dataset("data", (7, 3000), "f4", chunks=(4, 600), fillvalue=0.5)
            dataset[:, : 3000 if block else 1000] = values if block else values[:, :1000]
            # Chunks of an open file may not be on disk yet.
            np.testing.assert_array_equal(StoredTraces(dataset, 3000, by_roi=True)[0:3000].T, wanted)
        with h5py.File(tmp_path / f"{name}.h5") as file:
            np.testing.assert_array_equal(StoredTraces(file["data"], 3000, by_roi=True)[0:3000].T, wanted)


@pytest.mark.parametrize("by_roi", [True, False])
def test_traces_too_large_to_keep_are_read_in_slabs(tmp_path, monkeypatch, by_roi):
    monkeypatch.setattr(hdf5, "CACHED_BYTES", 1000)
    values = np.random.default_rng(0).normal(size=(7, 3000)).astype(np.float32)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        chunks = (3, 250) if by_roi else (250, 3)
        dataset = file.create_dataset("data", data=values if by_roi else values.T, chunks=chunks)
        traces = StoredTraces(dataset, 3000, by_roi=by_roi)
    np.testing.assert_array_equal(traces[200:900], values.T[200:900])
    assert isinstance(traces._blocks[0][1][0][1] if by_roi else traces._frames, LazyDataset)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(traces))[200:900], values.T[200:900])


def test_a_lazy_dataset_travels_without_its_open_file(tmp_path):
    values = np.arange(60.0).reshape(20, 3)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("data", data=values, chunks=(5, 2), compression="gzip")
        file["whole"] = values
    with h5py.File(tmp_path / "x.h5") as file:
        lazy = map_dataset(file["data"])
        assert isinstance(map_dataset(file["whole"]), np.memmap)
    assert (lazy.shape, lazy.ndim, len(lazy)) == ((20, 3), 2, 20)
    np.testing.assert_array_equal(lazy[4:9], values[4:9])
    again = pickle.loads(pickle.dumps(lazy))
    assert again._opened is None
    np.testing.assert_array_equal(np.asarray(again), values)


def test_damage_becomes_the_error_of_the_caller(tmp_path):
    path = tmp_path / "x.h5"
    with pytest.raises(CheckpointError, match="no file"), open_hdf5(path, CheckpointError):
        pass
    path.write_bytes(b"no")
    with pytest.raises(CheckpointError, match="not a complete HDF5 file"), open_hdf5(path, CheckpointError):
        pass
    with h5py.File(path, "w") as file:
        file.create_group("a/b")
        file["loop"] = h5py.SoftLink("/loop")
    for name, message in {"b": "x.h5: a has a group 'b' where an array", "c": r"a has no 'c' .found: b"}.items():
        with pytest.raises(CheckpointError, match=message), open_hdf5(path, CheckpointError) as file:
            require_dataset(file["a"], name)
    with pytest.raises(RecordingError, match=r"x\.h5 is damaged .*too many links"), open_hdf5(path) as file:
        require_dataset(file, "loop")


def test_sizes_that_a_header_claims():
    check_size((1000, 100), np.dtype("f4"), "F.npy")
    with pytest.raises(RecordingError, match=r"F.npy claims 1000000000 x 100 values of float32 \(400.0 GB\)"):
        check_size((10**9, 100), np.dtype("f4"), "F.npy")

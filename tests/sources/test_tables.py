"""Arrays and pictures of others: what is read equals what was written, and nothing hostile or damaged gets through."""

import io
import struct
import zipfile
import zlib

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy import io as scipy_io

from poyo_ssl.errors import RecordingError
from poyo_ssl.sources.tables import find_pixels, load_array, read_pixels

VALUES = np.random.default_rng(0).normal(size=(40, 3))


def write_all(folder):
    np.save(folder / "a.npy", VALUES)
    np.save(folder / "fortran.npy", np.asfortranarray(VALUES))
    np.savez(folder / "a.npz", a=VALUES)
    np.savez_compressed(folder / "b.npz", a=VALUES, b=VALUES[:2])
    np.savetxt(folder / "a.csv", VALUES, delimiter=",", fmt="%.17g")
    np.savetxt(folder / "names.csv", VALUES, delimiter=",", fmt="%.17g", header="x,y,z", comments="")
    scipy_io.savemat(folder / "a.mat", {"a": VALUES, "text": "hello"})
    scipy_io.savemat(folder / "four.mat", {"a": VALUES}, format="4", do_compression=False)
    with h5py.File(folder / "new.mat", "w", userblock_size=512) as file:
        file["a"] = VALUES.T


def test_every_kind_gives_back_what_was_written(tmp_path):
    write_all(tmp_path)
    for path in tmp_path.iterdir():
        key = "a" if path.name == "b.npz" else None
        np.testing.assert_array_equal(load_array(path, key), VALUES, err_msg=path.name)
    assert isinstance(load_array(tmp_path / "a.npy"), np.memmap)


def bomb(folder):
    """Write npz files whose headers claim a terabyte."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**5)})
    with zipfile.ZipFile(folder / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", header.getvalue() + bytes(10**6))
    (folder / "bomb.npy").write_bytes(header.getvalue() + bytes(1000))
    with h5py.File(folder / "bomb.mat", "w") as file:
        file.create_dataset("a", shape=(10**6, 10**5), dtype="f8", chunks=(1000, 100))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bomb.npz", "claims 1000000 x 100000 values"),
        ("bomb.npy", "not a complete npy file"),
        ("bomb.mat", "claims 1000000 x 100000 values"),
        ("pickle.npy", "holds pickled objects, which can run code"),
        ("pickle.npz", "holds pickled objects, which can run code"),
        ("text.npy", "holds values of type <U"),
        ("complex.npy", "holds values of type complex128"),
        ("words.csv", "'oops' in row 2 of the numbers, column 2"),
        ("empty.csv", "is not a table"),
        ("names_only.csv", "has a line of names and no numbers; write"),
        ("binary.csv", "is not a table"),
        ("short.npy", "not a complete npy file"),
        ("short.npz", "not a complete npz file"),
        ("short.mat", "not a complete MATLAB file"),
        ("b.npz", r"holds several arrays \(allowed: a, b\); say which with --key"),
        ("none.mat", "holds no arrays"),
        ("a.txt", "not a file of arrays"),
        ("absent.npy", "no file"),
    ],
)
def test_hostile_and_damaged_files_are_refused(tmp_path, name, message):
    write_all(tmp_path)
    bomb(tmp_path)
    np.save(tmp_path / "pickle.npy", np.array([{}]), allow_pickle=True)
    np.savez(tmp_path / "pickle.npz", a=np.array([{}]))
    np.save(tmp_path / "text.npy", np.array(["x"]))
    np.save(tmp_path / "complex.npy", np.array([1j]))
    (tmp_path / "words.csv").write_text("x,y\n1,2\n3,oops\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "names_only.csv").write_text("x,y\n")
    (tmp_path / "binary.csv").write_bytes(bytes(range(256)))
    (tmp_path / "a.txt").write_text("1")
    for kind in ("npy", "npz", "mat"):
        whole = (tmp_path / f"a.{kind}").read_bytes()
        (tmp_path / f"short.{kind}").write_bytes(whole[: len(whole) // 2])
    scipy_io.savemat(tmp_path / "none.mat", {"text": "hello"})
    with pytest.raises(RecordingError, match=message) as caught:
        load_array(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_pictures_keep_their_order_and_their_grey(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (12, 6, 8), dtype=np.uint8)
    (tmp_path / "scenes").mkdir()
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / "scenes" / f"image_{number}.png")
    np.save(tmp_path / "movie.npy", pixels)
    grey = [Image.fromarray(picture) for picture in pixels]
    grey[0].save(tmp_path / "loop.gif", save_all=True, append_images=grey[1:])
    found = find_pixels(tmp_path)
    assert set(found) == {"scenes", "movie", "loop"}
    for path in found.values():
        np.testing.assert_array_equal(read_pixels(path), pixels)
    Image.new("RGB", (4, 4), (255, 0, 0)).save(tmp_path / "scenes" / "red.png")
    (tmp_path / "loop").mkdir()
    with pytest.raises(RecordingError, match="both stimulus 'loop'"):
        find_pixels(tmp_path)
    with pytest.raises(RecordingError, match="picture 1 is 6 x 8, not 4 x 4"):
        read_pixels(tmp_path / "scenes")


def test_a_video_comes_back_within_its_compression(tmp_path):
    av = pytest.importorskip("av", reason="PyAV is not installed")
    pixels = np.zeros((10, 48, 64), np.uint8)
    for number in range(10):
        pixels[number, :, number * 6 :] = 40 + 20 * number
    with av.open(str(tmp_path / "m.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 64, 48, "yuv420p", 4_000_000
        for picture in pixels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="gray")))
        container.mux(stream.encode())
    again = read_pixels(tmp_path / "m.mp4")
    assert again.shape == pixels.shape
    assert np.abs(again.astype(int) - pixels).mean() < 6
    whole = (tmp_path / "m.mp4").read_bytes()
    (tmp_path / "short.mp4").write_bytes(whole[: len(whole) // 3])
    with pytest.raises(RecordingError, match="not a complete video"):
        read_pixels(tmp_path / "short.mp4")


def test_pictures_that_are_none(tmp_path):
    (tmp_path / "bad.gif").write_bytes(b"GIF89a nothing")
    with pytest.raises(RecordingError, match="not a complete picture"):
        read_pixels(tmp_path / "bad.gif")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecordingError, match="holds no picture"):
        read_pixels(tmp_path / "empty")
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(tmp_path / "empty" / "deep.png")
    with pytest.raises(RecordingError, match="has pixels of mode I;16"):
        read_pixels(tmp_path / "empty")
    # A picture whose header claims 60,000 x 60,000 pixels.
    Image.new("L", (4, 4)).save(tmp_path / "empty" / "deep.png")
    data = bytearray((tmp_path / "empty" / "deep.png").read_bytes())
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "empty" / "deep.png").write_bytes(bytes(data))
    with pytest.raises(RecordingError, match="decompression bomb"):
        read_pixels(tmp_path / "empty")
    np.save(tmp_path / "float.npy", np.zeros((2, 3, 4)))
    with pytest.raises(RecordingError, match=r"float64 of shape \(2, 3, 4\)"):
        read_pixels(tmp_path / "float.npy")
    (tmp_path / "x.doc").write_text("x")
    with pytest.raises(RecordingError, match="is not a stimulus"):
        read_pixels(tmp_path / "x.doc")

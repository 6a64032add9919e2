"""The data sets, good and broken, and the order of the batches."""

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from fastddpm.train import UsageError
from fastddpm.train.data import BatchOrder, Data, as_float, fingerprint, load_images


def save_npy(folder, array):
    path = folder / "data.npy"
    np.save(path, array)
    return str(path)


def test_digits():
    images = load_images("digits")
    assert images.shape == (1797, 1, 8, 8) and images.dtype == torch.float32
    assert images.min() == -1 and images.max() == 1


@pytest.mark.parametrize("shape, expected", [((5, 8, 6), (5, 1, 8, 6)), ((5, 8, 6, 3), (5, 3, 8, 6)), ((5, 1, 8, 6),) * 2])
def test_npy_shapes(tmp_path, shape, expected):
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    images = load_images(save_npy(tmp_path, array))
    assert images.shape == expected and images.dtype == torch.uint8
    pixel = images[4, -1, 7, 5].item()
    assert pixel == (array[4, -1, 7, 5] if shape[1] == 1 else array[4, 7, 5].flat[-1])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_npy_floats(tmp_path, dtype):
    images = load_images(save_npy(tmp_path, np.linspace(-1, 1, 128).reshape(2, 8, 8).astype(dtype)))
    assert images.dtype == torch.float32 and images.min() == -1 and images.max() == 1


@pytest.mark.parametrize(
    "array, message",
    [
        (np.full((3, 8, 8), np.nan), "NaN or infinity, first in image 0"),
        (np.concatenate((np.zeros((2, 8, 8)), np.full((1, 8, 8), np.inf))), "first in image 2"),
        (np.full((3, 8, 8), 255.0), r"in \[-1, 1\].* got 255 .. 255"),
        (np.full((3, 8, 8), 0.5), "scale by 2 x - 1"),
        (np.zeros((3, 8, 8), np.int64), "got int64"),
        (np.zeros((0, 8, 8), np.uint8), r"got shape \[0, 8, 8\]"),
        (np.zeros((3, 8), np.uint8), r"got \[3, 8\]"),
        (np.zeros((3, 8, 8, 4), np.uint8), r"got \[3, 8, 8, 4\]"),
        (np.zeros((3, 3, 8, 3), np.uint8), r"no doubt which.* got \[3, 3, 8, 3\]"),
        (np.array([[[None]]]), "numpy can't read"),
    ],
)
def test_npy_that_is_wrong(tmp_path, array, message):
    with pytest.raises(UsageError, match=message):
        load_images(save_npy(tmp_path, array))


def test_npy_that_is_no_npy(tmp_path):
    path = tmp_path / "text.npy"
    path.write_text("not an array")
    with pytest.raises(UsageError, match="numpy can't read"):
        load_images(str(path))


def test_folder_is_resized_and_cut_to_its_centre(tmp_path):
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = (200, 100, 50)  # the centre square
    (tmp_path / "deeper").mkdir()
    Image.fromarray(wide).save(tmp_path / "deeper" / "wide.PNG")
    images = load_images(str(tmp_path), image_size=4)
    assert images.dtype == torch.uint8 and images.shape == (1, 3, 4, 4)
    colour = torch.tensor([200, 100, 50])[:, None, None]
    assert (images[0, :, 1:3, 1:3] - colour).abs().max() <= 5  # what bicubic overshoots; the black beside it is cut off
    assert load_images(str(tmp_path), image_size=4, channels="grey").shape == (1, 1, 4, 4)


def test_an_image_is_turned_as_its_camera_was_held(tmp_path):
    pixels, exif = np.arange(16, dtype=np.uint8).reshape(4, 4), Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be seen turned clockwise
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    images = load_images(str(tmp_path), image_size=4, channels="grey")
    assert images[0, 0].tolist() == np.rot90(pixels, -1).tolist()


@pytest.mark.parametrize("channels", ["grey", "rgb"])
def test_grey_values_of_16_bits_are_scaled_to_8(tmp_path, channels):
    deep = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)
    Image.fromarray(deep).save(tmp_path / "a.png")
    images = load_images(str(tmp_path), image_size=8, channels=channels)
    assert (images[0, 0].numpy() == np.round(deep / 257)).all() and bool((images == images[:, :1]).all())


def test_an_image_of_floats_is_skipped(tmp_path):
    Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "a.tiff")
    Image.fromarray(np.ones((8, 8), np.uint8)).save(tmp_path / "b.png")
    with pytest.warns(UserWarning, match="a.tiff.*expected 8 or 16 bits a channel, got pillow's mode 'F'"):
        assert len(load_images(str(tmp_path), image_size=8)) == 1


def test_folder_names_and_counts_what_it_skips(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    for name in ("a.png", "b.png", "c.png"):
        Image.fromarray(pixels).save(tmp_path / name)
    whole = (tmp_path / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2])  # its header is whole, its pixels are not
    (tmp_path / "d.jpg").write_text("no image")
    (tmp_path / "notes.txt").write_text("not looked at")
    with pytest.warns(UserWarning) as warned:
        images = load_images(str(tmp_path), image_size=8)
    messages = [str(warning.message) for warning in warned]
    assert len(images) == 2 and len(messages) == 3
    assert "b.png" in messages[0] and "d.jpg" in messages[1] and messages[2].startswith("2 of 4 files")


def test_folders_without_images(tmp_path):
    with pytest.raises(UsageError, match="got none in"):
        load_images(str(tmp_path))
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(UsageError, match="got 1 broken files"), pytest.warns(UserWarning, match=r"a\.png"):
        load_images(str(tmp_path))


def test_data_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        load_images(str(tmp_path / "nothing.npy"))
    (tmp_path / "data.csv").write_text("1,2")
    with pytest.raises(UsageError, match="another kind of file"):
        load_images(str(tmp_path / "data.csv"))
    with pytest.raises(UsageError, match="only with a folder"):
        load_images("digits", image_size=16)


def test_as_float_spans_the_range():
    assert as_float(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1, 1]


def test_fingerprint_sees_content_shape_and_dtype():
    images = torch.arange(64, dtype=torch.uint8).reshape(1, 1, 8, 8)
    changed = images.clone()
    changed[0, 0, 7, 7] += 1
    others = (images, changed, images.reshape(4, 1, 4, 4), images.view(torch.int8))
    labelled = [Data(images, torch.tensor([0]), ("a", "b")), Data(images, torch.tensor([1]), ("a", "b"))]
    renamed = Data(images, torch.tensor([0]), ("a", "c"))
    prints = {fingerprint(data) for data in (*map(Data, others), *labelled, renamed)}
    assert len(prints) == 7 and fingerprint(Data(images.clone())) in prints


@pytest.mark.parametrize("batch_size", [3, 10, 25])
def test_every_image_comes_once_an_epoch(batch_size):
    order = BatchOrder(10, batch_size, 1, torch.device("cpu"))
    row = torch.cat([order.indices(step) for step in range(10)])
    assert len(row) == 10 * batch_size
    epochs = [row[first : first + 10] for first in range(0, len(row), 10)]
    assert all(epoch.sort().values.tolist() == list(range(10)) for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1])


def test_a_batch_depends_on_seed_and_step_alone():
    def batch(seed, step):
        return BatchOrder(100, 7, seed, torch.device("cpu")).indices(step).tolist()

    walked = BatchOrder(100, 7, 3, torch.device("cpu"))
    assert [walked.indices(step).tolist() for step in range(40)][39] == batch(3, 39)
    assert batch(3, 39) != batch(4, 39)

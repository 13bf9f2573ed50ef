"""Tests of reading images of one's own: folders, files, splits, and what is refused."""

import os
import shutil
import sys
import zipfile

import jax
import numpy as np
import pytest
from PIL import Image

from wpl_jax.data import Splits, image_dir, read_image_dir, shrink

CLASSES = ("ant", "bee", "cat")
PARTS = ("train", "validation", "test")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """The user's cache directory."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def pixels(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def save(path, array, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **how)


def fill(folder, count, seed=0, classes=CLASSES):
    """So many images of each class, of 6 × 4 pixels, whose first pixel is the class's label."""
    for label, name in enumerate(classes):
        for i, image in enumerate(pixels(seed + label, count, 4, 6, 3)):
            image[0, 0] = label
            save(folder / name / f"{i}.png", image)


@pytest.fixture
def parted(tmp_path):
    """A folder with parts."""
    root = tmp_path / "parted"
    for i, (part, count) in enumerate(zip(PARTS, (5, 2, 3), strict=True)):
        fill(root / part, count, 10 * i)
    return root


@pytest.fixture
def whole(tmp_path):
    """A folder without parts."""
    fill(tmp_path / "whole", 40)
    return tmp_path / "whole"


def check_same(splits, others):
    assert jax.tree.all(jax.tree.map(np.array_equal, splits, others))


def rows(splits):
    return [{image.tobytes() for image in part.images} for part in splits]


def test_a_folder_with_parts(parted):
    splits = read_image_dir(parted)
    for part, count in zip(splits, (15, 6, 9), strict=True):
        assert part.images.shape == (count, 4, 6, 3)
        assert (part.images.dtype, part.labels.dtype) == (np.uint8, np.int32)
        np.testing.assert_array_equal(part.images[:, 0, 0, 0], part.labels)
        assert np.bincount(part.labels).tolist() == [count // 3] * 3
        assert sorted(part.labels) != part.labels.tolist()  # the classes are mixed
    assert splits.classes == 3
    train = {np.asarray(Image.open(path)).tobytes() for path in parted.glob("train/*/*")}
    assert rows(splits)[0] == train


@pytest.mark.parametrize("name", ["valid", "val"])
def test_other_names_of_the_validation_part(parted, name):
    splits = read_image_dir(parted)
    (parted / "validation").rename(parted / name)
    check_same(read_image_dir(parted), splits)


def test_a_folder_of_classes_is_split(whole):
    splits = read_image_dir(whole)
    counts = [len(part.labels) for part in splits]
    assert sum(counts) == 120
    assert 80 < counts[0] < 110
    assert min(counts) > 3
    assert len(set.union(*rows(splits))) == 120
    for part in splits:
        np.testing.assert_array_equal(part.images[:, 0, 0, 0], part.labels)


def test_a_split_depends_on_the_files_contents_alone(whole, tmp_path):
    splits = read_image_dir(whole)
    other = tmp_path / "elsewhere"
    for name in CLASSES:
        (other / name).mkdir(parents=True)
        for path in (whole / name).iterdir():
            shutil.copy(path, other / name / f"{1000 - int(path.stem)}.png")
    check_same(read_image_dir(other), splits)


def test_images_stay_in_their_part_and_copies_with_them(whole):
    before = rows(read_image_dir(whole))
    for path in list((whole / "ant").iterdir()):
        shutil.copy(path, path.with_name(f"copy_of_{path.name}"))
    fill(whole, 50, seed=100, classes=("ant",))  # in place of the originals
    after = rows(read_image_dir(whole))
    assert all(part <= later for part, later in zip(before, after, strict=True))
    sizes = [len(part) for part in after]
    assert len(set.union(*after)) == sum(sizes)


def test_a_split_is_the_same_at_all_sizes(whole):
    full, half = read_image_dir(whole), read_image_dir(whole, 2)
    assert half.train.images.shape[1:] == (2, 2, 3)
    for part, other in zip(full, half, strict=True):
        np.testing.assert_array_equal(part.labels, other.labels)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp", "tiff", "gif"])
def test_formats(tmp_path, suffix):
    for part in PARTS:
        for i, name in enumerate(CLASSES):
            save(tmp_path / part / name / f"a.{suffix}", np.full((4, 6, 3), 100 * i, np.uint8))
    for part in read_image_dir(tmp_path):
        np.testing.assert_allclose(part.images.mean((1, 2, 3)), 100 * part.labels, atol=3)


def convert(folder, mode, **how):
    for path in list(folder.rglob("*.png")):
        Image.open(path).convert(mode).save(path, **how)


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_grey_images_have_one_channel(parted, mode):
    convert(parted, mode)
    splits = read_image_dir(parted)
    assert [part.images.shape[1:] for part in splits] == 3 * [(4, 6, 1)]
    expected = np.asarray(Image.open(parted / "test" / "ant" / "0.png").convert("L"))
    assert expected.tobytes() in rows(splits)[2]


def test_grey_images_among_others_have_three_channels(parted):
    convert(parted / "test", "L")
    splits = read_image_dir(parted)
    assert [part.images.shape[1:] for part in splits] == 3 * [(4, 6, 3)]
    assert (splits.test.images == splits.test.images[..., :1]).all()
    assert not (splits.train.images == splits.train.images[..., :1]).all()


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_transparency_is_ignored(tmp_path, mode):
    for part in PARTS:
        for i, name in enumerate(CLASSES):
            image = Image.new("RGBA", (4, 4), (100 * i, 7, 9, 0)).convert(mode)
            (tmp_path / part / name).mkdir(parents=True)
            how = {"transparency": b"\x00\x80"} if mode == "P" else {}
            image.save(tmp_path / part / name / "a.png", **how)
    for part in read_image_dir(tmp_path):
        np.testing.assert_allclose(part.images[..., 0].mean((1, 2)), 100 * part.labels, atol=3)


def test_photographs_are_upright(parted):
    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown turned by 90 degrees
    for path in list(parted.rglob("*.png")):
        Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path, exif=turned)
    assert read_image_dir(parted).test.images.shape[1:] == (4, 6, 3)
    np.testing.assert_array_equal(read_image_dir(parted).test.images[:, 0, 0, 0] < 3, True)


def test_images_are_resized_to_the_square_in_their_middle(tmp_path):
    for part in PARTS:
        for name, (height, width) in zip(CLASSES, ((16, 16), (16, 40), (60, 20)), strict=True):
            image = np.zeros((height, width, 3), np.uint8)
            side, top, left = min(height, width), (height - width) // 2, (width - height) // 2
            image[max(top, 0) :, max(left, 0) :][:side, :side] = 200
            save(tmp_path / part / name / "a.png", image)
    for part in read_image_dir(tmp_path, image_size=8):
        assert part.images.shape == (3, 8, 8, 3)
        assert (part.images[:, 1:-1, 1:-1] > 190).all()
        assert (part.images > 160).all()


def test_large_photographs_are_resized_as_well_as_others(tmp_path):
    ramp = np.linspace(0, 255, 512).astype(np.uint8)
    image = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], np.uint8(128)), -1)
    for suffix in ("jpg", "png"):
        for part in PARTS:
            for name in CLASSES:
                save(tmp_path / suffix / part / name / f"a.{suffix}", image)
    jpg, png = (read_image_dir(tmp_path / suffix, 16).test.images for suffix in ("jpg", "png"))
    np.testing.assert_allclose(jpg.astype(float), png, atol=4)


def test_hidden_files_and_those_beside_folders_are_not_read(parted):
    splits = read_image_dir(parted)
    for place in (parted, parted / "train", parted / "train" / "ant"):
        (place / ".DS_Store").write_text("hidden")
    for place in (parted, parted / "test"):
        (place / "readme.txt").write_text("about the images")
        (place / ".cache").mkdir()
    check_same(read_image_dir(parted), splits)


def test_links_are_followed(parted, tmp_path):
    splits = read_image_dir(parted)
    linked = tmp_path / "linked"
    shutil.copytree(parted / "train", linked / "train")
    for name in ("validation", "test"):
        (linked / name).symlink_to(parted / name)
    (linked / "train" / "ant" / "0.png").unlink()
    (linked / "train" / "ant" / "0.png").symlink_to(parted / "train" / "ant" / "0.png")
    check_same(read_image_dir(linked), splits)


def no_decoding(monkeypatch):
    monkeypatch.setattr(image_dir, "_decode", lambda *args: pytest.fail("decoded again"))


def test_images_are_decoded_once(parted, cache, monkeypatch):
    splits = read_image_dir(parted), read_image_dir(parted, 3)
    no_decoding(monkeypatch)
    check_same((read_image_dir(parted), read_image_dir(parted, 3)), splits)
    assert len(list((cache / "wpl_jax" / "images").iterdir())) == 2


@pytest.mark.parametrize("change", ["rewrite", "add", "remove", "rename", "relabel"])
def test_images_are_decoded_again_when_a_file_has_changed(parted, change):
    before = read_image_dir(parted)
    path = parted / "train" / "ant" / "0.png"
    match change:
        case "rewrite":
            save(path, pixels(99, 4, 6, 3))
            os.utime(path, ns=(0, 0))
        case "add":
            save(path.with_name("new.png"), pixels(99, 4, 6, 3))
        case "remove":
            path.unlink()
        case "rename":
            (parted / "train" / "cat").rename(parted / "train" / "Cat")
            for part in ("validation", "test"):
                (parted / part / "cat").rename(parted / part / "Cat")
        case "relabel":
            path.rename(parted / "train" / "bee" / "other.png")
    after = read_image_dir(parted)
    assert not np.array_equal(before.train.labels, after.train.labels) or rows(before) != rows(
        after
    )


def test_images_that_come_out_otherwise_are_not_kept(parted, cache):
    (parted / "test" / "ant" / "0.png").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(OSError, match="not an image"):
            read_image_dir(parted)
    assert not cache.joinpath("wpl_jax").exists()


# --- .npz files ----------------------------------------------------------------------------------


def arrays(count=60, shape=(4, 6, 3)):
    images = pixels(0, count, *shape)
    images.reshape(count, -1)[:, 0] = np.arange(count) % 3
    return {"images": images, "labels": np.arange(count) % 3}


def parts_of(names=PARTS, **kwargs):
    return {f"{name}_{key}": a for name in names for key, a in arrays(**kwargs).items()}


@pytest.mark.parametrize("names", [PARTS, ("train", "val", "test"), ("train", "valid", "test")])
def test_npz_with_parts(tmp_path, names):
    there = parts_of(names) | {"class_names": np.array(CLASSES)}
    np.savez_compressed(tmp_path / "a.npz", **there)
    splits = read_image_dir(tmp_path / "a.npz")
    for part in splits:
        assert part.images.shape == (60, 4, 6, 3)
        assert (part.images.dtype, part.labels.dtype) == (np.uint8, np.int32)
        np.testing.assert_array_equal(part.images[:, 0, 0, 0], part.labels)
        assert sorted(part.labels) == sorted(np.arange(60) % 3)


def test_npz_is_split(tmp_path):
    np.savez(tmp_path / "a.npz", **arrays())
    splits = read_image_dir(tmp_path / "a.npz")
    # In all runs, or what one has trained on another tests.
    assert [len(part.labels) for part in splits] == [46, 5, 9]
    assert splits.test.labels.tolist() == [2, 0, 0, 2, 0, 1, 2, 0, 1]
    assert len(set.union(*rows(splits))) == 60
    for part in splits:
        np.testing.assert_array_equal(part.images[:, 0, 0, 0], part.labels)


def test_npz_of_grey_images_without_channels_and_of_labels_in_a_column(tmp_path):
    there = parts_of(shape=(4, 6))
    for name in PARTS:
        there[f"{name}_labels"] = there[f"{name}_labels"][:, None].astype(np.uint8)
    np.savez(tmp_path / "a.npz", **there)
    splits = read_image_dir(tmp_path / "a.npz")
    assert splits.train.images.shape == (60, 4, 6, 1)
    assert splits.train.labels.shape == (60,)


# --- What is refused -----------------------------------------------------------------------------


def check_line(error, *parts):
    message = str(error)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message, message


def remove_part(root):
    shutil.rmtree(root / "validation")
    return FileNotFoundError, root / "validation", "validation or valid or val", "move some"


def remove_train(root):
    shutil.rmtree(root / "train")
    return FileNotFoundError, root / "train", "has test, validation", "needs train"


def two_of_a_part(root):
    shutil.copytree(root / "validation", root / "val")
    return ValueError, root, "validation, val", "keep one"


def other_folder(root):
    fill(root / "extra", 1)
    return ValueError, root / "extra", "none of the parts", "rename it"


def empty_class(root):
    (root / "test" / "bee" / "new").parent.mkdir(exist_ok=True)
    for path in (root / "test" / "bee").iterdir():
        path.unlink()
    return ValueError, root / "test" / "bee", "has no images", "put some"


def unknown_class(root):
    fill(root / "test", 1, classes=["dog"])
    return ValueError, root / "test" / "dog", root / "train", "images of dog"


def one_class(root):
    for name in CLASSES[1:]:
        shutil.rmtree(root / "train" / name)
    return ValueError, root / "train", "has ant, but there must be two classes"


def no_classes(root):
    for path in (root / "train").iterdir():
        shutil.rmtree(path)
    save(root / "train" / "a.png", pixels(0, 4, 6, 3))
    return ValueError, root / "train", "has no folders"


def folder_in_a_class(root):
    (root / "train" / "ant" / "young").mkdir()
    return ValueError, root / "train" / "ant" / "young", "is not a file", "directly"


def link_to_the_folder_above(root):
    (root / "train" / "dog").symlink_to(root)
    return ValueError, root / "train" / "dog", "is not a file"


def link_to_itself(root):
    (root / "train" / "dog").symlink_to(root / "train" / "dog")
    return FileNotFoundError, root / "train" / "dog", "a link that leads nowhere"


def broken_link(root):
    (root / "test" / "ant" / "9.png").symlink_to(root / "gone.png")
    return FileNotFoundError, root / "test" / "ant" / "9.png", "a link that leads nowhere"


def no_image(root):
    (root / "train" / "ant" / "notes.txt").write_text("about ants")
    return OSError, root / "train" / "ant" / "notes.txt", "not an image", "move it elsewhere"


def cut_short(root):
    path = root / "train" / "cat" / "0.jpg"
    save(path, pixels(0, 4, 6, 3))
    path.write_bytes(path.read_bytes()[:-80])
    return OSError, path, "cannot be read (", "replace it"


def damaged(root):
    path = root / "train" / "cat" / "0.png"
    content = bytearray(path.read_bytes())
    content[45:55] = bytes(10)
    path.write_bytes(content)
    return OSError, path, "cannot be read ("


def other_size(root):
    save(root / "test" / "bee" / "0.png", pixels(0, 6, 4, 3))
    paths = root / "test" / "bee" / "0.png", root / "train" / "ant" / "0.png"
    return ValueError, *paths, "4 × 6 pixels", "6 × 4 pixels", "image_size"


def deep_pixels(root):
    save(root / "train" / "ant" / "0.png", np.full((4, 6), 40_000, np.uint16))
    return ValueError, root / "train" / "ant" / "0.png", "more than 8 bits", "I;16"


BROKEN = [
    *(remove_part, remove_train, two_of_a_part, other_folder, empty_class, unknown_class),
    *(one_class, no_classes, folder_in_a_class, link_to_the_folder_above, link_to_itself),
    *(broken_link, no_image, cut_short, damaged, other_size, deep_pixels),
]


@pytest.mark.parametrize("break_it", BROKEN)
def test_a_folder_that_cannot_be_used(parted, break_it):
    kind, *parts = break_it(parted)
    with pytest.raises(kind) as raised:
        read_image_dir(parted)
    check_line(raised.value, *parts)


def test_a_folder_that_may_not_be_read(parted, monkeypatch):
    def denied(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr("pathlib.Path.iterdir", denied)
    with pytest.raises(OSError, match="cannot be read .Permission denied.: change") as raised:
        read_image_dir(parted)
    check_line(raised.value, parted)


def test_too_few_images_to_be_split(tmp_path):
    fill(tmp_path / "a", 1)
    with pytest.raises(ValueError, match="3 images to be split at random.*split them yourself"):
        read_image_dir(tmp_path / "a")
    fill(tmp_path / "b", 30, classes=CLASSES[:2])
    seeds = range(100)  # of images, one of which is held out
    images = (pixels(seed, 4, 6, 3) for seed in seeds)
    for image in images:
        save(tmp_path / "b" / "dog" / "a.png", image)
        if image_dir._hash((tmp_path / "b" / "dog" / "a.png").read_bytes()) > 0.8:
            break
    with pytest.raises(ValueError, match="no image of class dog falls into the training part"):
        read_image_dir(tmp_path / "b")


def test_a_path_to_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="--image-dir.*train, validation.*npz") as raised:
        read_image_dir(tmp_path / "gone")
    check_line(raised.value, tmp_path / "gone")


@pytest.mark.parametrize("size", [0, -3])
def test_impossible_sizes(parted, size):
    with pytest.raises(ValueError, match=f"image_size must be at least 1, got {size}"):
        read_image_dir(parted, size)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"test_labels": None}, FileNotFoundError, "has no array test_labels, but train_images"),
        ({"validation_images": None, "validation_labels": None}, FileNotFoundError, "no array val"),
        ({"val_images": np.zeros(3)}, ValueError, "arrays of validation, val: keep one"),
        ({"train_images": np.zeros((60, 4, 6, 3))}, ValueError, r"uint8, .*float64.*\(255 \*"),
        ({"train_images": np.zeros((60, 24), np.uint8)}, ValueError, r"got the shape \(60, 24\)"),
        ({"test_images": np.zeros((60, 3, 32, 32), np.uint8)}, ValueError, "move the axes"),
        ({"test_images": np.zeros((0, 4, 6, 3), np.uint8)}, ValueError, "must be some images"),
        ({"test_images": np.zeros((60, 8, 6, 3), np.uint8)}, ValueError, r"\(8, 6, 3\), but train"),
        ({"test_images": np.zeros((59, 4, 6, 3), np.uint8)}, ValueError, r"the shape \(59,\)"),
        ({"train_labels": np.eye(60)}, ValueError, "must be integers.*got float64"),
        (
            {"train_labels": np.array(["ant"] * 60)},
            ValueError,
            "must be integers.*if they are name",
        ),
        ({"train_labels": np.eye(60, dtype=int)}, ValueError, r"got \(60, 60\)"),
        ({"train_labels": np.arange(60) - 1}, ValueError, "from 0, got -1"),
        ({"test_labels": np.arange(60) + 2**33}, ValueError, "from 0, got 8589934592"),
        ({"test_labels": np.arange(60) % 5}, ValueError, "labels up to 4.*image of label 3"),
        ({"test_labels": np.full(60, 2**31 - 1)}, ValueError, "no training image of label 3"),
        ({"train_labels": 1 + np.arange(60) % 3}, ValueError, "no training image of label 0"),
        (
            {f"{name}_labels": np.zeros(60, int) for name in PARTS},
            ValueError,
            "labels up to 0, but there is no other: number two classes or more",
        ),
    ],
)
def test_npz_files_that_cannot_be_used(tmp_path, change, kind, message):
    there = {name: a for name, a in (parts_of() | change).items() if a is not None}
    np.savez(tmp_path / "a.npz", **there)
    with pytest.raises(kind, match=message) as raised:
        read_image_dir(tmp_path / "a.npz")
    check_line(raised.value, tmp_path / "a.npz", ":")


def test_npz_without_arrays_of_known_names(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=np.zeros(3))
    with pytest.raises(FileNotFoundError, match="no array images, but x_train: save.*train_images"):
        read_image_dir(tmp_path / "a.npz")


def not_a_zip(path):
    path.write_text("images")


def empty(path):
    path.write_bytes(b"")


def one_array(path):
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def cut_off(path):
    np.savez(path, **arrays())
    path.write_bytes(path.read_bytes()[:-500])


def objects(path):
    np.savez(path, images=np.array([pixels(0, 4, 6), None], object), labels=np.arange(2))


def flipped(path):
    np.savez(path, **arrays())
    content = bytearray(path.read_bytes())
    content[1000] ^= 255
    path.write_bytes(content)


def another_archive(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("images", "not an array")
        file.writestr("labels", "not an array")


@pytest.mark.parametrize(
    "write", [not_a_zip, empty, one_array, cut_off, objects, flipped, another_archive]
)
def test_files_that_are_no_npz(tmp_path, write):
    write(tmp_path / "a.npz")
    with pytest.raises((OSError, ValueError)) as raised:
        read_image_dir(tmp_path / "a.npz")
    check_line(raised.value, tmp_path / "a.npz", ":")


def test_npz_is_resized_by_whole_blocks_of_pixels(tmp_path):
    path = tmp_path / "a.npz"
    images = np.arange(20 * 16, dtype=np.uint8).reshape(20, 4, 4)
    np.savez(path, images=images, labels=np.arange(20) % 2)
    whole, small = read_image_dir(path), read_image_dir(path, 2)
    jax.tree.map(np.testing.assert_array_equal, small, shrink(whole, 2))
    assert small.train.images.shape[1:] == (2, 2, 1)
    with pytest.raises(ValueError, match="image_size must divide .* are 4 × 4, got 3") as raised:
        read_image_dir(path, 3)
    check_line(raised.value, path)


def test_missing_pillow_names_the_extra(parted, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"needs pillow: pip install '.\[experiments\]'"):
        read_image_dir(parted)


def test_splits_are_what_other_data_sets_are(parted):
    assert isinstance(read_image_dir(parted), Splits)

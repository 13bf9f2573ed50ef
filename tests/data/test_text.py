"""Tests of wpl_jax.data.text, on the Penn Treebank, CPython's help texts and small files."""

import hashlib
import http.client
import io
import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wpl_jax.data import text as module
from wpl_jax.data.text import (
    EOS,
    TEXTS,
    UNK,
    Text,
    every_token,
    load_text,
    read_text_dir,
    unknown_share,
    windows,
)

PTB_FILES = ("ptb.train.txt", "ptb.valid.txt", "ptb.test.txt")
PTB_COUNTS = [929_589, 73_760, 82_430]
FILES = ("train.txt", "valid.txt", "test.txt")


@pytest.fixture(scope="module")
def ptb_dir(data_dir) -> Path:
    folder = data_dir / "ptb"
    if not folder.is_dir():
        pytest.skip(f"no Penn Treebank in {folder}")
    return folder


@pytest.fixture(scope="module")
def ptb(ptb_dir) -> Text:
    return load_text("ptb", ptb_dir)


@pytest.fixture(scope="module")
def topics() -> Text:
    return load_text("topics")


def write(folder: Path, train: str, validation: str = "a\n", test: str = "a\n") -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in zip(FILES, (train, validation, test), strict=True):
        (folder / name).write_bytes(content.encode())
    return folder


def words(tokens, text: Text) -> list[str]:
    return [text.vocabulary[token] for token in tokens]


def check_same(one: Text, other: Text) -> None:
    assert one.vocabulary == other.vocabulary
    for part, again in zip(one[:3], other[:3], strict=True):
        np.testing.assert_array_equal(part, again)


# The vocabulary.


def test_vocabulary_has_the_most_frequent_training_words_first(tmp_path):
    text = read_text_dir(write(tmp_path, "c b b\na c b\nd\n"))
    assert text.vocabulary == ("b", EOS, "c", "a", "d", UNK)
    assert " ".join(words(text.train, text)) == "c b b <eos> a c b <eos> d <eos>"
    assert all(part.dtype == np.int32 for part in text[:3])


def test_vocabulary_comes_from_the_training_part_alone(tmp_path):
    text = read_text_dir(write(tmp_path, "a b\n", "b v b\n", "t t t a\n"))
    assert set(text.vocabulary) == {"a", "b", EOS, UNK}
    assert words(text.validation, text) == ["b", UNK, "b", EOS]
    assert words(text.test, text) == [UNK, UNK, UNK, "a", EOS]
    assert unknown_share(text) == {"train": 0, "validation": 1 / 4, "test": 3 / 5}


def test_vocabulary_size_keeps_the_most_frequent_words(tmp_path):
    folder = write(tmp_path, "c b b\na c b\nd\n", "a b c d e\n")
    text = read_text_dir(folder, vocabulary_size=4)
    assert text.vocabulary == ("b", EOS, "c", UNK)
    assert " ".join(words(text.train, text)) == "c b b <eos> <unk> c b <eos> <unk> <eos>"
    assert words(text.validation, text) == [UNK, "b", "c", UNK, UNK, EOS]
    assert unknown_share(text) == {"train": 0.2, "validation": 0.5, "test": 0.5}


def test_ties_keep_the_word_that_came_first(tmp_path):
    text = read_text_dir(write(tmp_path, "d c b a\n"), vocabulary_size=4)
    assert set(text.vocabulary) == {"d", "c", EOS, UNK}


@pytest.mark.parametrize("size", [6, 7, 1000])
def test_a_larger_vocabulary_than_the_text_changes_nothing(tmp_path, size):
    folder = write(tmp_path, "c b b\na c b\nd\n")
    check_same(read_text_dir(folder, size), read_text_dir(folder))


def test_special_tokens_in_the_text_are_those_tokens(tmp_path):
    text = read_text_dir(write(tmp_path, "a <unk> <eos> <unk>\n"), vocabulary_size=3)
    assert sorted(text.vocabulary) == [EOS, UNK, "a"]
    assert words(text.train, text) == ["a", UNK, EOS, UNK, EOS]


def test_line_ends_and_white_space_are_no_words(tmp_path):
    plain = read_text_dir(write(tmp_path / "plain", "a b\nc\n\nd\n"))
    assert words(plain.train, plain) == ["a", "b", EOS, "c", EOS, EOS, "d", EOS]
    for name, content in [("cr", " a\tb \r\nc\r\n\r\nd\r\n"), ("no-end", "a b\nc\n\nd")]:
        check_same(read_text_dir(write(tmp_path / name, content)), plain)


SENTENCES = st.lists(
    st.lists(st.sampled_from(["a", "b", "c", "ü", UNK]), min_size=1, max_size=6), min_size=1
)


@given(SENTENCES, SENTENCES, SENTENCES, st.none() | st.integers(3, 7))
def test_ids_are_the_words_that_the_vocabulary_knows(train, validation, test, size):
    parts = [train, validation, test]
    with tempfile.TemporaryDirectory() as folder:
        contents = ["".join(" ".join(line) + "\n" for line in part) for part in parts]
        text = read_text_dir(write(Path(folder), *contents), size)
    assert len(set(text.vocabulary)) == len(text.vocabulary) <= (size or 7)
    for tokens, part in zip(text[:3], parts, strict=True):
        expected = [word for line in part for word in (*line, EOS)]
        known = [word if word in text.vocabulary else UNK for word in expected]
        assert words(tokens, text) == known
    counts = np.bincount(text.train, minlength=len(text.vocabulary))
    assert (np.diff(counts) <= 0).all()


# The texts.


def test_ptb_is_the_official_data(ptb, ptb_dir):
    assert [len(part) for part in ptb[:3]] == PTB_COUNTS
    assert len(ptb.vocabulary) == 10_000
    assert ptb.vocabulary[:5] == ("the", UNK, EOS, "N", "of")
    for part, name in zip(ptb[:3], PTB_FILES, strict=True):
        content = (ptb_dir / name).read_text()
        assert " ".join(words(part, ptb)) == " ".join(content.replace("\n", " <eos> ").split())
    # The <unk> of the preprocessing alone: no word of validation or test is new.
    shares = {"train": 0.0484, "validation": 0.0472, "test": 0.0582}
    assert unknown_share(ptb) == pytest.approx(shares, abs=5e-5)


def test_ptb_is_found_in_a_subfolder(ptb, data_dir):
    check_same(load_text("ptb", data_dir), ptb)


def test_ptb_with_other_line_ends_is_the_same(ptb, ptb_dir, tmp_path):
    for name in PTB_FILES:
        content = (ptb_dir / name).read_bytes()
        (tmp_path / name).write_bytes(content.replace(b" \n", b"\r\n"))
    check_same(load_text("ptb", tmp_path), ptb)


def test_ptb_with_fewer_types_has_their_tokens_at_the_same_places(ptb, ptb_dir):
    small = load_text("ptb", ptb_dir, vocabulary_size=1000)
    assert len(small.vocabulary) == 1000
    assert set(small.vocabulary) == set(ptb.vocabulary[:1000])
    for part, full in zip(small[:3], ptb[:3], strict=True):
        is_unknown = part == small.vocabulary.index(UNK)
        assert words(part[~is_unknown], small) == words(full[~is_unknown], ptb)
        assert not set(words(full[is_unknown], ptb)) & (set(small.vocabulary) - {UNK})


def test_topics_are_prose_in_three_parts(topics):
    sizes = np.array([len(part) for part in topics[:3]])
    assert 60_000 < sizes.sum() < 120_000  # differs between versions of Python
    np.testing.assert_allclose(sizes / sizes.sum(), [0.8, 0.1, 0.1], atol=0.04)
    assert 2_500 < len(topics.vocabulary) < 5_000
    assert {"the", "exception", ".", EOS, UNK} < set(topics.vocabulary)
    assert not any(word != word.lower() for word in topics.vocabulary)
    shares = unknown_share(topics)
    assert shares["train"] == 0
    assert 0 < shares["validation"] < 0.1
    assert 0 < shares["test"] < 0.1


def paragraphs(tokens, text):
    return " ".join(words(tokens, text)).split(f" {EOS}")[:-1]


def test_no_paragraph_of_the_topics_is_read_twice(topics):
    train = paragraphs(topics.train, topics)
    assert len(set(train)) == len(train)
    held_out = [*paragraphs(topics.validation, topics), *paragraphs(topics.test, topics)]
    assert len(held_out) > 300
    known = {paragraph for paragraph in held_out if UNK not in paragraph}
    assert not known & set(train)


def test_topics_are_in_alphabetical_order(topics):
    first, second, *_ = paragraphs(topics.train, topics)
    assert first == 'the " assert " statement'
    assert second.startswith(" assert statements are a convenient way to insert debugging")
    assert sum(word in ("with", "yield") for word in words(topics.test, topics)) > 20


def test_topics_are_always_the_same(topics):
    check_same(load_text("topics"), topics)
    # Hashes of strings are salted anew in another process.
    code = "from wpl_jax.data.text import load_text as load; print(load('topics').vocabulary)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == str(topics.vocabulary)


def test_texts_are_the_names_that_load():
    assert TEXTS == ("ptb", "topics")


# Windows.


def tokens_and_sizes():
    """Texts of distinct tokens, with numbers of streams and lengths that they fill."""
    sizes = st.tuples(st.integers(1, 6), st.integers(1, 7))
    return sizes.flatmap(
        lambda s: st.tuples(st.integers(s[0] * s[1] + 1, 150), st.just(s[0]), st.just(s[1]))
    )


@given(tokens_and_sizes())
def test_windows_predict_a_prefix_of_the_text_once_and_in_order(sizes):
    n, batch_size, length = sizes
    tokens = np.arange(n, dtype=np.int32)
    cut = windows(tokens, batch_size, length)
    assert cut.dtype == np.int32
    assert cut.shape[1:] == (batch_size, length + 1)
    inputs, targets = cut[..., :-1], cut[..., 1:]
    predicted = targets.swapaxes(0, 1).ravel()  # one stream after the other
    np.testing.assert_array_equal(predicted, tokens[1 : len(predicted) + 1])
    np.testing.assert_array_equal(inputs.swapaxes(0, 1).ravel(), predicted - 1)
    np.testing.assert_array_equal(cut[1:, :, 0], cut[:-1, :, -1])
    assert n - 1 - len(predicted) < batch_size * length


@given(st.integers(1, 150), st.integers(1, 6), st.integers(1, 7))
def test_every_token_is_predicted_exactly_once(n, batch_size, length):
    tokens = np.arange(10, 10 + n, dtype=np.int32)
    cut, weights = every_token(tokens, batch_size, length, start_token=9)
    assert (cut.dtype, weights.dtype) == (np.int32, np.float32)
    assert cut.shape == (len(cut), batch_size, length + 1)
    assert weights.shape == (len(cut), batch_size, length)
    assert weights.sum() == n
    predicted = cut[..., 1:].swapaxes(0, 1)[weights.swapaxes(0, 1) == 1]
    np.testing.assert_array_equal(predicted, tokens)
    known = cut[..., :-1].swapaxes(0, 1)[weights.swapaxes(0, 1) == 1]
    np.testing.assert_array_equal(known, tokens - 1)
    np.testing.assert_array_equal(cut[1:, :, 0], cut[:-1, :, -1])
    assert cut.min() >= 9
    assert cut.max() < 10 + n
    assert (len(cut) - 1) * batch_size * length < n


def test_windows_of_ptb(ptb):
    assert windows(ptb.train, 20, 35).shape == (1327, 20, 36)
    eos = ptb.vocabulary.index(EOS)
    cut, weights = every_token(ptb.test, 1, 35, eos)
    assert cut[0, 0, 0] == eos
    assert weights.sum() == PTB_COUNTS[2]


def test_windows_copy_the_text():
    tokens = np.arange(10, dtype=np.int32)
    windows(tokens, 1, 3)[:] = -1
    assert tokens.min() == 0


def test_more_windows_than_text():
    with pytest.raises(
        ValueError, match=r"^12 tokens .* length 3 .* 4 streams, which takes 13: lower `batch_size`"
    ):
        windows(np.arange(12), 4, 3)
    assert len(windows(np.arange(13), 4, 3)) == 1
    with pytest.raises(ValueError, match=r"^0 tokens"):
        windows(np.arange(0), 1, 1)


def test_nothing_to_evaluate():
    with pytest.raises(ValueError, match=r"tokens must not be empty"):
        every_token(np.arange(0), 1, 1, 0)


@pytest.mark.parametrize(("batch_size", "length"), [(0, 5), (5, 0), (-1, -1)])
def test_sizes_that_are_not_positive(batch_size, length):
    wrong = "batch_size" if batch_size < 1 else "length"
    with pytest.raises(ValueError, match=rf"{wrong} must be at least 1, got"):
        windows(np.arange(9), batch_size, length)
    with pytest.raises(ValueError, match=rf"{wrong} must be at least 1, got"):
        every_token(np.arange(9), batch_size, length, 0)


# Mistakes.


def check_line(error: BaseException, *parts: object) -> None:
    """An error is one line and says what it must."""
    assert "\n" not in str(error)
    for part in parts:
        assert str(part) in str(error)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"ptb, topics, got 'pbt'"):
        load_text("pbt")


@pytest.mark.parametrize("size", [2, 0, -5])
def test_vocabulary_without_room_for_a_word(tmp_path, size):
    message = rf"vocabulary_size must be at least 3, <eos>, <unk> and a word, got {size}"
    with pytest.raises(ValueError, match=message):
        load_text("topics", vocabulary_size=size)
    with pytest.raises(ValueError, match=message):
        read_text_dir(write(tmp_path, "a\n"), size)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(tmp_path, name):
    write(tmp_path, "a\n")
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError) as raised:
        read_text_dir(tmp_path)
    check_line(raised.value, tmp_path / name, "--text-dir")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [b"", b"\n \n\t\n"])
def test_a_file_without_words_is_named(tmp_path, name, content):
    write(tmp_path, "a\n")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(OSError, match=r"holds no words") as raised:
        read_text_dir(tmp_path)
    check_line(raised.value, tmp_path / name, "one sentence a line")


def test_a_file_that_is_not_utf8_is_named(tmp_path):
    write(tmp_path, "a\n")
    (tmp_path / "valid.txt").write_bytes("über\n".encode("latin-1"))
    with pytest.raises(OSError, match=r"is not UTF-8") as raised:
        read_text_dir(tmp_path)
    check_line(raised.value, tmp_path / "valid.txt", "save it as UTF-8")


@pytest.mark.parametrize("missing", [PTB_FILES[:1], PTB_FILES[2:], PTB_FILES])
def test_a_folder_without_ptb_is_named_and_stays_as_it_is(monkeypatch, tmp_path, missing):
    monkeypatch.setattr(urllib.request, "urlopen", None)
    present = set(PTB_FILES) - set(missing)
    for name in present:
        (tmp_path / name).write_text("a\n")
    with pytest.raises(FileNotFoundError) as raised:
        load_text("ptb", tmp_path)
    check_line(raised.value, tmp_path, tmp_path / "ptb", *PTB_FILES, "--data-dir")
    assert set(os.listdir(tmp_path)) == present
    with pytest.raises(FileNotFoundError):
        load_text("ptb", tmp_path / "absent")
    assert not (tmp_path / "absent").exists()


def test_a_shortened_ptb_is_named(ptb_dir, tmp_path):
    for name in PTB_FILES:
        content = (ptb_dir / name).read_text()
        (tmp_path / name).write_text(content if name != "ptb.valid.txt" else content[:-20])
    with pytest.raises(OSError, match=r"holds 73,7\d\d tokens, .* holds 73,760") as raised:
        load_text("ptb", tmp_path)
    check_line(raised.value, tmp_path / "ptb.valid.txt", "replace it by https://")


# Downloading.


class Mirror:
    """Stands in for the web: serves files, counts how often, and breaks on demand."""

    def __init__(self, contents):
        self.contents = contents
        self.served = Counter()
        self.failure = None

    def __call__(self, url, timeout):
        assert url.startswith("https://") and timeout > 0
        name = url.rpartition("/")[2]
        self.served[name] += 1
        if name == "ptb.valid.txt" and self.failure:
            return self.failure(url)
        return io.BytesIO(self.contents[name])


@pytest.fixture
def cache(monkeypatch, tmp_path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "wpl_jax" / "ptb"


@pytest.fixture
def mirror(monkeypatch, cache) -> Mirror:
    """A mirror of three small files, which are taken for PTB's."""
    contents = dict(zip(PTB_FILES, (b"a b \n c \n", b" b \n", b" d \n"), strict=True))
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    monkeypatch.setattr(module, "_PTB", {name: (sha, 0) for name, sha in hashes.items()})
    fake = Mirror(contents)
    monkeypatch.setattr(urllib.request, "urlopen", fake)
    return fake


def test_missing_files_are_downloaded_once(mirror, cache):
    text = load_text("ptb")
    assert words(text.train, text) == ["a", "b", EOS, "c", EOS]
    assert {name: (cache / name).read_bytes() for name in os.listdir(cache)} == mirror.contents
    check_same(load_text("ptb"), text)
    assert mirror.served == dict.fromkeys(PTB_FILES, 1)


def test_only_missing_or_damaged_files_are_downloaded(mirror, cache):
    load_text("ptb")
    (cache / "ptb.train.txt").unlink()
    (cache / "ptb.test.txt").write_bytes(b" d")
    load_text("ptb")
    assert mirror.served == dict(zip(PTB_FILES, (2, 1, 2), strict=True))
    assert (cache / "ptb.test.txt").read_bytes() == mirror.contents["ptb.test.txt"]


@pytest.mark.parametrize("value", [None, ""])
def test_the_cache_is_in_the_home_folder_by_default(monkeypatch, mirror, tmp_path, value):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME")
    if value is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", value)
    load_text("ptb")
    assert set(os.listdir(tmp_path / "home/.cache/wpl_jax/ptb")) == set(PTB_FILES)


def test_the_real_files_have_the_expected_hashes(monkeypatch, ptb_dir, cache, ptb):
    contents = {name: (ptb_dir / name).read_bytes() for name in PTB_FILES}
    monkeypatch.setattr(urllib.request, "urlopen", Mirror(contents))
    check_same(load_text("ptb"), ptb)


def not_found(url):
    raise urllib.error.HTTPError(url, 404, "Not Found", http.client.HTTPMessage(), io.BytesIO())


def no_network(url):
    raise urllib.error.URLError("Name or service not known")


def too_slow(url):
    raise TimeoutError("timed out")


class Interrupted(io.BytesIO):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def read(self, size=-1):
        raise self.error


def cut_off(url):
    return Interrupted(http.client.IncompleteRead(b"b", 3))


def reset(url):
    return Interrupted(ConnectionResetError("Connection reset by peer"))


@pytest.mark.parametrize("failure", [not_found, no_network, too_slow, cut_off, reset])
def test_a_failed_download_leaves_nothing_behind(mirror, cache, failure):
    mirror.failure = failure
    with pytest.raises(OSError, match=r"cannot be downloaded") as raised:
        load_text("ptb")
    check_line(raised.value, "https://", "ptb.valid.txt", "--data-dir")
    assert os.listdir(cache) == ["ptb.train.txt"]
    mirror.failure = None
    load_text("ptb")
    assert mirror.served["ptb.train.txt"] == 1


def test_the_wrong_file_is_not_kept(mirror, cache):
    mirror.failure = lambda url: io.BytesIO(b"<html>")
    with pytest.raises(OSError, match=r"is not the file it was") as raised:
        load_text("ptb")
    got = hashlib.sha256(b"<html>").hexdigest()
    check_line(raised.value, "https://", "ptb.valid.txt", got, "--data-dir")
    assert os.listdir(cache) == ["ptb.train.txt"]


def test_an_interrupted_write_leaves_nothing_behind(monkeypatch, mirror, cache):
    def fill_disk(path, content):
        path.open("wb").close()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fill_disk)
    with pytest.raises(OSError, match=r"No space left on device") as raised:
        load_text("ptb")
    check_line(raised.value, cache / "ptb.train.txt", "XDG_CACHE_HOME", "--data-dir")
    assert os.listdir(cache) == []


def test_a_cache_that_cannot_be_made_is_named(mirror, cache):
    cache.parents[1].write_text("a file")
    with pytest.raises(OSError, match=r"cannot write") as raised:
        load_text("ptb")
    check_line(raised.value, cache, "XDG_CACHE_HOME", "--data-dir")


def test_import_is_light():
    code = "import sys, wpl_jax.data.text; sys.exit('pydoc_data.topics' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

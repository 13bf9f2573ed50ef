"""--image-dir: searches, final trainings and grids of images of one's own."""

import json
import shlex
import shutil

import numpy as np
import pytest
from PIL import Image

from experiments import search, train_final
from experiments.grid import __main__ as grid
from experiments.spaces.micro_cnn.task import MicroCNNTask

COMMON = "--space micro_cnn --preset smoke --epochs 1 --batch-size 8 --cnn.nodes 1 --cnn.channels 2"
SEARCH = shlex.split(
    f"{COMMON} --method none --sampler uniform --search.architectures 1 "
    "--search.batches 2 --search.eval-batches 1 --warmup-epochs 1 --derive-samples 2 "
    "--derive-batches 1 --devices 1"
)
FINAL = shlex.split(f"{COMMON} --architecture random --steps-per-call 1 --test-batch-size 8")
COUNTS = {"train": 24, "validation": 16, "test": 12}
MAINS = {"search": (search, SEARCH), "train_final": (train_final, FINAL)}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def root(tmp_path):
    """Images of 8 × 8 pixels, of four classes."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 6), ("val", 4), ("test", 3)):
        for name in ("ant", "bee", "cat", "dog"):
            folder = tmp_path / "photos" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                image = rng.integers(0, 256, (8, 8, 3), np.uint8)
                Image.fromarray(image).save(folder / f"{i}.png")
    return tmp_path / "photos"


def test_images_of_other_data_are_resized_too():
    config, task = search.parse([*SEARCH, "--image-size", "14"]), MicroCNNTask()
    assert task.sizes(task.read(config)) == {"classes": 10, "image_shape": (14, 14, 1)}


def test_a_search_is_of_the_images_of_ones_own(root):
    job = search.prepare(search.parse([*SEARCH, "--image-dir", str(root)]))
    assert job.facts == {"images": COUNTS}
    assert (job.config.cnn.classes, job.config.cnn.image_shape) == (4, (8, 8, 3))
    assert job.data.train.images.shape == (3, 8, 8, 8, 3)


def test_images_are_resized(root):
    for module, flags in MAINS.values():
        config = module.parse([*flags, "--image-dir", str(root), "--image-size", "6"])
        task = MicroCNNTask()
        assert task.sizes(task.read(config)) == {"classes": 4, "image_shape": (6, 6, 3)}


@pytest.mark.slow
def test_a_final_training_goes_on_with_the_same_images_anywhere(root, tmp_path, capsys):
    def command(images):
        return [*FINAL, "--image-dir", str(images), "--out", str(tmp_path / "out"), "--resume"]

    assert train_final.main(command(root)) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["images"] == COUNTS
    assert summary["configuration"]["image_dir"] == str(root)
    assert summary["configuration"]["cnn"]["classes"] == 4

    (tmp_path / "out" / "summary.json").unlink()  # as if it had ended before
    moved = root.rename(tmp_path / "moved")
    assert train_final.main(command(moved)) == 0
    (tmp_path / "out" / "summary.json").unlink()
    shutil.copy(moved / "train" / "ant" / "0.png", moved / "train" / "ant" / "1.png")
    capsys.readouterr()
    assert train_final.main(command(moved)) == 2
    assert " content=" in capsys.readouterr().err


def test_a_grid_reads_them(root):
    flags = f"--image-dir {root} --image-size 6"
    config = grid.parse(
        [
            *("--space", "micro_cnn", "--preset", "smoke", "--arms", "a:", "--cells"),
            f"--search-flags={flags} --batch-size 8 --search.batches 3 --search.eval-batches 1 "
            "--derive-batches 2",
            f"--final-flags={flags} --batch-size 8",
        ]
    )
    plan = grid.plan_of(config)
    ((settings,),), ((of_search,),) = plan.settings.values(), plan.data.values()
    assert of_search.facts == plan.of_finals.facts == {"images": COUNTS}
    assert settings.cnn.image_shape == plan.final.cnn.image_shape == (6, 6, 3)
    assert plan.task.source(settings) == str(root)


@pytest.mark.parametrize("script", MAINS)
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--image-dir {tmp}/gone", "there is no folder or file {tmp}/gone: name (--image-dir"),
        ("--image-dir {tmp}/photos/val/ant", "{tmp}/photos/val/ant has no folders, but there must"),
        ("--image-dir {tmp}/broken", "{tmp}/broken/train/ant/0.png is not an image that Pillow"),
        ("--image-dir {tmp}/notes.txt", "{tmp}/notes.txt cannot be read as an .npz file"),
        ("--image-dir {tmp}/photos --image-size 0", "--image-size must be at least 1, got 0"),
        (
            "--image-size 8",
            "--image-size must divide the size of square images",
        ),
        (
            "--image-dir {tmp}/photos --train-images 25",
            "--train-images must be at most 24, all the training images of {tmp}/photos, got 25",
        ),
    ],
)
def test_bad_input_gives_one_clear_line_and_exit_code_2(
    script, flags, message, root, tmp_path, capsys, monkeypatch
):
    module, common = MAINS[script]
    monkeypatch.setattr(module, "run", lambda *args: pytest.fail("it began"))
    (tmp_path / "notes.txt").write_text("about the images")
    shutil.copytree(root, tmp_path / "broken")
    (tmp_path / "broken" / "train" / "ant" / "0.png").write_bytes(b"no image")
    flags = shlex.split(flags.format(tmp=tmp_path))
    assert module.main([*common, "--out", str(tmp_path / "out"), *flags]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message.format(tmp=tmp_path) in captured.err

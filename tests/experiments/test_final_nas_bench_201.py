"""NAS-Bench-201 as a task: published strings and cells, presets, and its training from scratch."""

import json
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import search, train_final
from experiments.spaces.images import ImageTraining
from experiments.spaces.nas_bench_201.settings import FINALS, SEARCHES, NASFinal
from experiments.spaces.nas_bench_201.task import NASBench201Task
from wpl_jax.spaces.nas_bench_201 import NASBench201

STRING = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|nor_conv_1x1~0|avg_pool_3x3~1|skip_connect~2|"
SMOKE = shlex.split("--space nas_bench_201 --preset smoke")


def test_every_preset_is_accepted():
    for presets, parse in ((SEARCHES, search.parse), (FINALS, train_final.parse)):
        for name, preset in presets.items():
            assert (preset.space, preset.preset) == ("nas_bench_201", name)
            assert parse(["--space", "nas_bench_201", "--preset", name]) == preset
    assert not any(preset.nas.affine for preset in SEARCHES.values())
    assert all(preset.nas.affine for preset in FINALS.values())


@pytest.mark.parametrize("searched", [True, False])
def test_a_published_string_is_an_architecture(searched, tmp_path):
    """As is what a search has stored."""
    space = NASBench201()
    expected = space.from_string(STRING)
    if searched:
        stored = {"error_rate": 0.1} | space.to_json(expected)
        (tmp_path / "best.json").write_text(json.dumps(stored))
    named = str(tmp_path / "best.json") if searched else STRING
    config, architecture = train_final.read_architecture(NASFinal(architecture=named))
    np.testing.assert_array_equal(architecture.operations, expected.operations)
    training = ImageTraining(config, architecture, NASBench201Task())
    name = "best" if searched else "nor_conv_3x3_0_none_0_skip_connect_1_nor_conv_1x1_0_"
    folder = train_final.folder_of(training)
    assert folder.name.startswith(f"paper_{name}") and folder.name.endswith("_0")
    assert "|" not in folder.name


def test_the_cells_that_ship_are_those_that_were_published():
    shipped = NASBench201Task().cells()
    assert set(shipped) == {"best_cifar10", "resnet"}
    for name, path in shipped.items():
        stored = json.loads(path.read_text())
        assert stored["source"]
        _, architecture = train_final.read_architecture(NASFinal(architecture=name))
        assert NASBench201().to_json(architecture)["architecture"] == stored["architecture"]


def test_the_best_is_the_best_of_the_half(data_dir):
    rows = [
        line.split(",")
        for line in (data_dir / "nas_bench_201" / "half.csv").read_text().split()[1:]
    ]
    best = max(rows, key=lambda row: float(row[1]))[0]
    stored = json.loads(NASBench201Task().cells()["best_cifar10"].read_text())
    assert stored["architecture"] == best


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ("best.json", "there is no file best.json; give a JSON file, or one of random, best_cifar"),
        ("best.json", "resnet, or a string: an architecture is |op~0|+|op~0|op~1|+"),
        (STRING.replace("avg_pool", "max_pool"), "must be one of none, skip_connect, nor_conv_1x1"),
        ("{tmp}/cnn.json", '"space": "nas_bench_201", got \'micro_cnn\''),
    ],
)
def test_what_is_no_architecture_is_one_line(architecture, message, tmp_path, capsys):
    (tmp_path / "cnn.json").write_text('{"space": "micro_cnn"}')
    named = architecture.format(tmp=tmp_path)
    out = tmp_path / "out"
    assert train_final.main([*SMOKE, "--architecture", named, "--out", str(out)]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert message in said.err and not out.exists()


def test_a_training_from_scratch_has_the_same_form_in_every_step():
    """Traced, not run: what is run is the same as for the micro-CNN."""
    task = NASBench201Task()
    config = train_final.parse([*SMOKE, "--architecture", "resnet"])
    corpus = task.read(config)
    config, architecture = train_final.read_architecture(config.with_space(**task.sizes(corpus)))
    training = task.training(config, architecture, task)
    data = training.cut(corpus)
    assert data.train.images.shape[2:] == (14, 14, 1)
    state = jax.eval_shape(training.init, jax.random.key(0), data.train)
    after = jax.eval_shape(training.train, state, data.train)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    after, error = jax.eval_shape(training.finish, state, data.train, data.validation)
    assert error.shape == ()


def test_all_devices_have_as_many_groups_of_images():
    config = SEARCHES["smoke"]
    assert config.space_over(1) == config.nas
    assert config.space_over(4).groups == 4

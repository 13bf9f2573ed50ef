"""All that belongs to a search space, a folder each; ``--space`` names one.

A :class:`~experiments.spaces.task.Task` is a search space together with what its architectures are
trained for: data, settings and their presets, the training from scratch, published cells. One that
is not in the table is named by the module that it is in: ``--space my_module:MyTask``.
"""

import dataclasses
import importlib
import os
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from experiments.running import command_line, processes
from experiments.spaces.sgd import SGDTraining
from experiments.spaces.task import Task

__all__ = ["TASKS", "Task", "check_memory", "find", "next_preset", "read", "settings"]

TASKS = {
    "rnn": "experiments.spaces.rnn.task:LanguageModelling",
    "micro_cnn": "experiments.spaces.micro_cnn.task:MicroCNNTask",
    "nas_bench_201": "experiments.spaces.nas_bench_201.task:NASBench201Task",
}


def find(name: str) -> Task:
    """The task that ``--space`` names: a key of ``TASKS``, or ``module:Class``.

    Raises:
      ValueError: in a line, if there is none of that name, or what is found is not a task.
    """
    module_name, colon, class_name = TASKS.get(name, name).partition(":")
    if not colon:
        raise ValueError(
            f"--space must be one of {', '.join(TASKS)}, or module:Class for a task of your own, "
            f"got {name!r}"
        )
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the module does when it is imported
        raise ValueError(
            f"--space {name}: {module_name} cannot be imported: {_in_a_line(error)}"
        ) from error
    found = getattr(module, class_name, None)
    if not (isinstance(found, type) and issubclass(found, Task)):
        there = [
            key
            for key, value in vars(module).items()
            if isinstance(value, type)
            and issubclass(value, Task)
            and value.__module__ == module_name
        ]
        raise ValueError(
            f"--space {name}: {module_name} has no class {class_name} that is an "
            f"experiments.spaces.Task; it has {', '.join(there) or 'none'}"
        )
    if missing := _missing(found):
        raise ValueError(f"--space {name}: {class_name} must define {', '.join(missing)}")
    return found()


def _in_a_line(error):
    """What a module raised, and where; a module that is not there says so itself."""
    if isinstance(error, ImportError):
        return str(error)
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    place = f"{Path(frame.f_code.co_filename).name}, line {line}"
    place = "" if isinstance(error, SyntaxError) else f" ({place})"  # which says it itself
    return f"{type(error).__name__}: {error}{place}"


def _missing(task):
    """What a class of tasks has yet to define."""
    missing = {name for name in ("name", "searches", "finals") if not hasattr(task, name)}
    held_out = getattr(task.training, "held_out", None)
    if held_out is SGDTraining.held_out and task.test is Task.test:
        missing.add("test")
    return sorted(missing | task.__abstractmethods__)


def settings(kind: str, argv: Sequence[str] | None, *, prog: str, description: str | None) -> Any:
    """A script's settings, whose defaults are those of the ``--preset`` of the ``--space``.

    Args:
      kind: ``"searches"`` or ``"finals"``, an attribute of a task.
      argv: the command line's arguments; those of the process if None.
      prog: how the script is called.
      description: what it does.

    Raises:
      ValueError: in a line, for what cannot be read.
      SystemExit: after help.
    """
    named = command_line.named(argv, {"--space": "rnn", "--preset": "smoke"})
    presets = getattr(find(named["--space"]), kind)
    if not presets:
        raise ValueError(f"--space {named['--space']} has no {kind}")
    preset = command_line.choose("--preset", presets, named["--preset"])
    preset = dataclasses.replace(preset, space=named["--space"], preset=named["--preset"])
    return command_line.read(preset, argv, prog=prog, description=description)


def read(config: Any, task: Task | None = None) -> tuple[Task, Any, Any]:
    """The task of a search's or a final training's settings, its data, and the settings with them.

    Raises:
      ValueError: for data that are not there, and for weights that no such machine holds.
    """
    task = task or find(config.space)
    vocabulary = f"--{config.space_field}.vocabulary"
    with (
        command_line.naming_flags(config, name="--data", vocabulary_size=vocabulary),
        processes.saying(f"reading {task.source(config)}"),
    ):
        corpus = task.read(config)
        config = config.with_space(**task.sizes(corpus))
    check_memory(config)
    return task, corpus, config


def check_memory(config: Any) -> None:
    """Refuse, by a ValueError, a space whose weights no such machine holds."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        weights = jax.eval_shape(config.search_space.init, jax.random.key(0))
        needed = 2 * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(weights))
    except OverflowError:  # more than can be counted
        needed = 2**63
    except Exception as error:  # whatever a space of one's own does
        raise ValueError(
            f"--{config.space_field} cannot begin: {_in_a_line(error)}: choose other sizes than "
            f"{config.search_space}"
        ) from error
    if needed > there:
        raise ValueError(
            f"--{config.space_field} has sizes whose weights and gradients need "
            f"{needed / 2**30:,.0f} GiB, and this machine has {there / 2**30:,.0f}: choose smaller "
            f"ones than {config.search_space}"
        )


def next_preset(kind: str, config: Any) -> str:
    """How to go on from ``--preset smoke``, in a line; nothing where there is no way on."""
    presets = getattr(find(config.space), kind)
    if config.preset != "smoke" or "cpu" not in presets:
        return ""
    return "This was --preset smoke, which shows that all works; --preset cpu runs on real data."

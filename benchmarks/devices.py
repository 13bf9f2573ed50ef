"""A training step of two searches by the number of devices that share its batches.

    python -m benchmarks.devices
    python -m benchmarks.devices rnn  # one space; no file is written

The presets ``cpu`` with WPL, on random words and pixels of a fixed seed. *Strong scaling* divides
the preset's batch among the devices; ideally the time falls in proportion. *Weak scaling* gives
each device a batch as large as the preset's; ideally the time stays.

On a CPU the devices are made of the same cores. Even one uses them all, so that no time can fall in
proportion. What the tables show there is what dividing the work costs, and that the memory of each
device falls with its part of a batch. MiB is of one device.
"""

import dataclasses
import functools

import jax
import numpy as np

from benchmarks.accelerator import training
from benchmarks.end_to_end import data_of
from benchmarks.report import chosen, report
from benchmarks.timing import Steps, compare
from experiments import spaces
from wpl_jax.search.parallel import everywhere, split_batches

COUNTS = 1, 2, 4, 8
SPACES = "rnn", "micro_cnn"


def main():
    jax.config.update("jax_num_cpu_devices", COUNTS[-1])
    names = chosen(__doc__, SPACES)
    tables = []
    for name in names:
        tables += [table(name, weak) for weak in (False, True)]
        if names == list(SPACES):  # after each, so that what was measured outlives an interruption
            report("devices", tables)


def table(name, weak):
    """Of a space, by as many of the devices as there are."""
    config = dataclasses.replace(spaces.find(name).searches["cpu"], method="wpl", warmup_epochs=0)
    batch = config.batch_size
    forms = {
        f"{count} device{'s' * (count > 1)}": functools.partial(
            step, dataclasses.replace(config, batch_size=batch * count if weak else batch), count
        )
        for count in COUNTS
        if count <= jax.device_count()
    }
    said = f"{batch} on each device" if weak else f"{batch} in all"
    title = f"{'Weak' if weak else 'Strong'} scaling of preset cpu of {name}: a batch of {said}"
    return compare(title, forms, repeats=7)


def step(config, count):
    """Steps of one architecture, its Fisher and the move of the anchor included."""
    search, devices = training(config, count), jax.devices()[:count]
    data = split_batches(jax.tree.map(np.asarray, data_of(config)), devices)
    state = jax.jit(search.init, out_shardings=everywhere(devices))(jax.random.key(0))
    batches = config.search.batches
    return Steps(search._next, state, data, steps=batches, out_shardings=everywhere(devices))


if __name__ == "__main__":
    main()

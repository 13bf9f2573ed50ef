"""The paper's experiments, as scripts: ``python -m experiments.two_models --help``."""

import sys

from experiments.running import script

if sys.argv[0] == "-m":  # while Python looks for the module that it is to run, which is one of ours
    script.begin(sys.orig_argv[-len(sys.argv)].rpartition("experiments.")[2])

try:
    import matplotlib  # noqa: F401
    import platformdirs  # noqa: F401
    import rich  # noqa: F401
    import tyro  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"the experiments need {error.name}: pip install '.[experiments]' in wpl_jax's checkout"
    ) from error

from experiments.running import compiled

compiled.keep()

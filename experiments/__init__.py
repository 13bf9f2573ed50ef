"""The paper's experiments, as scripts: ``python -m experiments.two_models --help``."""

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

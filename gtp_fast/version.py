"""The version of the package, which pyproject.toml, run directories and `--version` read."""

__version__ = "0.1.0"

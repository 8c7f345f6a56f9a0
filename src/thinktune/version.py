"""The version, apart from the package, so that modules below can read it."""

__version__ = "0.1.0"

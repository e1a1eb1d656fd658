"""The version, where packaging reads it too."""

__version__ = "0.1.0"

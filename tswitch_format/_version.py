"""The library's version, which is not the format's."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("tswitch-format")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"

WRITER = f"tswitch_format {__version__}"

"""The library's version, which is not the format's. The build reads it from here."""

__version__ = "0.1.0"

WRITER = f"tswitch_format {__version__}"

"""Decoders that the suite has been run with."""

"""Checkpoint readers and writers: one format a file, found through entry points (see `tswitch_format.checkpoint`)."""

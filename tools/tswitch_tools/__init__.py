"""The `tsw` command and the checkpoint readers and writers behind it."""

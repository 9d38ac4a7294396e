"""The commands of `tsw`: arguments in, a call of the library, a line or JSON out."""

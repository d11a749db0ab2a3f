"""One short entry per architecture. A module here names its architectures in `FAMILIES`; no other file changes."""

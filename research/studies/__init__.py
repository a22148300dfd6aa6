"""Studies that can be repeated; each has a folder."""

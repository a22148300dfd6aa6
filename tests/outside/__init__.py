"""A model family of somebody else's, which the package learns by one file."""

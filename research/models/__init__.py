"""Makes small models to prune, from scratch and on a CPU: one file a model, one command a file."""

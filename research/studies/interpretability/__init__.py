"""Pruning, performance and interpretability: the study of arXiv 2409.19727."""

"""The comparison of bandit policies of arXiv 2606.07615, on tables."""

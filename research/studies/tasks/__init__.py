"""A run of every task on real data: rows (rows.py), models and runs (run.py), figures once more (recompute.py)."""

"""Comparisons that a researcher can run again; the core never imports them."""

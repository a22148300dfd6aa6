"""Comparisons and studies that anyone can run again. Not in the wheel; the package never imports them."""

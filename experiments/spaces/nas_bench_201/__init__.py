"""Cells of NAS-Bench-201, for image classification."""

"""Cells of convolutional networks, for image classification."""

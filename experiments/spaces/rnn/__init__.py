"""Recurrent cells, for language modelling."""

"""Importances for one pull compared: Fishers, MAS, SI, a constant."""

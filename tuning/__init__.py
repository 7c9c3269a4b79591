"""Searches over hyperparameters, lambda, and which territories share a group block."""

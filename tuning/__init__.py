"""Searches over what the papers set by hand: hyperparameters, lambda, and which territories share a group block."""

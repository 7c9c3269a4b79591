"""Trainers of the three models, without Ray: for runs, trials and notebooks alike."""

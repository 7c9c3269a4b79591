"""Ray Train runs of the three models, and their folders."""

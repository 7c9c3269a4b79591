"""Trainers of the three models: plain torch, no Ray, the same in a run, a trial and a notebook."""

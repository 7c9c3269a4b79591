"""Figures with intervals: mergeable evaluation of propensity models, accuracy and audit of sequential ones; no ray."""

"""Streaming, mergeable evaluation of propensity models: torch and numpy only, no Ray."""

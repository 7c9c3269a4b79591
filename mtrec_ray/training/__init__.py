"""Ray Train runs: the propensity models today, backbones and eliminators next."""

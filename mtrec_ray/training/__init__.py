"""Ray Train runs of propensity models, backbones and packs of eliminators; what they leave behind."""

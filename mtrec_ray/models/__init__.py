"""Models: torch modules that hold parameters and a plain forward for inference; no ray."""

"""Sources: raw data of any origin, brought to the lake's canonical columns part by part (never imports ray)."""

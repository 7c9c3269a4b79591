"""Steps: one exact training or scoring step on tensors; no ray."""

"""Metrics with intervals for propensity and sequential models, and the audit of representations; imports no ray."""

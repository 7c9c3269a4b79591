"""Metrics with intervals, and the audit of representations; imports no ray."""

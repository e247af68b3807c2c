"""Metrics on plain tensors, frozen judges, and the report that applies them to a checkpoint."""

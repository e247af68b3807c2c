"""Losses, the loop and its run folder, and the two training commands."""

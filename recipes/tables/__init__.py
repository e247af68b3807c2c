"""The paper's tables in miniature: every system in a small world, and its figures beside the paper's."""

"""The paper's tables in miniature: every system in a world where it converges on one core."""

"""A local page on which people say whether a sample is good."""

"""All that happens to layers without a network: blending, placing, stacking, edges, filling, splitting, sizes."""

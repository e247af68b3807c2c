"""Examples in, batches out: shards, crops, the latent cache and the demo data set."""

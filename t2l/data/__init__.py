"""Pictures in, batches out: folders, packing, shards, crops, captions, the latent cache."""

"""Networks: the layered autoencoder, the UNet, the text encoder and its tokenizer, the discriminator."""

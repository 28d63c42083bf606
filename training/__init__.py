"""The tiny checkpoint from nothing: scenes, captions, autoencoder, transformer, export."""

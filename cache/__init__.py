"""Step cache policies: when a denoising step may reuse the last one's work."""

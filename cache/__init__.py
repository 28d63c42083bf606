"""Step caches: when a denoising step reuses earlier ones' residuals, and how they are predicted.

Imports neither the model nor the schedulers: a cache is given tensors and yields layer calls.
"""

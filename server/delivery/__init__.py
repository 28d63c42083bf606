"""Delivery of images: the image store, guarded outgoing requests, content checking."""

"""The protocol: HTTP bodies in, response envelopes out. Never imports torch."""

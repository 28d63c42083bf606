"""Checkpoint loading: names, streamed reads, strict checks, sharding, offload."""

"""Many machines: the same application as replicas of Ray Serve (extra `ray`)."""

"""Many machines: the application as replicas of Ray Serve (extra `ray`)."""

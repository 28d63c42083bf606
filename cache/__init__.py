"""Step caches: when a step may reuse earlier ones' work, and what it puts in its place."""

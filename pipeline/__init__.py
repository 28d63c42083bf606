"""From a prompt to images: the one place where model, schedulers and step caches meet."""

"""HunyuanImage-3.0: architecture and weights; knows nothing of requests, steps or policies."""

"""Faults of settings in words: unknown, renamed, gone, or out of range."""

from pydantic_core import ErrorDetails

# Old names, and the new ones that their refusal names.
_RENAMED = {
    "server.is_open": "server.allow_unauthenticated",
    "server.trusts_proxy_headers": "server.trust_proxy_headers",
    "images.folder": "images.store",
    "worker.memory_gb": "worker.device_memory_gb",
    "worker.cfg_ranks": "worker.cfg_parallel_size",
    "worker.tensor_ranks": "worker.tensor_parallel_size",
    "worker.compile_experts": 'worker.compile_kernels ("auto", "on" or "off")',
    "worker.expert_split": 'worker.expert_parallel (true for "expert", false for "width")',
}
_GONE = {
    "egress.webhook_first_delay_s": "tries follow the hosted service's times, 250 ms and doubling",
}


def describe_fault(fault: ErrorDetails) -> str:
    """Return one fault that pydantic found: the setting's name, the reason and the value."""
    name = ".".join(map(str, fault["loc"]))
    if name in _RENAMED:
        return f"{name} is called {_RENAMED[name]} now; rename it"
    if name in _GONE:
        return f"{name} is gone ({_GONE[name]}); remove it"
    return f"{name}: {fault['msg']} (got {fault['input']!r})"

"""The fidelity ledger: what every mode, dtype, quantization, cache and solver costs and keeps."""

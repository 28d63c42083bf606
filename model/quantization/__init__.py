"""Weight quantization to fp8, int8 and int4: schemes, quantized modules, float8 products."""

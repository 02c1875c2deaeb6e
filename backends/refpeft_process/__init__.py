"""Any program as a backend, over safetensors on standard input and output."""

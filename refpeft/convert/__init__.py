"""A model's weights into a 4-bit checkpoint, tensor by tensor.

`source` reads models of three kinds as one, `from_gguf` gives a GGUF file the names, the order of rows and the configuration
that transformers expects, `select` says which tensors are quantised, `settings` what a configuration says of it, and `folder`
writes the result.
"""

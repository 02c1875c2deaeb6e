"""A model's weights written anew, tensor by tensor: in 4 bits, or with an adapter merged into them.

`source` reads models of three kinds as one, `from_gguf` gives a GGUF file the names, the order of rows and the configuration
that transformers expects, and `folder` writes a model anew, whatever becomes of its tensors: `quantise` and `merge` say what.
`select` says which tensors are quantised, `settings` what a configuration says of it.
"""

"""What fine-tuning a model takes of memory, counted byte by byte before anything is run.

`decoder` has the shapes of an architecture, `models` where they come from, `trained` what a method trains, `activations` what
the backward pass must keep, `account` the sum, `claims` what papers say of it, and `picture` a drawing: arithmetic on integers.
`rehearsal` is what training on a backend holds, for which a `stage` has it run on `ghosts`, counted in a `ledger`.
"""

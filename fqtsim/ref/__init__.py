"""The definition: plain Python integers and fractions, slow on purpose. Rules are numbered in docs/semantics.md."""

"""`fqtsim demo`: one dot product, six training runs, two cross-checks and a table, in under four minutes."""

"""The public functions on codes: check, prepare, call a backend, wrap (design section 6)."""

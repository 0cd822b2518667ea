"""Numba kernels: arithmetic only, equal to ref/ bit for bit.

Permitted: arrays and integers in, arrays and counts out; every narrow code widened on load; shift amounts below the
lane width. Not permitted: fastmath, cache=True (Numba does not see an edit in a callee of another file), exceptions,
checks of user input, an import of ref/. Threads split independent outputs only, since saturating sums have an order.
"""

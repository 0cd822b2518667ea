"""A second, slower model of the arithmetic, written from the specification alone, by another method.

It simulates wires and gates: no integer of the modelled machine is ever added, multiplied or compared with
Python arithmetic. It imports nothing of fqtsim, so a shared mistake would have to be made twice.
"""

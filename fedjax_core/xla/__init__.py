"""Compiles a step well on this machine: faster forms of the same sums, compiler options, and what was
measured."""

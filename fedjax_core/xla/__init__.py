"""Compiles a step to run fast on this machine: faster forms of the same sums, compiler options, and
measurements."""

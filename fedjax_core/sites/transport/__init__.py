"""Ways to carry bytes between a coordinator and its sites: threads of this process (in_process.py), and Ray,
with TLS and a token."""

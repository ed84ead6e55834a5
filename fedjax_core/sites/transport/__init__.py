"""Transports between a coordinator and its sites: threads of this process, and Ray with TLS and a token."""

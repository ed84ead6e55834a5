"""Multipart transfer of large messages, at both ends."""

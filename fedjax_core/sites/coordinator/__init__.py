"""The coordinator of a federation: asks sites, waits for replies, validates and adds reports."""

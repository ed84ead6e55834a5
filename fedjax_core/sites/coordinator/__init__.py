"""The coordinator of a federation: asks sites, waits for their replies, and validates and adds their
reports."""

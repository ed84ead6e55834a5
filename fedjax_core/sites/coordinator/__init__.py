"""The other end of a federation: asks sites, reads their replies, validates and adds their reports, and
decides how long it waits."""

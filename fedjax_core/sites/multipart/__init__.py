"""Messages that are too large to travel at once, at both ends: what their parts are, and how these move."""

"""Real sites: what they say to each other and who says it, what is let in, what may leave, and the record of it all."""

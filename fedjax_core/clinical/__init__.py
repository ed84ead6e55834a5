"""What a clinician reads of a model: its performance at each hospital, as numbers, tables and figures."""

"""A model's performance at each hospital, for clinicians: numbers, tables and figures."""

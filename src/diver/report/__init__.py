"""The report: statistics over the tidy table of students, tables, figures, and comparison with published numbers."""

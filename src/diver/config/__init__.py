"""Settings of every room as pydantic models, one module per room, so that editing one does not touch the others' jobs.

These modules import nothing heavy: a configuration is checked before torch is loaded.
"""

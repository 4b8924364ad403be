"""Models behind one interface (`base.py`) and the table that loads them (`registry.py`)."""

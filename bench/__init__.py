"""One script per claim; each prints a table and ends with one JSON line."""

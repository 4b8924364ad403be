"""`turboserve evaluate`: every policy over many traces, sizes and profiles."""

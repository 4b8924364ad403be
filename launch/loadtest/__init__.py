"""`turboserve loadtest` and `turboserve compare`: real clients play a load, and what they saw is judged."""

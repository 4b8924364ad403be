"""The `turboserve` command: clusters on one machine, single roles, the terminal client."""

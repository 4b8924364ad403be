"""`python -m launch`, and the entry point of the `turboserve` program."""

from launch.cli import main

if __name__ == "__main__":
    raise SystemExit(main())

"""`python -m launch`, and the entry point of the `turboserve` program."""

from __future__ import annotations

import signal

__all__ = ["main"]


def main() -> int:
    """See `launch.cli.main`; Ctrl-C is no error while its imports, which take a while, go on."""
    try:
        from launch import cli

        return cli.main()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    raise SystemExit(main())

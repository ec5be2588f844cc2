"""The command, or what to install for it."""

import sys


def main() -> None:
    """Runs `keras-invdrop`."""
    try:
        from .command_line import main as run
    except ModuleNotFoundError as error:
        sys.exit(
            f"keras-invdrop: {error}, which the command needs: "
            '`pip install "keras-invdrop[applications]"`'
        )
    run()


if __name__ == "__main__":
    main()

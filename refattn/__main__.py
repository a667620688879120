"""``python -m refattn``: the command line, where its script is not on the path."""

from refattn.cli import main

if __name__ == "__main__":
    main()

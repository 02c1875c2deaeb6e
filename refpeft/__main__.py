"""``python -m refpeft``: the same program as ``refpeft``."""

from refpeft.cli import main

if __name__ == "__main__":
    main()

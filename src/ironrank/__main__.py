"""``python -m ironrank`` is the command ``ironrank``."""

from ironrank.cli import main

if __name__ == "__main__":
    main()

"""``python -m flowrl`` is the ``flowrl`` program."""

from flowrl.cli import main

if __name__ == "__main__":
    main()

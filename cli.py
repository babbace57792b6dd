"""Launcher for a checkout: `python cli.py train ...`. The commands are in cae_raw/app.py."""

from cae_raw.app import main

if __name__ == "__main__":
    main()

"""`python -m cae_raw` is `cae-raw`."""

from cae_raw.app import main

if __name__ == "__main__":
    main()

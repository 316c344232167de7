"""`python -m maxk_lightning`."""

from maxk_lightning.cli import main

if __name__ == "__main__":
    main()

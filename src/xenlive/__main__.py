"""`python -m xenlive` is `xenlive`."""

from xenlive.cli.main import main

if __name__ == "__main__":
    main()

"""`python -m ncsn`: the program."""

from ncsn.cli.main import main

if __name__ == "__main__":
    main()

"""Numbers on a command line."""

import argparse


def positive(text: str) -> int:
    """A number from 1 on."""
    if (number := whole(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def whole(text: str) -> int:
    """A number from 0 on."""
    if not text.isascii() or not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number")
    return int(text)
